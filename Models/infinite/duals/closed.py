"""Smooth nonlinearities whose dual activations are known in closed form.

Notation of :mod:`Models.infinite.duals.dual`; S = q₁₁ + q₂₂, P = q₁₁ q₂₂.
"""

from math import cos, pi

import torch
from torch import Tensor

from Models.infinite.duals.dual import Dual


class Erf(Dual):
    """a erf(b x) + c: K = (2a²/π) atan2(2 b² q, R) + c², R² = (1+2b²q₁₁)(1+2b²q₂₂) − 4b⁴q².

    Williams (1997), "Computing with infinite networks", equation 11; K' = 4 a² b² / (π R).

    Args:
        a: factor of the function.
        b: factor of its argument.
        c: added to it.
    """

    def __init__(self, a: float = 1.0, b: float = 1.0, c: float = 0.0):
        self.a, self.b, self.c = a, b, c

    def __call__(self, q12: Tensor, q11: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
        b2 = self.b**2
        product = (1 + 2 * b2 * q11) * (1 + 2 * b2 * q22)
        twice = q12 * (2 * b2)
        root = torch.addcmul(product, twice, twice, value=-1).sqrt_()
        kernel = torch.atan2(twice, root).mul_(2 * self.a**2 / pi)
        slope = root.reciprocal_().mul_(4 * self.a**2 * b2 / pi)
        return (kernel.add_(self.c**2) if self.c else kernel), slope

    def variance(self, q: Tensor) -> Tensor:
        twice = 2 * self.b**2 * q
        angle = torch.atan2(twice, torch.sqrt(1 + 2 * twice))
        return 2 * self.a**2 / pi * angle + self.c**2


class Gelu(Dual):
    """x Φ(x), Φ the normal distribution function.

    With D² = (1+q₁₁)(1+q₂₂) − q² and α = atan2(q, D),
    K = [(q² + P D²) / ((1+q₁₁)(1+q₂₂) D) + q α]/2π + q/4 and
    K' = [1/D² + (1−P)/((1+q₁₁)(1+q₂₂)) + 1] q/(2πD) + 1/4 + α/2π. Tsuchida, Pearce, van der
    Heide, Roosta and Gallagher (2021), arXiv 2002.08517, proposition 3; checked by quadrature.
    """

    def __call__(self, q12: Tensor, q11: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
        ones, product = (1 + q11) * (1 + q22), q11 * q22
        square = q12 * q12
        det = ones - square
        root = det.sqrt()
        angle = torch.atan2(q12, root)
        kernel = ((square + product * det) / (ones * root) + q12 * angle) / (2 * pi) + q12 / 4
        slope = (1 / det + (1 - product) / ones + 1) * q12 / root / (2 * pi)
        return kernel, slope + angle / (2 * pi) + 0.25

    def variance(self, q: Tensor) -> Tensor:
        return self(q, q, q)[0]


class Sin(Dual):
    """a sin(b x + c): K = a²/2 (E₁ − E₂), K' = a² b²/2 (E₁ + E₂).

    E₁ = e^{b²(q − S/2)}, E₂ = e^{−b²(q + S/2)} cos 2c: E e^{iz} = e^{−Var z/2} for z = b(x ∓ y).
    Rahimi and Recht (2007), "Random features for large-scale kernel machines".

    Args:
        a: factor of the function.
        b: factor of its argument.
        c: phase; π/2 makes it a cosine.
    """

    def __init__(self, a: float = 1.0, b: float = 1.0, c: float = 0.0):
        self.a, self.b, self.phase = a, b, cos(2 * c)

    def __call__(self, q12: Tensor, q11: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
        b2, half = self.b**2, (q11 + q22) / 2
        near = torch.exp(b2 * (q12 - half))
        far = torch.exp(-b2 * (q12 + half)) * self.phase
        return self.a**2 / 2 * (near - far), self.a**2 * b2 / 2 * (near + far)

    def variance(self, q: Tensor) -> Tensor:
        return self.a**2 / 2 * (1 - self.phase * torch.exp(-2 * self.b**2 * q))


class Cos(Sin):
    """a cos(b x + c) = a sin(b x + c + π/2).

    Args:
        a: factor of the function.
        b: factor of its argument.
        c: phase.
    """

    def __init__(self, a: float = 1.0, b: float = 1.0, c: float = 0.0):
        super().__init__(a, b, c + pi / 2)


class Rbf(Dual):
    """√2 sin(√(2γ) x + π/4): K = e^{γ(2q − S)} = e^{−γ E(x−y)²}, K' = 2γ K.

    Rahimi and Recht (2007). With q the mean of products of inputs it is the Gaussian kernel.

    Args:
        gamma: γ > 0.
    """

    def __init__(self, gamma: float = 1.0):
        self.gamma = gamma

    def __call__(self, q12: Tensor, q11: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
        kernel = torch.exp(self.gamma * (2 * q12 - (q11 + q22)))
        return kernel, 2 * self.gamma * kernel

    def variance(self, q: Tensor) -> Tensor:
        return torch.ones_like(q)


class Exp(Dual):
    """a e^{b x}: K = a² e^{b²(S/2 + q)}, K' = b² K, as E e^z = e^{Var z/2}.

    Args:
        a: factor of the function.
        b: factor of its argument.
    """

    def __init__(self, a: float = 1.0, b: float = 1.0):
        self.a, self.b = a, b

    def __call__(self, q12: Tensor, q11: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
        kernel = self.a**2 * torch.exp(self.b**2 * ((q11 + q22) / 2 + q12))
        return kernel, self.b**2 * kernel

    def variance(self, q: Tensor) -> Tensor:
        return self.a**2 * torch.exp(2 * self.b**2 * q)


class Gaussian(Dual):
    """a e^{b x²}: K = a² D^{-1/2}, K' = 4 a² b² q D^{-3/2}, D = (1−2bq₁₁)(1−2bq₂₂) − 4b²q².

    A Gaussian integral, finite where 2 b (q₁₁ + …) leaves D > 0: always for b < 0 (Williams
    1997, equation 13, up to notation).

    Args:
        a: factor of the function.
        b: factor of the square, negative for a bump.
    """

    def __init__(self, a: float = 1.0, b: float = -1.0):
        self.a, self.b = a, b

    def __call__(self, q12: Tensor, q11: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
        b = self.b
        det = (1 - 2 * b * q11) * (1 - 2 * b * q22) - 4 * b * b * q12 * q12
        kernel = self.a**2 * det.rsqrt()
        return kernel, 4 * b * b * q12 * kernel / det

    def variance(self, q: Tensor) -> Tensor:
        return self.a**2 * (1 - 4 * self.b * q).rsqrt()


class Sign(Dual):
    """sign(x): K = (2/π) arcsin c; f' = 0 almost everywhere, so that K' = 0.

    Sheppard (1899); Williams (1997), as the limit of erf.
    """

    def __call__(self, q12: Tensor, q11: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
        c = (q12 / (q11.sqrt() * q22.sqrt())).nan_to_num_(0.0).clamp_(-1, 1)
        return torch.asin(c).mul_(2 / pi), torch.zeros_like(q12)

    def variance(self, q: Tensor) -> Tensor:
        return (q > 0).to(q.dtype)
