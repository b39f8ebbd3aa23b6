"""Any other function, by Mehler's series.

With a_k(q) = E[f(√q z) He_k(z)]/√k!, z standard normal, found by one-dimensional quadrature,

    K = Σ_k a_k(q₁₁) a_k(q₂₂) c^k        K' = Σ_k k a_k(q₁₁) a_k(q₂₂) c^{k−1} / s

(Mehler 1866; O'Donnell, "Analysis of Boolean functions", chapter 11.) What N terms leave out is
bounded by Cauchy and Schwarz, with Parseval's E f² = Σ a_k² and q E f'² = Σ k a_k²:

    |ΔK| ≤ |c|^N √(R(q₁₁) R(q₂₂)),                    R(q) = E f² − Σ_{k<N} a_k²
    |ΔK'| ≤ |c|^{N−1} √(R'(q₁₁) R'(q₂₂)) / s,         R'(q) = q E f'² − Σ_{k<N} k a_k².

The bound says up to which |c| a number of terms is enough. Most pairs of a block get few terms,
those nearer |c| = 1 the most; and where these are not enough, which for smooth f is nowhere and for
kinked ones near |c| = 1, the pair is integrated in polar coordinates instead.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from Models.infinite.duals.dual import Dual
from Models.infinite.duals.quadrature import (
    Function,
    hermite_coefficients,
    mean_product,
    mean_square,
)

TOLERANCE = 1e-9
"""Of K relative to √(E f(x)² E f(y)²), of K' relative to the same of f'."""

_TERMS = (16, 32, 64, 128, 256)

_FEW = 0.05
"""Share of pairs up to which they get more terms than the others."""

_VARIANCES = 9
"""Between the least and the largest, at which the bound is found."""

_AT_ONCE = 256
"""Pairs that are integrated together: 100 MB."""

_GATHERED = 4096
"""Pairs whose coefficients are gathered together: 16 MB."""

_SAMPLES = 13
"""Of a function, which tell it from others."""


class Mehler(Dual):
    """The dual of any elementwise function.

    Args:
        function: f; differentiable by torch, smooth apart from zero.
    """

    def __init__(self, function: Function):
        self.function = function

    def __call__(self, q12: Tensor, q11: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
        s = q11.sqrt() * q22.sqrt()
        c = (q12 / s).nan_to_num_(0.0).clamp_(-1, 1)
        size = c.abs()
        reaches = self._reaches(q11, q22)
        terms = next((n for n in _TERMS if _share_beyond(size, reaches[n]) <= _FEW), _TERMS[-1])
        a, b = (self._coefficients(q, terms, c.dtype) for q in (q11, q22))
        kernel, slope = _sums(c, a, b)
        if _share_beyond(size, reaches[terms]):
            poor = (size > reaches[terms]).nonzero(as_tuple=True)
            kernel[poor], slope[poor] = self._refined(c, q11, q22, poor, reaches[_TERMS[-1]])
        slope = slope / s
        zero = (s == 0).expand_as(c)
        if bool(zero.any()):
            slope = torch.where(zero, self._slope_at_zero(q11, q22), slope)
        return kernel, slope

    def __repr__(self) -> str:
        """By values of f, whose name need not say what it computes."""
        values = self.function(torch.linspace(-3.0, 3.0, _SAMPLES, dtype=torch.float64))
        return f"{type(self).__name__}({values.tolist()})"

    def variance(self, q: Tensor) -> Tensor:
        return mean_square(self.function, q).to(q.dtype)

    def derivative(self, x: Tensor) -> Tensor:
        """f'(x), elementwise.

        Args:
            x: any shape.
        """
        with torch.set_grad_enabled(True):
            x = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(self.function(x).sum(), x)
        return found

    def error_bound(self, q: float, terms: int) -> tuple[float, float]:
        """What ``terms`` terms can leave out at c = 1, of K and of K', relative to both there.

        Args:
            q: variance of both sides.
            terms: of the series.
        """
        kernel, slope = self._left(torch.tensor([q], dtype=torch.float64))
        return float(kernel[terms]), float(slope[terms])

    def _left(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """R/E f² and R'/(q E f'²) after 0, 1, … terms: [1 + terms, variances] each."""
        squares = hermite_coefficients(self.function, q, _TERMS[-1]).square()
        k = torch.arange(_TERMS[-1], dtype=q.dtype, device=q.device)[:, None]
        sizes = mean_square(self.function, q), q * mean_square(self.derivative, q)
        left = []
        for terms, size in zip((squares, k * squares), sizes, strict=True):
            rest = torch.cat([size[None], size - terms.cumsum(0)]).clamp(min=0)
            left.append(rest / size.clamp(min=torch.finfo(size.dtype).tiny))
        return left[0], left[1]

    def _reaches(self, q11: Tensor, q22: Tensor) -> dict[int, float]:
        """The largest |c| at which a number of terms is enough for all pairs of variances."""
        variances = torch.cat([q11.flatten(), q22.flatten()]).double()
        variances = variances[variances > 0]
        if not len(variances):
            return dict.fromkeys(_TERMS, 1.0)
        share = torch.linspace(0, 1, _VARIANCES, dtype=torch.float64, device=q11.device)
        kernel, slope = (
            left.amax(1).tolist()
            for left in self._left(torch.lerp(variances.min(), variances.max(), share))
        )
        return {n: min(_reach(kernel[n], n), _reach(slope[n], n - 1)) for n in _TERMS}

    def _coefficients(self, q: Tensor, terms: int, dtype: torch.dtype) -> Tensor:
        return hermite_coefficients(self.function, q, terms).to(dtype)

    def _refined(
        self, c: Tensor, q11: Tensor, q22: Tensor, pairs: tuple[Tensor, ...], reach: float
    ) -> tuple[Tensor, Tensor]:
        """K and s K' of some pairs, with the most terms, or by integration beyond a cosine."""
        sides = []
        for q in (q11, q22):
            places = torch.arange(q.numel(), device=q.device).reshape(q.shape).expand_as(c)[pairs]
            sides.append((self._coefficients(q, _TERMS[-1], c.dtype).flatten(1), places))
        chosen = c[pairs]
        found = torch.empty(2, len(chosen), dtype=c.dtype, device=c.device)
        for part in torch.split(torch.arange(len(chosen), device=c.device), _GATHERED):
            a, b = (coefficients[:, places[part]] for coefficients, places in sides)
            found[:, part] = torch.stack(_sums(chosen[part], a, b))
        beyond = (chosen.abs() > reach).nonzero().squeeze(1)
        if len(beyond):
            poor = tuple(x[beyond] for x in pairs)
            exact = self._integrate(c, q11.expand_as(c), q22.expand_as(c), poor)
            root = (q11.expand_as(c)[poor] * q22.expand_as(c)[poor]).sqrt()
            found[:, beyond] = torch.stack([exact[0], exact[1] * root]).to(c.dtype)
        return found[0], found[1]

    def _slope_at_zero(self, q11: Tensor, q22: Tensor) -> Tensor:
        """E f'(x) E f'(y), as one of them is constant."""
        means = [hermite_coefficients(self.derivative, q, 1)[0] for q in (q11, q22)]
        return (means[0] * means[1]).to(q11.dtype)

    def _integrate(
        self, c: Tensor, q11: Tensor, q22: Tensor, pairs: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        functions: tuple[Callable[[Tensor], Tensor], ...] = (self.function, self.derivative)
        chosen = [torch.split(x[pairs].double(), _AT_ONCE) for x in (c, q11, q22)]
        found: list[list[Tensor]] = [[], []]
        for cosine, one, other in zip(*chosen, strict=True):
            for k, f in enumerate(functions):
                found[k].append(mean_product(f, 1 - cosine, 1 + cosine, one, other))
        return torch.cat(found[0]), torch.cat(found[1])


def _reach(left: float, power: int) -> float:
    """The largest |c| at which |c|^power times what is left is below the tolerance."""
    return 1.0 if left <= TOLERANCE else (TOLERANCE / left) ** (1 / power)


def _share_beyond(size: Tensor, reach: float) -> float:
    return 0.0 if reach >= 1 or not size.numel() else float((size > reach).double().mean())


def _sums(c: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """K and s K'."""
    kernel, slope = torch.zeros_like(c), torch.zeros_like(c)
    for left, right in zip(reversed(a.unbind()), reversed(b.unbind()), strict=True):
        slope = torch.addcmul(kernel, slope, c, out=slope)
        kernel = torch.addcmul(left * right, kernel, c)
    return kernel, slope
