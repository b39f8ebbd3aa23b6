"""What J of a weight is made of, and how it is formed a part at a time.

Letters in shapes are those of :mod:`Metrics.tangent.contraction`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from Metrics.tangent.pieces import Product
from Metrics.tangent.schedule import blocks, even

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


class Room:
    """Memory that each part of J takes in its turn.

    A system hands out fresh memory page by page, which takes longer than to write it: five times
    as long as to copy it, where it was measured.
    """

    def __init__(self) -> None:
        self._numbers: Tensor | None = None

    def take(self, factors: Factors, part: Part) -> Tensor:
        """Uninitialised, for a part of J; what was taken before is overwritten.

        Args:
            factors: of a term.
            part: of J.
        """
        n, c, g, _, o = factors.derivatives[0][:, part.logits, part.groups, :, part.outs].shape
        shape = (n, c, g * o * factors.pieces[0].sizes[2])
        size = math.prod(shape)
        if self._numbers is None or self._numbers.numel() < size:
            self._numbers = None  # given back before more is asked for
            self._numbers = factors.derivatives[0].new_empty(size)
        return self._numbers[:size].view(shape)


def examples_at_once(piece: Product) -> int:
    """How many examples are unfolded at a time.

    Args:
        piece: of a term.
    """
    g, x, k, _ = piece.sizes
    return max(1, _CACHED // (g * x * k * piece.inputs.element_size()))


def formed(factors: Factors, part: Part, into: Tensor) -> Tensor:
    """A part of J, a few examples at a time.

    Args:
        factors: of a term.
        part: of J.
        into: [n, C, p], where it is put.

    Returns:
        The same.
    """
    for piece, inputs, derivatives in zip(
        factors.pieces, factors.inputs, factors.derivatives, strict=True
    ):
        for few in blocks(len(inputs), examples_at_once(piece)):
            features = piece.unfold(inputs[few])[:, part.groups]
            found = derivatives[few, part.logits, part.groups, :, part.outs]
            if piece is factors.pieces[0]:
                piece.rows(features, found, into[few])
            else:
                into[few] += piece.rows(features, found)
    return into


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
        yield from (Part(logits=part) for part in blocks(c, even(c, at_once // (g * o))))
    elif g > 1:
        yield from (Part(groups=part) for part in blocks(g, max(1, at_once // (c * o))))
    else:
        yield from (Part(outs=part) for part in blocks(o, even(o, max(1, at_once // c))))
