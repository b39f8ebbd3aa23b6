"""Any other function, by Mehler's series.

With a_k(q) = E[f(√q z) He_k(z)]/√k!, z standard normal, found by one-dimensional quadrature,

    K = Σ_k a_k(q₁₁) a_k(q₂₂) c^k        K' = Σ_k k a_k(q₁₁) a_k(q₂₂) c^{k−1} / s

(Mehler 1866; O'Donnell, "Analysis of Boolean functions", chapter 11.) What N terms leave out is
bounded by Cauchy and Schwarz, with Parseval's E f² = Σ a_k² and q E f'² = Σ k a_k²:

    |ΔK| ≤ |c|^N √(R(q₁₁) R(q₂₂)),                    R(q) = E f² − Σ_{k<N} a_k²
    |ΔK'| ≤ |c|^{N−1} √(R'(q₁₁) R'(q₂₂)) / s,         R'(q) = q E f'² − Σ_{k<N} k a_k².

Where the bound exceeds the tolerance, which for smooth f it does nowhere and for kinked ones near
|c| = 1, the pair is integrated in polar coordinates instead.
"""

from collections.abc import Callable
from typing import NamedTuple

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
_AT_ONCE = 256
"""Pairs that are integrated together: 100 MB."""


class _Series(NamedTuple):
    """Of one set of variances.

    Attributes:
        coefficients: a_k, [N, *shape].
        left: √(E f² − Σ a_k²) and √(q E f'² − Σ k a_k²).
        sizes: √E f² and √(q E f'²).
    """

    coefficients: Tensor
    left: tuple[Tensor, Tensor]
    sizes: tuple[Tensor, Tensor]


class Mehler(Dual):
    """The dual of any elementwise function.

    Args:
        function: f; differentiable by torch, smooth apart from zero.
    """

    def __init__(self, function: Function):
        self.function = function

    def __call__(self, q12: Tensor, q11: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
        one, other = self._series(q11, q22)
        s = q11.sqrt() * q22.sqrt()
        c = (q12 / s).nan_to_num_(0.0).clamp_(-1, 1)
        dtype = q12.dtype
        a, b = (x.coefficients.to(dtype) for x in (one, other))
        kernel, slope = torch.zeros_like(q12), torch.zeros_like(q12)
        for k in reversed(range(len(a))):
            slope = slope.mul_(c).add_(kernel)
            kernel = torch.addcmul(a[k] * b[k], kernel, c)
        slope = slope / s
        poor = self._poor(c, one, other, len(a))
        zero = (s == 0).expand_as(q12)
        if bool(zero.any()):
            slope = torch.where(zero, self._slope_at_zero(q11, q22), slope)
            poor &= ~zero
        if bool(poor.any()):
            pairs = poor.nonzero(as_tuple=True)
            exact = self._integrate(c, q11.expand_as(c), q22.expand_as(c), pairs)
            kernel[pairs], slope[pairs] = (x.to(dtype) for x in exact)
        return kernel, slope

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
        series = self._of(torch.tensor([q], dtype=torch.float64), terms)
        bounds = [float((left / size).square()) for left, size in _parts(series)]
        return bounds[0], bounds[1]

    def _series(self, q11: Tensor, q22: Tensor) -> tuple[_Series, _Series]:
        """Of both sides, with as many terms as the widest variances need, if there are enough."""
        widest = torch.stack([q11.max(), q22.max()]).double()
        terms = _TERMS[-1]
        for count in _TERMS:
            series = self._of(widest, count)
            if all(bool(((left / size) ** 2 < TOLERANCE).all()) for left, size in _parts(series)):
                terms = count
                break
        return self._of(q11, terms), self._of(q22, terms)

    def _of(self, q: Tensor, terms: int) -> _Series:
        q = q.double()
        a = hermite_coefficients(self.function, q, terms)
        k = torch.arange(terms, dtype=a.dtype, device=a.device).reshape(-1, *[1] * q.dim())
        size = mean_square(self.function, q)
        slope = q * mean_square(self.derivative, q)
        left = [(size - a.square().sum(0)), (slope - (k * a.square()).sum(0))]
        rest = [x.clamp(min=0).sqrt() for x in left]
        return _Series(a, (rest[0], rest[1]), (_size(size), _size(slope)))

    def _poor(self, c: Tensor, one: _Series, other: _Series, terms: int) -> Tensor:
        """Where the series alone is not good enough."""
        poor = torch.zeros_like(c, dtype=torch.bool)
        for (left, size), (right, size2), power in zip(
            _parts(one), _parts(other), (terms, terms - 1), strict=True
        ):
            worst = (left / size) * (right / size2)
            if float((left / size).max() * (right / size2).max()) > TOLERANCE:
                poor |= c.abs().double() ** power * worst > TOLERANCE
        return poor

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


def _size(square: Tensor) -> Tensor:
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()


def _parts(series: _Series) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(what is left, size) of f and of f'."""
    return (series.left[0], series.sizes[0]), (series.left[1], series.sizes[1])
