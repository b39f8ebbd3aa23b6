"""What J of a weight is made of, and how it is formed a part at a time.

Letters in shapes are those of :mod:`Metrics.tangent.contraction`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from Metrics.tangent.pieces import Product
from Metrics.tangent.room import Room
from Metrics.tangent.schedule import blocks

_CACHED = 1 << 21
"""Bytes of features that are unfolded at a time: they stay in the processor's cache."""


@dataclass
class Factors:
    """Of a term's uses, what J is made of: pieces, inputs [n, ...], derivatives [n, C, g, X, O]."""

    pieces: list[Product]
    inputs: list[Tensor]
    derivatives: list[Tensor]


ALL = slice(None)


class Part(NamedTuple):
    """Of J: some logits, groups of a convolution, and outputs at a position."""

    logits: slice = ALL
    groups: slice = ALL
    outs: slice = ALL


def formed(factors: Factors, part: Part, room: Room) -> Tensor:
    """A part of J [n, C, p], a few examples at a time.

    Args:
        factors: of a term.
        part: of J.
        room: where it is put.
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
            features = piece.unfold(inputs[few])[:, part.groups]
            found = derivatives[few, part.logits, part.groups, :, part.outs]
            if rows is None:
                c, g, o = found.shape[1], found.shape[2], found.shape[4]
                rows = room.take(found, n, c, g * o * k)
            if piece is factors.pieces[0]:
                piece.rows(features, found, rows[few])
            else:
                rows[few] += piece.rows(features, found)
    assert rows is not None
    return rows


def parts(factors: Sequence[Factors], traced: bool, budget: int) -> Iterator[Part]:
    """Parts of J that fit into ``budget`` bytes, at a time.

    Args:
        factors: of the rows and, if they are others, of the columns.
        traced: whether logits do not meet each other: then parts are of whole logits, which
            copies nothing.
        budget: bytes; a single logit or output may take more.
    """
    g, _, k, o = factors[0].pieces[0].sizes
    derivatives = [each.derivatives[0] for each in factors]
    c = derivatives[0].shape[1]
    at_once = budget // (sum(len(d) * d.element_size() for d in derivatives) * k)
    if traced and at_once >= g * o:
        yield from (Part(logits=part) for part in blocks(c, _even(c, at_once // (g * o))))
    elif g > 1:
        yield from (Part(groups=part) for part in blocks(g, max(1, at_once // (c * o))))
    else:
        yield from (Part(outs=part) for part in blocks(o, _even(o, max(1, at_once // c))))


def _even(length: int, most: int) -> int:
    """The size of blocks of about equal size, none larger than ``most``."""
    return -(-length // -(-length // most))
