"""What a nonlinearity f does to covariances: its dual activation.

For (x, y) Gaussian with mean zero, variances q₁₁, q₂₂ and covariance q₁₂,

    K  = E[f(x) f(y)]        K' = E[f'(x) f'(y)] = ∂K/∂q₁₂        (Price 1958)

K is the covariance after the nonlinearity, K' the factor of the tangent kernel (Jacot et al. 2018,
arXiv 1806.07572, theorem 1; Daniely, Frostig and Singer 2016, arXiv 1602.05897).
"""

from abc import ABC, abstractmethod

from torch import Tensor


class Dual(ABC):
    """K and K' of one function f; all tensors in one dtype, on one device."""

    @abstractmethod
    def __call__(self, q12: Tensor, q11: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
        """K and K', in the shape of ``q12``.

        Args:
            q12: covariances; |q₁₂| ≤ √(q₁₁ q₂₂) up to rounding.
            q11: variances, in a shape that broadcasts to that of ``q12``.
            q22: the same of the other side.
        """

    @abstractmethod
    def variance(self, q: Tensor) -> Tensor:
        """E[f(x)²] for variances ``q``, in their shape."""

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({numbers})"
