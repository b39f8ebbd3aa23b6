"""Layers that move or mix positions: padding, pooling, flattening."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from Models.infinite.duals.piecewise import Angle
from Models.infinite.layers.layer import Layer, State, View
from Models.infinite.layout import Layout


@dataclass(frozen=True)
class Pad(Layer):
    """Positions copied from others or set to zero: circular, reflecting, constant padding.

    Attributes:
        sources: in each spatial dimension, where each output comes from; −1 is zero.
    """

    sources: tuple[tuple[int, ...], ...]

    @property
    def shifts(self) -> bool:
        """Whether it keeps every offset, as zeros around the input do."""
        return all(_is_frame(source) for source in self.sources)

    def sizes(self, inputs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return tuple(map(len, self.sources))

    def variance(self, maps: Sequence[Tensor]) -> Tensor:
        (block,) = maps
        for dimension, source in enumerate(self.sources):
            block = _taken(block, (dimension,), source)
        return block

    def apply(self, states: Sequence[State], view: View) -> State:
        (state,), (before,) = states, view.layouts
        t, angle = state.t, state.angle
        q = None if state.q is None else self._moved(state.q, before, view.layout)
        if angle is not None:
            angle = self._turn(angle, before, view.layout)
        return State(
            q,
            angle,
            None if t is None else self._moved(t, before, view.layout),
        )

    def _turn(self, angle: Angle, before: Layout, after: Layout) -> Angle:
        def opposite() -> Tensor:
            p = 2 - angle.u if angle.p is None else angle.p
            return self._moved(p, before, after)

        return Angle(self._moved(angle.u, before, after), opposite)

    def _moved(self, block: Tensor, before: Layout, after: Layout) -> Tensor:
        for dimension, source in enumerate(self.sources):
            axes = before.axes(dimension)
            if dimension < len(before.offsets) and before.offsets[dimension]:
                # Zeros around keep offsets: the span moves with the positions.
                (first, last), (start, stop) = before.span(dimension), after.span(dimension)
                kept = [k if first <= k < last else -1 for k in source[start:stop]]
                source = tuple(k - first if k >= 0 else -1 for k in kept)
            block = _taken(block, axes, source)
        return block


def _is_frame(source: Sequence[int]) -> bool:
    inner = [k for k in source if k >= 0]
    first = source.index(inner[0]) if inner else 0
    return inner == list(range(len(inner))) and list(source[first : first + len(inner)]) == inner


def _taken(block: Tensor, axes: Sequence[int], source: Sequence[int]) -> Tensor:
    if list(source) == list(range(block.shape[axes[0]])):
        return block
    index = torch.tensor(source, device=block.device)
    for axis in axes:
        block = block.index_select(axis, index.clamp(min=0))
        if min(source) < 0:
            shape = [-1 if k == axis else 1 for k in range(block.dim())]
            block = block.masked_fill((index < 0).reshape(shape), 0.0)
    return block


@dataclass(frozen=True)
class Pool(Layer):
    """Weighted sums of positions, such as means over windows: q ← M q Mᵀ, t ← M t Mᵀ.

    Attributes:
        weights: M of each spatial dimension, row by row, [outputs][inputs].
    """

    weights: tuple[tuple[tuple[float, ...], ...], ...]
    positions = "all"

    def sizes(self, inputs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return tuple(map(len, self.weights))

    def variance(self, maps: Sequence[Tensor]) -> None:
        return None

    def apply(self, states: Sequence[State], view: View) -> State:
        (state,), (layout,) = states, view.layouts
        q = state.covariance(view.sides[0], layout)
        return State(
            self._pooled(q, layout),
            None,
            None if state.t is None else self._pooled(state.t, layout),
        )

    def _matrix(self, dimension: int, like: Tensor) -> Tensor:
        return torch.tensor(self.weights[dimension], dtype=like.dtype, device=like.device)

    def reach(self, offset: int) -> int:
        """The largest offset in the first dimension that an offset of the output is made of.

        Args:
            offset: of the output, or less.
        """
        windows = [[p for p, weight in enumerate(row) if weight] for row in self.weights[0]]
        pairs = ((x, y) for k, x in enumerate(windows) for y in windows[k : k + offset + 1])
        return max((max(x + y) - min(x + y) for x, y in pairs if x and y), default=0)

    @cached_property
    def _tiles(self) -> tuple[tuple[int, float] | None, ...]:
        """Of each dimension whose windows tile it, their size and weight."""
        return tuple(map(_tile, self.weights))

    def _pooled(self, block: Tensor, layout: Layout) -> Tensor:
        """Dimensions that hold all pairs; those with an offset stay."""
        for dimension in range(len(layout.offsets), len(layout.sizes)):
            tile = self._tiles[dimension]
            for axis in layout.axes(dimension):
                if tile is not None:
                    shape = (*block.shape[:axis], -1, tile[0], *block.shape[axis + 1 :])
                    block = block.reshape(shape).sum(axis + 1).mul_(tile[1])
                else:
                    matrix = self._matrix(dimension, block)
                    block = torch.tensordot(matrix, block, dims=([1], [axis])).movedim(0, axis)
        return block

    def gather(self, total: Tensor | None, block: Tensor, layout: Layout) -> Tensor:
        """Add what a block of one offset in the first dimension gives to the pooled kernel.

        Args:
            total: so far, in the layout of all pairs.
            block: q or t.
            layout: of the block.
        """
        matrix, (start, stop), (offset,) = (
            self._matrix(0, block),
            layout.span(0),
            layout.offsets,
        )
        outputs = len(matrix)
        left, right = matrix[:, start:stop], matrix[:, start + offset : stop + offset]
        weights = (left[:, None] * right[None]).reshape(outputs**2, -1)  # [P P', positions]
        if outputs > 1:  # most pairs of windows do not meet this offset
            used = weights.any(1).nonzero().squeeze(1)
        else:
            used = torch.zeros(1, dtype=torch.long, device=block.device)
        pooled = self._pooled(block, layout)
        others = len(layout.full)
        inner = pooled.shape[1:]
        part = (weights[used] @ pooled.reshape(len(pooled), -1)).reshape(-1, *inner)
        if total is None:
            total = block.new_zeros(outputs**2, *inner)
            total = total.reshape(outputs, outputs, *inner).movedim(1, 1 + others)
        # A view of the pairs of rows: [P, P', …]
        pairs = total.movedim(1 + others, 1)
        pairs[used // outputs, used % outputs] += part
        return total


def _tile(rows: tuple[tuple[float, ...], ...]) -> tuple[int, float] | None:
    """Size and weight of windows that tile a dimension."""
    size, rest = divmod(len(rows[0]), len(rows))
    weight = rows[0][0]
    windows = ((k * size, (k + 1) * size) for k in range(len(rows)))
    regular = not rest and all(
        all(x == (weight if start <= p < stop else 0) for p, x in enumerate(row))
        for row, (start, stop) in zip(rows, windows, strict=True)
    )
    return (size, weight) if regular else None


def reduce_positions(block: Tensor, layout: Layout) -> Tensor:
    """The mean over p = p': [n, m]."""
    diagonal = layout.diagonal(block)
    assert diagonal is not None
    count = len(layout.sizes)
    return diagonal.mean(tuple(range(count))) if count else diagonal


