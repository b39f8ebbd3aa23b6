"""Up to which learning rate full-batch steps on a quadratic loss stay bounded.

Along an eigendirection with curvature h, and with weight decay μ, a step of ``torch.optim.SGD`` is
a 2x2 map of x = η(h + μ) with trace T and determinant D, bounded while D ≤ 1 and |T| ≤ 1 + D. It is
T = −1 − D that x violates first:

===========================  =====================  ==============  =======================
SGD                          T = 1 − x              D = 0           x ≤ 2
heavy ball, dampening α      T = 1 + β − (1−α)x     D = β           x ≤ 2(1+β)/(1−α)
Nesterov                     T = (1 + β)(1 − x)     D = β(1 − x)    x ≤ 2(1+β)/(1+2β)
===========================  =====================  ==============  =======================

Of a linearised network h are the eigenvalues of the Gauss-Newton matrix JᵀHJ, which are those of
H^{1/2} Θ H^{1/2}, H the loss's Hessian in the outputs; of squared error H = w.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from Training.discrete_laws import Coefficients, Floats
from Training.function_space.kernels import apply, as_matrix
from Training.function_space.losses import Loss, loss_hessian

_DENSE = 500
"""Up to this size all eigenvalues are as quick as the largest alone."""


def stable_edge(momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False) -> float:
    """The largest η(h + μ) at which steps stay bounded; arguments as of ``torch.optim.SGD``."""
    if not momentum:  # torch then ignores the dampening
        return 2.0
    return 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1 - dampening)


def largest_lr(curvature: float, rule: Coefficients) -> float:
    """The largest learning rate at which steps stay bounded; infinite where nothing pulls.

    Args:
        curvature: the largest h, :func:`largest_curvature`.
        rule: momentum, dampening, Nesterov's variant and weight decay of the steps.
    """
    rate = curvature + rule.wd
    return stable_edge(rule.momentum, rule.dampening, rule.nesterov) / rate if rate else math.inf


def largest_eigenvalue(kernel: Tensor | LinearOperator) -> float:
    """λ_max of a kernel, by Lanczos's iteration (ARPACK) where it is large.

    Args:
        kernel: [N, N] or [N, N, C, C], or what multiplies float64 vectors by it.
    """
    if isinstance(kernel, Tensor):
        matrix = as_matrix(kernel).cpu()
        kernel = _operator(lambda v: matrix @ v, len(matrix))
    size = kernel.shape[0]
    if size <= _DENSE:
        return float(np.linalg.eigvalsh(kernel @ np.eye(size))[-1])
    start = np.random.default_rng(0).standard_normal(size)
    return float(eigsh(kernel, 1, which="LA", v0=start, return_eigenvectors=False)[0])


def largest_curvature(kernel: Tensor, loss: Loss, outputs: Tensor, targets: Tensor) -> float:
    """λ_max of H^{1/2} Θ H^{1/2}: the largest eigenvalue of the Gauss-Newton matrix.

    Args:
        kernel: Θ [N, N] or [N, N, C, C] of the training examples.
        loss: convex in the outputs, a mean over the examples.
        outputs: f [N, C], where H is taken; squared error has the same everywhere.
        targets: of the loss.

    Returns:
        0 of a loss without curvature, as the linear one's.
    """
    matrix, outputs, targets = as_matrix(kernel).cpu(), outputs.double().cpu(), targets.cpu()
    values, vectors = torch.linalg.eigh(loss_hessian(loss, outputs, targets))
    if not (values > 0).any():
        return 0.0  # Lanczos's iteration has nothing to begin with
    roots = (vectors * values.clamp(min=0).sqrt()[:, None]) @ vectors.mT  # H^{1/2} [N, C, C]

    def product(v: Tensor) -> Tensor:  # [NC, columns]
        blocks = v.reshape(*outputs.shape, -1)
        inner = torch.einsum("ncd,ndk->knc", roots, blocks)
        outer = torch.einsum("ncd,knd->nck", roots, apply(matrix, inner))
        return outer.reshape(v.shape)

    return largest_eigenvalue(_operator(product, outputs.numel()))


def _operator(product: Callable[[Tensor], Tensor], size: int) -> LinearOperator:
    """A map of float64 columns [size, k] as scipy knows it."""

    def on_arrays(v: Floats) -> Floats:
        moved: Floats = product(torch.from_numpy(v.reshape(size, -1))).numpy()
        return moved

    return LinearOperator((size, size), on_arrays, matmat=on_arrays, dtype=np.float64)
