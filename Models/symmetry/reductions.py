"""Reductions of parameters: sums and inner products that charges are made of.

Weights too large for copies in float64 are reduced a block at a time.

Shape letters: R rows of a projection, n rows of a Gram matrix.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Literal

import torch
from torch import Tensor

_CACHED = 1 << 16
"""Numbers squared at a time, half a megabyte."""

_BLOCK = 1 << 22
"""Numbers in a block, 32 megabytes."""


@dataclass(frozen=True)
class Reduction:
    """A linear map from one parameter-shaped tensor, or a bilinear one from two, to a vector.

    Attributes:
        parameter: its name.
        kind: "row" sums over all axes but the first; "column" over all but the second, per
            group; "element" flattens; "projection" combines the entries of one axis; "gram"
            takes inner products between n slices of one axis, of which there may be copies.
        groups: groups of a grouped convolution, for "column".
        axis: the combined axis, for "projection" and "gram", where −1 stands for the flattened
            parameter.
        basis: the combinations [R][entries of the axis], for "projection".
        places: the slices [frames][copies][n], as places on the axis, for "gram"; each frame
            has a Gram matrix of its own.
    """

    parameter: str
    kind: Literal["row", "column", "element", "projection", "gram"]
    groups: int = 1
    axis: int = 0
    basis: tuple[tuple[float, ...], ...] = ()
    places: tuple[tuple[tuple[int, ...], ...], ...] = ()

    @property
    def is_gram(self) -> bool:
        """Whether it is a bilinear map that is no sum over x ∘ y."""
        return self.kind == "gram"

    def __call__(self, x: Tensor, absolute: bool = False) -> Tensor:
        """Reduce ``x``, of the parameter's shape; ``absolute`` takes combinations by size."""
        if self.kind == "element":
            return x.reshape(-1)
        if self.kind == "row":
            return x.flatten(1).sum(1)
        if self.kind == "column":
            per_group = x.reshape(self.groups, x.shape[0] // self.groups, -1).sum(1)
            return per_group.view(self.groups * x.shape[1], -1).sum(1)
        basis = _basis(self.basis, x.dtype, x.device)
        flat = x.movedim(self.axis, 0).flatten(1)
        return ((basis.abs() if absolute else basis) @ flat).reshape(-1)

    def form(self, x: Tensor, y: Tensor) -> Tensor:
        """The bilinear form whose value at x = y is quadratic in x, symmetric in both.

        Args:
            x, y: of the parameter's shape.

        Returns:
            for "gram" the upper triangle, row by row, of (X Yᵀ + Y Xᵀ)/2, where X and Y [n, …]
            are the slices of x and y, side by side for copies, one frame after the other; else
            the reduction of x ∘ y.
        """
        if not self.is_gram:
            return self(x * y)
        upper, lower = self._triangles(x, y)
        return (upper + lower) / 2

    def turning(self, x: Tensor, y: Tensor) -> Tensor:
        """What :meth:`form` leaves out: for "gram" the upper triangle of (X Yᵀ − Y Xᵀ)/2, else 0.

        Args:
            x, y: of the parameter's shape.
        """
        if not self.is_gram:
            return torch.zeros_like(self(x))
        upper, lower = self._triangles(x, y)
        return (upper - lower) / 2

    def _triangles(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The upper triangles of X Yᵀ and of its transpose, row by row."""
        left = self._slices(x)
        gram = left @ (left if y is x else self._slices(y)).mT
        rows, columns = _triangle(gram.shape[-1], x.device)
        return gram[:, rows, columns].flatten(), gram[:, columns, rows].flatten()

    def outputs(self, shape: Sequence[int]) -> int:
        """How many numbers a tensor of the parameter's shape is reduced to."""
        if self.kind == "element":
            return prod(shape)
        if self.kind == "row":
            return shape[0]
        if self.kind == "column":
            return self.groups * shape[1]
        if self.is_gram:
            n = len(self.places[0][0])
            return len(self.places) * n * (n + 1) // 2
        return len(self.basis) * (prod(shape) // shape[self.axis])

    def transpose(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """The adjoint of a linear map, ⟨Rx, y⟩ = ⟨x, Rᵀy⟩: [outputs] -> the parameter's shape.

        Args:
            y: a number for each output.
            shape: of the parameter.
        """
        if self.kind == "element":
            return y.reshape(tuple(shape))
        if self.kind == "row":
            return y.view(-1, *[1] * (len(shape) - 1)).expand(tuple(shape))
        if self.kind == "column":
            per_group = y.view(self.groups, 1, shape[1], 1)
            height, width = shape[0] // self.groups, prod(shape[2:])
            return per_group.expand(-1, height, -1, width).reshape(tuple(shape))
        basis = _basis(self.basis, y.dtype, y.device)
        flat = basis.T @ y.view(len(self.basis), -1)
        others = [size for axis, size in enumerate(shape) if axis != self.axis]
        return flat.view(shape[self.axis], *others).movedim(0, self.axis)

    def mixed(self, x: Tensor, frame: int, matrix: Tensor) -> Tensor:
        """For "gram": a copy of x in which the slices X of a frame are ``matrix @ X``.

        Args:
            x: of the parameter's shape.
            frame: its number.
            matrix: [n, n], of the same number format.
        """
        flat = x.reshape(-1, 1) if self.axis < 0 else x.movedim(self.axis, 0)
        moved = flat.clone()
        for copy in self.places[frame]:
            rows = list(copy)
            moved[rows] = torch.tensordot(matrix, flat[rows], 1)
        return moved.reshape(x.shape) if self.axis < 0 else moved.movedim(0, self.axis)

    def _slices(self, x: Tensor) -> Tensor:
        """[frames, n, copies × entries of a slice]."""
        flat = x.reshape(-1, 1) if self.axis < 0 else x.movedim(self.axis, 0).flatten(1)
        return flat[_places(self.places, x.device)].transpose(1, 2).flatten(2)


@lru_cache
def _triangle(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(n, n, device=device)
    return rows, columns


@lru_cache
def _places(places: tuple[tuple[tuple[int, ...], ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(places, device=device)


@lru_cache
def _basis(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=dtype, device=device)


def in_blocks(reduction: Reduction, x: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """``reduce(x)``, put together from blocks of a large x.

    Args:
        reduction: that ``reduce`` applies to what it makes of each entry.
        x: of the parameter's shape.
        reduce: a reduction, or for "gram" the form, of a block.
    """
    if reduction.kind in {"row", "element"}:
        axis, leading = 0, 1
    elif reduction.kind == "column":
        axis, leading = 1, reduction.groups
    else:  # any axis but the combined one
        axis, leading = int(reduction.axis == 0), len(reduction.basis)
    if x.numel() <= _BLOCK or axis >= x.dim() or reduction.axis < 0:
        return reduce(x)
    parts = [
        reduce(part) for part in torch.split(x, max(1, _BLOCK * x.shape[axis] // x.numel()), axis)
    ]
    if reduction.is_gram:
        return torch.stack(parts).sum(0)
    return torch.cat([part.view(leading, -1) for part in parts], 1).reshape(-1)


def squared(x: Tensor, reductions: Sequence[Reduction]) -> list[Tensor]:
    """Reductions of x² in float64, for one parameter."""
    if x.numel() <= _BLOCK or _by_rows(x, reductions):
        (squares,) = product_sums([x], reductions, lambda x, _: iter([x.mul_(x)]))
        return squares
    return [in_blocks(r, x, partial(_squares, r)) for r in reductions]


def _squares(reduction: Reduction, block: Tensor) -> Tensor:
    return reduction(block.double().square())


def _by_rows(x: Tensor, reductions: Sequence[Reduction]) -> bool:
    """Whether a weight can be reduced a few rows at a time."""
    on_cpu = x.device.type == "cpu" and x.dim() > 1
    return on_cpu and all(r.kind in {"row", "column"} and r.groups == 1 for r in reductions)


def product_sums(
    tensors: Sequence[Tensor],
    reductions: Sequence[Reduction],
    products: Callable[..., Iterator[Tensor]],
) -> list[list[Tensor]]:
    """Reductions of products of tensors in float64, for one parameter.

    Large weights are taken a few rows at a time, so that float64 copies stay in the processor's
    cache: three times faster than as a whole.

    Args:
        tensors: of the parameter's shape.
        reductions: linear ones.
        products: called with float64 copies of parts of the tensors, which it may overwrite, and
            one more tensor of the same shape as scratch; yields the products, each to be
            reduced before the next is asked for.

    Returns:
        for every product its reductions.
    """
    x = tensors[0]
    if x.numel() <= _CACHED or not _by_rows(x, reductions):
        copies = [tensor.to(torch.float64, copy=True) for tensor in tensors]
        made = products(*copies, torch.empty_like(copies[0]))
        return [[_kept(reduction, product) for reduction in reductions] for product in made]
    flat = [tensor.flatten(1) for tensor in tensors]
    length, width = flat[0].shape
    height = max(1, _CACHED // width)
    buffers = [torch.empty_like(flat[0][:height], dtype=torch.float64) for _ in (*flat, flat[0])]
    rows: list[list[Tensor]] = []
    columns: list[Tensor] = []
    for start in range(0, length, height):
        parts = [tensor[start : start + height] for tensor in flat]
        *copies, scratch = (buffer[: len(parts[0])] for buffer in buffers)
        for copied, part in zip(copies, parts, strict=True):
            copied.copy_(part)
        for i, product in enumerate(products(*copies, scratch)):
            if start == 0:
                rows.append([])
                columns.append(product.sum(0))
            else:
                columns[i] += product.sum(0)
            rows[i].append(product.sum(1))
    return [
        [
            torch.cat(row) if r.kind == "row" else column.view(x.shape[1], -1).sum(1)
            for r in reductions
        ]
        for row, column in zip(rows, columns, strict=True)
    ]


def _kept(reduction: Reduction, product: Tensor) -> Tensor:
    """A reduction that does not share the product's memory."""
    reduced = reduction(product)
    return reduced.clone() if reduction.kind == "element" else reduced