@dataclass(frozen=True)
class Flatten(Layer):
    """Positions become neurons: the next layer averages over p = p'."""

    positions = "diagonal"

    def sizes(self, inputs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return ()

    def variance(self, maps: Sequence[Tensor]) -> Tensor:
        return maps[0].flatten(0, -2).mean(0)

    def apply(self, states: Sequence[State], view: View) -> State:
        (state,), (layout,) = states, view.layouts
        t = None if state.t is None else reduce_positions(state.t, layout)
        if state.angle is not None and view.out is not None:
            return State(None, self._turn(state.angle, view), t)
        q = reduce_positions(state.covariance(view.sides[0], layout), layout)
        return State(q, None, t)

    def _turn(self, angle: Angle, view: View) -> Angle:
        """As in :mod:`Models.infinite.layers.affine`, with a feature per position."""
        assert view.out is not None
        features = []
        for old, new in zip(view.side.roots, view.out.roots, strict=True):
            read = old.flatten(0, -2)  # [positions, n]
            features.append(read / len(read) ** 0.5 / torch.where(new == 0, 1, new))
        layout, new = view.layouts[0], view.out.scale(view.layout)
        new = torch.where(new == 0, 1, new)

        def joined(block: Tensor) -> Tensor:
            extra = reduce_positions(view.side.scaled(block, layout), layout) / new
            return view.layout.deficit(features[0], features[1], extra)

        def opposite() -> Tensor:
            return joined(2 - angle.u if angle.p is None else angle.p)

        return Angle(joined(angle.u), opposite)

    def gather(self, total: Tensor | None, block: Tensor, layout: Layout) -> Tensor | None:
        """The mean, from the block of offset zero.

        Args:
            total: so far.
            block: q or t.
            layout: of the block.
        """
        return total if any(layout.offsets) else reduce_positions(block, layout)


def mean_matrix(
    inputs: int, size: int, stride: int, padding: int, outputs: int, count_padding: bool
) -> tuple[tuple[float, ...], ...]:
    """Of average pooling in one dimension, as torch counts windows.

    Args:
        inputs: positions.
        size: of a window.
        stride: of windows.
        padding: zeros on either side.
        outputs: windows.
        count_padding: whether padding counts in the mean.
    """
    rows = []
    for p in range(outputs):
        start = p * stride - padding
        stop = min(start + size, inputs + padding)
        inside = range(max(start, 0), min(stop, inputs))
        divisor = stop - start if count_padding else len(inside)
        rows.append(tuple(1 / divisor if k in inside else 0.0 for k in range(inputs)))
    return tuple(rows)


def adaptive_matrix(inputs: int, outputs: int) -> tuple[tuple[float, ...], ...]:
    """Of adaptive average pooling in one dimension: window p is [⌊pH/P⌋, ⌈(p+1)H/P⌉).

    Args:
        inputs: H.
        outputs: P.
    """
    rows = []
    for p in range(outputs):
        inside = range(p * inputs // outputs, -(-(p + 1) * inputs // outputs))
        rows.append(tuple(1 / len(inside) if k in inside else 0.0 for k in range(inputs)))
    return tuple(rows)
