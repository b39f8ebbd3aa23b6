"""Polynomials, Hermite polynomials, and powers of max(x, 0).

A polynomial f(x) = Σ_m f_m x^m of a Gaussian of variance q is Σ_k g_k(q) He_k(x/√q), and
E[He_k(x/√q₁₁) He_k(y/√q₂₂)] = k! c^k (Mehler 1866), so that

    K = Σ_k G_k(q₁₁) G_k(q₂₂) q₁₂^k / k!,   G_k(q) = E f^(k)(x) = Σ_m f_m m!/(m−k)! E x^{m−k},

in which no power of 1/q appears; K' = ∂K/∂q₁₂.
"""

from collections.abc import Sequence
from math import factorial, prod, sqrt

import torch
from torch import Tensor

from Models.infinite.duals.dual import Dual


class Polynomial(Dual):
    """Σ_m f_m x^m.

    Args:
        coefficients: f₀, f₁, …
    """

    def __init__(self, coefficients: Sequence[float]):
        self.coefficients = tuple(coefficients)

    def __call__(self, q12: Tensor, q11: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
        left, right = self._means(q11), self._means(q22)
        kernel, slope = torch.zeros_like(q12), torch.zeros_like(q12)
        for k in reversed(range(len(left))):  # Horner: Σ_k G_k G_k q^k / k!
            slope = slope * q12 + kernel
            kernel = kernel * q12 + left[k] * right[k] / factorial(k)
        return kernel, slope

    def variance(self, q: Tensor) -> Tensor:
        return self(q, q, q)[0]

    def _means(self, q: Tensor) -> list[Tensor]:
        """G_k: the mean of the k-th derivative."""
        found = []
        for k in range(len(self.coefficients)):
            total = torch.zeros_like(q)
            for m, f in enumerate(self.coefficients):
                if f and m >= k and (m - k) % 2 == 0:
                    moment = prod(range(m - k - 1, 0, -2))  # E z^{m−k} = (m − k − 1)!!
                    total = total + f * factorial(m) / factorial(m - k) * moment * q ** (
                        (m - k) // 2
                    )
            found.append(total)
        return found


def monomial(degree: int) -> Polynomial:
    """x^degree.

    Args:
        degree: 0 or more.
    """
    return Polynomial([0.0] * degree + [1.0])


def hermite(degree: int) -> Polynomial:
    """He_degree(x)/√degree!, the probabilists' polynomial of norm one.

    At unit variances K = c^degree (Daniely, Frostig and Singer 2016, arXiv 1602.05897).

    Args:
        degree: 0 or more.
    """
    before, now = [0.0], [1.0]
    for k in range(degree):  # He_{k+1} = x He_k − k He_{k−1}
        shifted = [0.0, *now]
        lower = [*before, *[0.0] * (len(shifted) - len(before))]
        before, now = now, [s - k * b for s, b in zip(shifted, lower, strict=True)]
    return Polynomial([coefficient / sqrt(factorial(degree)) for coefficient in now])
