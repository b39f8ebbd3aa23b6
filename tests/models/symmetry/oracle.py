"""What the laws must be, from data alone: null spaces over many minibatches.

Scale and rescale laws combine the block cross-moments c_i = ⟨θ_i, g_i⟩, a block being a row of a
weight, a column of it (per group of a grouped convolution), or an element of a vector. Over
minibatches at random weights the combinations that always vanish are the laws, the blocks
without gradient, and one identity per weight: its rows sum to what its columns sum to.

Translation laws combine gradients: the entries of one column of a weight, or the elements of all
vectors and the column sums of all embeddings.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from Models.symmetry import Charges, Laws, Reduction
from tests.models.symmetry.certificate import gradients, quiet

Floats = NDArray[np.float64]

_ZERO = 1e-9
"""Singular values below this, relative to the largest, are zero; the next are far above."""

_GAP = 1e-5

_LARGEST = 1e3
"""No gradient of these models is this large where it exists."""

_DEAD = 1e-10
"""A block whose gradient is this small, relative to the model's largest, has none."""


def minibatches(
    model: nn.Module, inputs: Tensor, loss: str, count: int
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Weights and gradients at random weights near the present ones, each on its own data.

    Batches on which a channel happens to be constant are left out: without ε, its normalisation
    has no gradient there.
    """
    generator = torch.Generator().manual_seed(1)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for seed in itertools.count():
        with torch.no_grad():
            for name, p in model.named_parameters():
                noise = torch.rand(p.shape, generator=generator, dtype=p.dtype) - 0.5
                p.copy_(start[name] + 0.5 * noise if p.requires_grad else p)
        if inputs.is_floating_point():
            x = torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
        else:
            x = torch.randint(int(inputs.max()) + 1, inputs.shape, generator=generator)
        with quiet():
            gradient = gradients(model, x, loss, seed)
        if max(float(g.abs().max()) for g in gradient.values()) > _LARGEST:
            continue
        yield {name: p.detach().clone() for name, p in model.named_parameters()}, gradient
        count -= 1
        if not count:
            return


def null_space(samples: Floats) -> Floats:
    """An orthonormal basis [directions, columns] of what every row [samples, columns] maps to 0."""
    rows = samples / np.maximum(np.linalg.norm(samples, axis=1, keepdims=True), 1e-300)
    _, values, basis = np.linalg.svd(rows, full_matrices=True)
    values = np.concatenate([values, np.zeros(len(basis) - len(values))])
    zero = values <= _ZERO * values[0]
    assert not ((values < _GAP * values[0]) & ~zero).any(), "no gap in the singular values"
    null: Floats = basis[zero]
    return null


def same_span(found: Floats, expected: Floats) -> tuple[int, int]:
    """Dimensions of what is found but not expected, and of what is expected but not found."""
    both = np.linalg.matrix_rank(np.vstack([found, expected]), tol=1e-7)
    ranks = [np.linalg.matrix_rank(x, tol=1e-7) if x.size else 0 for x in (found, expected)]
    return int(both - ranks[1]), int(both - ranks[0])


# ---------------------------------------------------------------------- scale and rescale


def blocks(model: nn.Module, laws: Laws) -> list[Reduction]:
    """Every block of every parameter; vectors, and what laws take apart, by element."""
    groups = {
        f"{name}.weight": getattr(module, "groups", 1) for name, module in model.named_modules()
    }
    by_element = {r.parameter for r in laws.quadratic.reductions if r.kind == "element"}
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2 or name in by_element:
            found.append(Reduction(name, "element"))
        else:
            found.append(Reduction(name, "row"))
            found.append(Reduction(name, "column", groups.get(name, 1)))
    return found


def scale_difference(
    model: nn.Module, inputs: Tensor, laws: Laws, loss: str = "ce"
) -> tuple[int, int]:
    """Dimensions of false and of missing scale and rescale laws."""
    reductions = blocks(model, laws)
    parameters = dict(model.named_parameters())
    sizes = [_length(r, parameters[r.parameter]) for r in reductions]
    start = dict(zip(reductions, np.cumsum([0, *sizes[:-1]]), strict=True))
    columns = sum(sizes)
    moments, magnitudes = [], []
    largest = 0.0
    for theta, gradient in minibatches(model, inputs, loss, columns + columns // 4 + 10):
        product = {name: theta[name] * gradient[name] for name in theta}
        moments.append(np.concatenate([r(product[r.parameter]).numpy() for r in reductions]))
        magnitudes.append(
            np.concatenate([r(product[r.parameter].abs()).numpy() for r in reductions])
        )
        largest = max(largest, *(float(p.abs().max()) for p in product.values()))
    magnitude = np.linalg.norm(magnitudes, axis=0) / np.sqrt(len(magnitudes))
    dead = magnitude <= _DEAD * largest
    alive = np.flatnonzero(~dead)
    trivial = np.zeros((0, columns))
    for row, column in itertools.pairwise(reductions):
        if (row.kind, column.kind) == ("row", "column"):
            identities = np.zeros((column.groups, columns))
            for reduction, sign in ((row, 1), (column, -1)):
                at, size = start[reduction], sizes[reductions.index(reduction)]
                per_group = np.repeat(np.eye(column.groups), size // column.groups, axis=1)
                identities[:, at : at + size] = sign * per_group
            trivial = np.vstack([trivial, identities])
    found = np.zeros((len(laws.quadratic), columns))
    offset = 0
    matrix = laws.quadratic.matrix.toarray()
    for reduction in laws.quadratic.reductions:
        size = _length(reduction, parameters[reduction.parameter])
        at = start[reduction]
        found[:, at : at + size] = matrix[:, offset : offset + size]
        offset += size
    known = np.vstack([trivial, found])[:, alive] * magnitude[alive]
    known /= np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-300)
    return same_span(known, null_space(np.stack(moments)[:, alive] / magnitude[alive]))


def _length(reduction: Reduction, parameter: Tensor) -> int:
    return len(reduction(parameter.detach()))


# ---------------------------------------------------------------------- translation


def translation_difference(
    model: nn.Module, inputs: Tensor, laws: Laws, loss: str = "ce"
) -> dict[str, tuple[int, int]]:
    """Dimensions of false and of missing translation laws, where there are any.

    Returns:
        for each weight, and for all vectors together ("vectors").
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    embeddings = _embeddings(model)
    vectors = {n: p for n, p in parameters.items() if p.dim() < 2 or n in _bare(model)}
    parts: dict[str, list[Floats]] = {}
    count = 20 + max(
        sum(p.numel() for p in vectors.values()) + sum(parameters[n].shape[1] for n in embeddings),
        *(p.shape[_moving_axis(n, embeddings)] for n, p in parameters.items() if p.dim() > 1),
    )
    for _, gradient in minibatches(model, inputs, loss, int(1.25 * count)):
        reduced = [gradient[n].reshape(-1) for n in vectors]
        reduced += [gradient[n].sum(0) for n in embeddings]
        parts.setdefault("vectors", []).append(torch.cat(reduced).numpy()[None])
        for name in parameters.keys() - vectors.keys():
            moved = gradient[name].movedim(_moving_axis(name, embeddings), 0)
            parts.setdefault(name, []).append(moved.flatten(1).numpy().T)
    found = _translations(laws.linear, parameters, vectors, embeddings)
    largest = max(float(np.abs(s).max()) for samples in parts.values() for s in samples)
    differences = {}
    for name, samples in parts.items():
        rows = np.concatenate(samples)
        rows = np.where(np.abs(rows) > _DEAD * largest, rows, 0)
        rows = rows[np.abs(rows).max(1) > 1e-6 * largest]
        expected = null_space(rows) if len(rows) else np.eye(rows.shape[1])
        difference = same_span(found.get(name, np.zeros((0, rows.shape[1]))), expected)
        if difference != (0, 0):
            differences[name] = difference
    return differences


def _embeddings(model: nn.Module) -> list[str]:
    modules = model.named_modules()
    names = [f"{name}.weight" for name, module in modules if isinstance(module, nn.Embedding)]
    return [name for name, _ in model.named_parameters() if name in names]


def _bare(model: nn.Module) -> set[str]:
    """Parameters that models hold themselves to add them to activations."""
    return {name for name, _ in model.named_parameters() if "position" in name}


def _moving_axis(name: str, embeddings: list[str]) -> int:
    """The axis of a weight that its columns run along; bare x @ W has its own."""
    return 1 if name in embeddings or name.endswith("matrix") else 0


def _translations(
    charges: Charges,
    parameters: dict[str, nn.Parameter],
    vectors: dict[str, nn.Parameter],
    embeddings: list[str],
) -> dict[str, Floats]:
    """The laws found, in the coordinates of each null space."""
    sizes = [p.numel() for p in vectors.values()] + [parameters[n].shape[1] for n in embeddings]
    starts = dict(zip([*vectors, *embeddings], np.cumsum([0, *sizes]), strict=False))
    matrix, offset = charges.matrix.toarray(), 0
    joint = np.zeros((len(charges), sum(sizes)))
    found: dict[str, Floats] = {}
    for reduction in charges.reductions:
        name, size = reduction.parameter, _length(reduction, parameters[reduction.parameter])
        if reduction.kind == "projection":
            found[name] = np.array(reduction.basis)
        else:
            at = starts[name]
            joint[:, at : at + size] = matrix[:, offset : offset + size]
        offset += size
    found["vectors"] = joint[np.abs(joint).max(1, initial=0) > 0]
    return found
