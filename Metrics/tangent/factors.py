"""What J of a weight is made of, and how it is formed a part at a time.

Letters in shapes are those of :mod:`Metrics.tangent.contraction`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from Metrics.tangent.pieces import Product
from Metrics.tangent.schedule import blocks

_CACHED = 1 << 21
"""Bytes of features that are unfolded at a time: they stay in the processor's cache."""


@dataclass
class Factors:
    """Of a term's uses, what J is made of: pieces, inputs [n, ...], derivatives [n, C, ...]."""

    pieces: list[Product]
    inputs: list[Tensor]
    derivatives: list[Tensor]


class Room:
    """Memory that each part of J takes in its turn.

    A system hands out fresh memory page by page, which takes longer than to write it: five times
    as long as to copy it, where it was measured.
    """

    def __init__(self) -> None:
        self._numbers: Tensor | None = None

    def take(self, like: Tensor, *shape: int) -> Tensor:
        """Uninitialised, of this shape; what was taken before is overwritten.

        Args:
            like: has the device and number format.
            shape: of the result.
        """
        size = 1
        for length in shape:
            size *= length
        if self._numbers is None or self._numbers.numel() < size:
            self._numbers = like.new_empty(size)
        return self._numbers[:size].view(shape)


def formed(factors: Factors, groups: slice, outs: slice, room: Room) -> Tensor:
    """J [n, C, p] of some groups and outputs, a few examples at a time.

    Args:
        factors: of a term.
        groups: of its convolution.
        outs: of the outputs at a position.
        room: where J is put.
    """
    n = len(factors.inputs[0])
    rows = None
    for piece, inputs, derivatives in zip(
        factors.pieces, factors.inputs, factors.derivatives, strict=True
    ):
        g, x, k, _ = piece.sizes
        step = max(1, _CACHED // (g * x * k * inputs.element_size()))
        for low in range(0, n, step):
            few = slice(low, low + step)
            features = piece.unfold(inputs[few])[:, groups]
            found = piece.fold(derivatives[few])[:, :, groups, :, outs]
            if rows is None:
                c, g, o = found.shape[1], found.shape[2], found.shape[4]
                rows = room.take(found, n, c, g * o * k)
            if piece is factors.pieces[0]:
                piece.rows(features, found, rows[few])
            else:
                rows[few] += piece.rows(features, found)
    assert rows is not None
    return rows


def parts(factors: Sequence[Factors], budget: int) -> Iterator[tuple[slice, slice]]:
    """Groups and outputs of J that fit into ``budget`` bytes at a time."""
    g, _, k, o = factors[0].pieces[0].sizes
    derivatives = [each.derivatives[0] for each in factors]
    each = sum(d.shape[0] * d.shape[1] * d.element_size() for d in derivatives) * k
    at_once = max(1, budget // each)
    if g > 1:
        yield from ((part, slice(None)) for part in blocks(g, max(1, at_once // o)))
    else:
        even = -(-o // -(-o // at_once))
        yield from ((slice(None), part) for part in blocks(o, even))
