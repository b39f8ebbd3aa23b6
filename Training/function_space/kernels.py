"""Kernels and outputs as matrices and vectors, for one kernel of all outputs and for full ones.

A kernel between E and N examples is a matrix [E, N] by which every output moves alone (the
infinite width's, or a traced one), or full, [E, N, C, C], for which [EC, NC] is also read. Outputs
are [..., N, C] throughout. All numbers are float64.

Shape letters: N training examples, E others, C outputs; n = N, k = C, or n = NC, k = 1 with a
full kernel.
"""

import torch
from torch import Tensor

from Utils.errors import UserError


def as_matrix(kernel: Tensor) -> Tensor:
    """A kernel as float64 matrix [E, N] or [EC, NC].

    Args:
        kernel: [E, N], or [E, N, C, C] with entries ⟨∂f_c(x), ∂f_d(x')⟩ at [x, x', c, d].

    Raises:
        ValueError: it has another number of axes.
    """
    kernel = kernel.detach().double()
    if kernel.dim() == 4:
        rows, columns, outputs, _ = kernel.shape
        return kernel.transpose(1, 2).reshape(rows * outputs, columns * outputs)
    if kernel.dim() != 2:
        raise ValueError(f"a kernel has 2 or 4 axes, not {kernel.dim()}")
    return kernel


def as_vectors(outputs: Tensor, size: int) -> Tensor:
    """Outputs [..., N, C] as vectors [..., n, k] that a kernel of ``size`` columns multiplies.

    Raises:
        ValueError: no kernel of N examples and C outputs has this size.
    """
    *leading, examples, classes = outputs.shape
    if size not in (examples, examples * classes):
        raise ValueError(f"a kernel of size {size} for {examples} examples of {classes} outputs")
    return outputs.reshape(*leading, size, -1)


def apply(matrix: Tensor, outputs: Tensor) -> Tensor:
    """Θ(x, X) b: [..., E, C] from a matrix and outputs [..., N, C]."""
    product = matrix @ as_vectors(outputs, matrix.shape[1])
    return product.reshape(*outputs.shape[:-2], -1, outputs.shape[-1])


def rows_of(matrix: Tensor, examples: Tensor, count: int) -> Tensor:
    """The rows of some examples, all outputs of each.

    Args:
        matrix: of ``count`` examples.
        examples: [B] int64.
        count: N.
    """
    blocks = matrix.reshape(count, -1, matrix.shape[1])
    return blocks[examples].reshape(-1, matrix.shape[1])


def regularized(kernel: Tensor, amount: float, relative: bool = True) -> Tensor:
    """Θ + amount · (tr Θ / n) · 1, or Θ + amount · 1.

    Args:
        kernel: of the training examples with themselves; the cross kernels stay as they are.
        amount: not negative.
        relative: whether in units of the mean of the diagonal, as neural-tangents' ``diag_reg``.

    Returns:
        the matrix [n, n].

    Raises:
        UserError: the amount is negative.
    """
    if amount < 0:
        raise UserError(f"a kernel's regulariser is {amount:g}; it must be at least 0")
    matrix = as_matrix(kernel)
    unit = matrix.diagonal().mean() if relative else torch.ones((), dtype=matrix.dtype)
    return matrix + amount * unit * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
