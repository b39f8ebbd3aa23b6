"""The largest eigenvalues of a network's Hessian and Gauss-Newton matrix, without the matrices.

Shape letters: P parameters of the network, k eigenvalues.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from Utils.errors import UserError

Floats = NDArray[np.float64]

Loss = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of logits and targets."""

_RESTARTS = 60
"""Of the Lanczos iteration, with about 20 products each."""


class Spectrum(NamedTuple):
    """Eigenvalues [k], largest first, and the norms [k] of their residuals |Av − μv|.

    An eigenvalue of A lies within the residual's norm of every value. NaN where the iteration
    has found nothing.
    """

    values: Floats
    errors: Floats


def hessian(model: nn.Module, loss: Loss, batch: tuple[Tensor, Tensor]) -> LinearOperator:
    """H = ∇²L for L = ``loss(model(inputs), targets)``: Hv = ∇⟨∇L, v⟩.

    Both derivatives are taken backwards. ``jvp`` of ``jacrev``, the recipe of
    ``torch.func.hessian`` and of curvlinops 3.0, is silently wrong by per cents in torch 2.9
    where the gain of a fused batch or layer normalisation is differentiated together with
    what it multiplies, and fails at group normalisation.

    Args:
        model: deterministic, with no buffers that its forward pass changes.
        loss: the mean loss of a batch.
        batch: inputs and targets, whole: normalisation makes the logits of one example depend
            on the others, so that H is no sum over smaller batches.

    Returns:
        a float64 operator [P, P] on the parameters that are trained, whose products are
        computed in the model's number format.

    Raises:
        UserError: here or when it is used, for operations without a second derivative.
    """
    parameters = trained(model)
    with _differentiable():
        gradient = _grad(loss(model(batch[0]), batch[1]), parameters, create_graph=True)

    def product(v: list[Tensor]) -> list[Tensor]:
        return _grad(_dot(gradient, v), parameters)

    return _operator(product, parameters)


def gauss_newton(model: nn.Module, loss: Loss, batch: tuple[Tensor, Tensor]) -> LinearOperator:
    """G = Jᵀ (∇²_f L) J with J the derivative of the batch's logits f: the Hessian less its
    term in the second derivatives of f.

    Jv is the derivative of w ↦ ⟨Jᵀw, v⟩. Arguments, returned operator and errors are those of
    :func:`hessian`.
    """
    parameters = trained(model)
    with _differentiable():
        logits = model(batch[0])
        w = torch.zeros_like(logits, requires_grad=True)
        pulled = _grad(logits, parameters, w, create_graph=True)  # Jᵀw
        f = logits.detach().requires_grad_()
        (slope,) = _grad(loss(f, batch[1]), [f], create_graph=True)

    def product(v: list[Tensor]) -> list[Tensor]:
        (pushed,) = _grad(_dot(pulled, v), [w])  # Jv
        (bent,) = _grad(_dot([slope], [pushed]), [f])
        return _grad(logits, parameters, bent)

    return _operator(product, parameters)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that have gradients, in the network's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _operator(
    product: Callable[[list[Tensor]], list[Tensor]], parameters: list[nn.Parameter]
) -> LinearOperator:
    """A map of parameter-shaped tensors as a matrix on float64 vectors."""
    sizes = [parameter.numel() for parameter in parameters]

    def on_vectors(v: Floats) -> Floats:
        flat = torch.from_numpy(np.ascontiguousarray(v.reshape(-1)))
        parts = [
            part.view_as(parameter).to(parameter)
            for part, parameter in zip(torch.split(flat, sizes), parameters, strict=True)
        ]
        with _differentiable():
            moved = torch.cat([part.reshape(-1) for part in product(parts)])
        result: Floats = moved.detach().double().cpu().numpy()
        return result

    return LinearOperator((sum(sizes), sum(sizes)), matvec=on_vectors, dtype=np.float64)


def _grad(
    output: Tensor,
    inputs: Sequence[Tensor],
    weight: Tensor | None = None,
    create_graph: bool = False,
) -> list[Tensor]:
    """The derivatives of ⟨output, weight⟩, zero where there is none; the graph is kept."""
    if not output.requires_grad:  # as the gradient of a loss that is linear
        return [torch.zeros_like(x) for x in inputs]
    return list(
        torch.autograd.grad(
            output,
            inputs,
            weight,
            retain_graph=True,
            create_graph=create_graph,
            materialize_grads=True,
        )
    )


def _dot(left: list[Tensor], right: list[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(left, right, strict=True)]).sum()


def preconditioned(matrix: LinearOperator, inverse: Floats, decay: Floats) -> LinearOperator:
    """D^{1/2} (A + decay) D^{1/2}.

    Args:
        matrix: A [P, P].
        inverse: [P] the diagonal of D, not negative.
        decay: [P] added to A's diagonal.
    """
    root = np.sqrt(inverse)

    def product(v: Floats) -> Floats:
        inner = root * v.reshape(-1)
        result: Floats = root * (matrix @ inner + decay * inner)
        return result

    return LinearOperator(matrix.shape, matvec=product, dtype=np.float64)


def largest_eigenvalues(
    matrix: LinearOperator, count: int, precision: float, seed: int
) -> Spectrum:
    """The algebraically largest eigenvalues of a symmetric matrix, by restarted Lanczos.

    An eigenvalue that occurs several times may be found fewer times, as every Krylov method
    sees one direction of its space.

    Args:
        matrix: [P, P].
        count: k.
        precision: of the matrix's products, relative; eigenvalues are iterated until their
            residuals are below its square root, relative to them.
        seed: of the iteration's first vector.

    Raises:
        UserError: the matrix is not larger than ``count``.
    """
    size = matrix.shape[0]
    if count >= size:
        raise UserError(f"--eigenvalues {count}: the network has {size} parameters; ask for fewer")
    start = np.random.default_rng(seed).standard_normal(size)
    first = matrix @ start
    if not first.any() or not np.isfinite(first).all():  # ARPACK knows neither
        same = np.full(count, 0.0 if np.isfinite(first).all() else np.nan)
        return Spectrum(same, same)
    try:
        values, vectors = eigsh(
            matrix, count, which="LA", v0=start, tol=precision**0.5, maxiter=_RESTARTS
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    order = np.argsort(values)[::-1]
    values, vectors = values[order], vectors[:, order]
    residuals = [np.linalg.norm(matrix @ v - m * v) for m, v in zip(values, vectors.T, strict=True)]
    missing = np.full(count - len(values), np.nan)
    return Spectrum(np.append(values, missing), np.append(residuals, missing))


@contextmanager
def _differentiable() -> Iterator[None]:
    """Fused attention has no second derivative: use the plain one, and say what else lacks it."""
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except (RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"curvature of this model cannot be computed ({reason}); leave sharpness out of "
            "--metrics"
        ) from error
