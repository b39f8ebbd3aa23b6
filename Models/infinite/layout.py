"""Which pairs of positions a block of a kernel holds, and in which order.

A covariance between two images (or sequences) has two positions, p of the first and p' of the
second. In each spatial dimension a block holds either all pairs (p, p'), or those of one offset
p' = p + δ, which convolutions and nonlinearities map to themselves. The axes of a block are

    [p of offset dimensions …, p of others …, p' of others …, examples of side 1, of side 2]

and those of a map of one side [p …, examples]. Examples come last, so that sums over positions
add long contiguous runs.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import torch
from torch import Tensor

NEAR = {torch.float32: 4e-3, torch.float64: 1e-6}
"""1 − cosine below which it is found from differences: its rounding moves the angle by more
than about 1e-6, or 1e-13, above."""

_MANY = 64
"""Features from which products are rounded so much that ten times the pairs count as near."""

_FEW = 0.05
"""Share of such pairs up to which they are gathered."""

_DIRECTLY = {torch.float32: 4, torch.float64: 2}
"""Features up to which differences are no slower than products: of three, in float32, there are
always pairs that are nearly parallel."""

_GATHERED = 1 << 22
"""Numbers gathered at once."""


@dataclass(frozen=True)
class Layout:
    """Of a block.

    Attributes:
        sizes: positions in each spatial dimension; none in fully connected layers.
        offsets: δ of the first dimensions; the others hold all pairs.
    """

    sizes: tuple[int, ...] = ()
    offsets: tuple[int, ...] = ()

    @cached_property
    def full(self) -> tuple[int, ...]:
        """Sizes of the dimensions that hold all pairs."""
        return self.sizes[len(self.offsets) :]

    @classmethod
    @lru_cache(maxsize=4096)
    def of(cls, sizes: tuple[int, ...], offsets: tuple[int, ...] = ()) -> "Layout":
        """The same object for the same layout, which has its derived numbers already."""
        return cls(sizes, offsets)

    @cached_property
    def _spans(self) -> tuple[tuple[int, int], ...]:
        pairs = zip(self.sizes, self.offsets, strict=False)
        return tuple((max(0, -offset), min(size, size - offset)) for size, offset in pairs)

    def span(self, dimension: int) -> tuple[int, int]:
        """First p, and the one after the last, of a dimension with an offset."""
        return self._spans[dimension]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Positions p in each dimension with an offset."""
        return tuple(max(0, stop - start) for start, stop in self._spans)

    @property
    def count(self) -> int:
        """Numbers per pair of examples."""
        return prod(self.lengths) * prod(self.full) ** 2

    def axes(self, dimension: int) -> tuple[int, ...]:
        """Of p, and of p' where they differ, in a block."""
        known, others = len(self.offsets), len(self.full)
        return (dimension,) if dimension < known else (dimension, dimension + others)

    def left(self, x: Tensor) -> Tensor:
        """A map of side 1, [..., n], as a block that broadcasts."""
        return self._cut(x, 0).reshape(*self._shapes[0], x.shape[-1], 1)

    def right(self, x: Tensor) -> Tensor:
        """A map of side 2, [..., n], as a block that broadcasts."""
        return self._cut(x, 1).reshape(*self._shapes[1], 1, x.shape[-1])

    @cached_property
    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of maps as blocks, without examples."""
        ones = (1,) * len(self.full)
        return (*self.lengths, *self.full, *ones), (*self.lengths, *ones, *self.full)

    def _cut(self, x: Tensor, side: int, first: int = 0) -> Tensor:
        for k, offset in enumerate(self.offsets):
            length = self.lengths[k]
            start = self._spans[k][0] + offset * side if length else 0
            x = x.narrow(first + k, start, length)
        return x

    def products(self, one: Tensor, other: Tensor) -> Tensor:
        """Σ_f one_f other_f of all pairs that the block holds.

        Args:
            one: features of side 1, [F, *sizes, n].
            other: of side 2, [F, *sizes, m].
        """
        x, y = self._matrices(one, 0), self._matrices(other, 1)
        shape = (*self.lengths, *self.full, one.shape[-1], *self.full, other.shape[-1])
        block = torch.matmul(x.transpose(-1, -2), y).reshape(shape)
        if not self.full:
            return block
        known, others = len(self.offsets), len(self.full)
        n = known + others
        order = [*range(n), *range(n + 1, n + 1 + others), n, n + 1 + others]
        return block.permute(order).contiguous()

    def _matrices(self, x: Tensor, side: int) -> Tensor:
        """[*lengths, F, positions · n]."""
        x = self._cut(x, side, 1)
        width = prod(self.full) * x.shape[-1]
        return x.movedim(0, len(self.offsets)).reshape(*self.lengths, x.shape[0], width)

    def deficit(
        self,
        one: Tensor,
        other: Tensor,
        extra: Tensor | None = None,
        cosines: Tensor | None = None,
        same: Tensor | None = None,
    ) -> Tensor:
        """1 − cosine of all pairs, plus ``extra``, without loss of digits where that is small.

        ½ Σ (x − y)² for unit vectors: by the product of both where it is large, by differences
        elsewhere.

        Args:
            one: features of side 1 of norm one (or zero), [F, *sizes, n].
            other: of side 2.
            extra: a block added to it; may be changed.
            cosines: Σ x y where it is known.
            same: which pairs are twice one example, [n, m], where it is 0 if p = p'.
        """
        features = one.shape[0]
        if features <= _DIRECTLY[one.dtype]:
            exact = self._differences(one, other)
            return exact if extra is None else exact.add_(extra)
        result = 1 - (self.products(one, other) if cosines is None else cosines)
        if extra is not None:
            result.add_(extra)
        threshold = NEAR[result.dtype] * (10 if features >= _MANY else 1)
        if result.numel() == 0 or float(result.min()) >= threshold:
            return result
        near = result < threshold
        if same is not None and (diagonal := self.diagonal(near)) is not None:
            self._diagonal(result).masked_fill_(same, 0.0)
            diagonal.masked_fill_(same, False)
        count = int(near.sum())
        if count > _FEW * near.numel():
            exact = self._differences(one, other)
            exact = exact if extra is None else exact.add_(extra)
            return torch.where(near, exact, result)
        if count:
            self._mend(result, near, one, other, extra)
        return result

    def _differences(self, one: Tensor, other: Tensor) -> Tensor:
        total: Tensor | None = None
        for x, y in zip(one, other, strict=True):
            difference = self.left(x) - self.right(y)
            if total is None:
                total = difference.square_()
            else:
                total.addcmul_(difference, difference)
        assert total is not None
        return total.mul_(0.5)

    def _mend(
        self, block: Tensor, near: Tensor, one: Tensor, other: Tensor, extra: Tensor | None
    ) -> None:
        """Replace the entries where ``near`` by those found from differences."""
        places = near.nonzero()
        features = len(one)
        for part in torch.split(places, max(1, _GATHERED // features)):
            x, y = self._at(one, part, 0), self._at(other, part, 1)
            exact = (x - y).square_().sum(0).mul_(0.5)
            index = tuple(part.unbind(1))
            block[index] = exact if extra is None else exact + extra[index]

    def _at(self, x: Tensor, places: Tensor, side: int) -> Tensor:
        """Features at the places of a block, [F, places]."""
        x = self._cut(x, side, 1)
        known, others = len(self.offsets), len(self.full)
        shift = known + side * others
        axes = [*range(known), *range(shift, shift + others), known + 2 * others + side]
        index = places.new_zeros(len(places))
        for size, axis in zip(x.shape[1:], axes, strict=True):
            index = index * size + places[:, axis]
        return x.reshape(len(x), -1).index_select(1, index)

    def diagonal(self, block: Tensor) -> Tensor | None:
        """A view of the entries with p = p', [*sizes, n, m]; ``None`` if there are none."""
        return None if any(self.offsets) else self._diagonal(block)

    def _diagonal(self, block: Tensor) -> Tensor:
        known, others = len(self.offsets), len(self.full)
        for k in range(others):  # each diagonal becomes the last axis
            block = block.diagonal(dim1=known, dim2=known + others - k)
        return block.movedim((known, known + 1), (-2, -1)) if others else block
