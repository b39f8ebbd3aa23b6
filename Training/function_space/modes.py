"""The eigendecomposition of a kernel, in which training with squared error decouples."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from Training.function_space.kernels import as_matrix, as_vectors
from Utils.errors import UserError

_NOISE = 1e-3
"""How much of the largest eigenvalue a negative one may be, in kernels of the worst precision."""


@dataclass(frozen=True)
class Modes:
    """Θ = U diag(λ) Uᵀ.

    Attributes:
        values: λ [n], ascending, zero where they are rounding: up to √n ε λ_max, ε of the number
            format in which the kernel was given, or up to the size of the most negative one.
        vectors: U [n, n], a mode in each column.
        floor: up to which eigenvalues are taken for rounding.
    """

    values: Tensor
    vectors: Tensor
    floor: float = 0.0

    @classmethod
    def of(cls, kernel: Tensor) -> Self:
        """The modes of a kernel [N, N] or [N, N, C, C] of the training examples.

        Raises:
            UserError: it is not finite, not symmetric, or clearly not positive.
        """
        precision = torch.finfo(kernel.dtype).eps
        matrix = as_matrix(kernel)
        if matrix.shape[0] != matrix.shape[1]:
            raise UserError(
                f"a kernel of shape {tuple(kernel.shape)} is not that of the training examples "
                "with themselves; give [N, N] or [N, N, C, C]"
            )
        if not matrix.isfinite().all():
            raise UserError("the kernel is not finite; look at the weights it belongs to")
        size = float(matrix.abs().max())
        skew = float((matrix - matrix.T).abs().max())
        if skew > 1e3 * precision * size:
            raise UserError(
                f"the kernel is not symmetric (by {skew:.1e} of {size:.1e}); give that of the "
                "training examples with themselves"
            )
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        largest, smallest = float(values[-1]), float(values[0])
        floor = max(len(matrix) ** 0.5 * precision * largest, -smallest)
        if floor > _NOISE * largest:
            raise UserError(
                f"the kernel's eigenvalues begin at {smallest:.2e} and end at {largest:.2e}; "
                "none may be negative: compute it in float64"
            )
        return cls(torch.where(values > floor, values, 0.0), vectors, floor)

    def gain(self, time: float, slope: float) -> Tensor:
        """[n] (1 − e^{−wλt})/λ, where Uᵀb is of a gradient flow towards targets of 1.

        Args:
            time: t.
            slope: w of the loss.
        """
        rates = slope * torch.where(self.values > 0, self.values, 1.0)
        passed = torch.where(self.values > 0, -torch.expm1(-rates * time) / rates, time)
        return slope * self.settled(passed, slope)

    def settled(self, responses: Tensor, slope: float) -> Tensor:
        """Responses x of the modes, without those that would only make outputs of rounding.

        Where λ is zero, x = −t moves no output but by the rounding of Θ and Θ(x, X), and for ever.
        There it ends as in the limit, at 0: x / (1 + (w floor x)²).

        Args:
            responses: [..., n].
            slope: w of the loss.
        """
        fading = responses / (1 + (slope * self.floor * responses).square())
        return torch.where(self.values > 0, responses, fading)

    def amplitudes(self, outputs: Tensor) -> Tensor:
        """Uᵀf: [..., n, k] of outputs [..., N, C]."""
        return self.vectors.T @ as_vectors(outputs.double(), len(self.values))

    def outputs(self, amplitudes: Tensor, classes: int) -> Tensor:
        """U a: [..., N, C] of amplitudes [..., n, k]."""
        vectors = self.vectors @ amplitudes
        return vectors.reshape(*vectors.shape[:-2], -1, classes)

    def inverse(self, added: float = 0.0) -> Tensor:
        """[n] 1/(λ + added), and 0 instead of 1/0: the pseudo-inverse."""
        shifted = self.values + added
        return torch.where(shifted > 0, 1 / shifted, 0.0)
