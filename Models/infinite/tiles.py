"""How the pairs of a kernel are cut into tiles, and what keeps tiles that are done."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal, Protocol

import torch
from torch import Tensor

from Models.infinite.compiled.stack import Stack

Kernel = Literal["nngp", "ntk"]
Tiles = Callable[[], Iterator[Tensor]]
"""Gives tiles one after another."""


@dataclass(frozen=True)
class Plan:
    """How pairs are cut into tiles, and who computes them.

    Attributes:
        rows: of a tile.
        columns: of a tile.
        stack: what the compiled kernel does; ``None`` if torch does all.
    """

    rows: int
    columns: int
    stack: Stack | None

    def tiles(self, n: int, m: int | None) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of all tiles in their order.

        Args:
            n: examples of side 1.
            m: of side 2; ``None`` where it is side 1: tiles of the upper triangle and its
                neighbourhood.
        """
        for top in range(0, n, self.rows):
            rows = slice(top, min(top + self.rows, n))
            end = n if m is None else m
            for begin in range(top if m is None else 0, end, self.columns):
                yield rows, slice(begin, min(begin + self.columns, end))

    def pairs(self, n: int, m: int | None) -> int:
        """Of examples in all tiles."""
        return sum(size_of(rows, columns) for rows, columns in self.tiles(n, m))

    def __str__(self) -> str:
        """What the bits of a kernel depend on."""
        return f"{self.rows} x {self.columns} by {'torch' if self.stack is None else 'C++'}"


class Keeper(Protocol):
    """Keeps tiles of a kernel where they outlive this process."""

    def restored(self) -> Iterator[Mapping[Kernel, Tensor]]:
        """The numbers of the first tiles, one tile after another, in any number of parts."""

    def is_due(self, is_last: bool) -> bool:
        """Whether what was done since the last time is worth it; ``is_last``: or never will be."""

    def keep(self, pairs: int, tiles: Mapping[Kernel, Tiles]) -> None:
        """Keep the tiles that follow those kept already; ``pairs`` are done with them."""


class Nowhere:
    """The :class:`Keeper` of kernels that are computed in one go."""

    def restored(self) -> Iterator[Mapping[Kernel, Tensor]]:
        """None."""
        yield from ()

    def is_due(self, is_last: bool) -> bool:
        """Never."""
        return False

    def keep(self, pairs: int, tiles: Mapping[Kernel, Tiles]) -> None:
        """Not called."""


class Filling:
    """Kernels while they are filled tile by tile, from the first tile on that is not kept.

    Args:
        plan: the tiles.
        whole: the kernels, [n, m] each.
        symmetric: whether both sides are the same examples.
        keeper: of tiles.

    Attributes:
        total: pairs of all tiles.
        done: of those that are filled.
    """

    def __init__(self, plan: Plan, whole: Mapping[Kernel, Tensor], symmetric: bool, keeper: Keeper):
        self._plan, self._whole, self._symmetric, self._keeper = plan, whole, symmetric, keeper
        n, m = next(iter(whole.values())).shape
        self._sides = (n, None if symmetric else m)
        self.total, self.done = plan.pairs(*self._sides), 0
        self._count, self._kept = 0, 0

    def missing(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of the tiles to be computed; each is filled before the next."""
        tiles = self._plan.tiles(*self._sides)
        self._restore(tiles)
        for rows, columns in tiles:
            yield rows, columns
            self.done, self._count = self.done + size_of(rows, columns), self._count + 1
            self.keep(self.done == self.total)

    def keep(self, is_last: bool) -> None:
        """Have the keeper take what is new, if it is due.

        Args:
            is_last: whether it is not asked again.
        """
        if self._count > self._kept and self._keeper.is_due(is_last):
            new = (self._kept, self._count)
            self._keeper.keep(self.done, {k: partial(self._read, k, *new) for k in self._whole})
            self._kept = self._count

    def fill(self, rows: slice, columns: slice, parts: Mapping[Kernel, Tensor | None]) -> None:
        """Put a tile where it belongs; ``None`` is zero."""
        for name, whole in self._whole.items():
            part = parts[name]
            part = torch.zeros_like(whole[rows, columns]) if part is None else part
            if self._symmetric:
                whole[columns, rows] = part.T
            whole[rows, columns] = part  # last, so that it is read as it was where both overlap

    def _restore(self, tiles: Iterator[tuple[slice, slice]]) -> None:
        """Take the kept tiles from the front."""
        for kept in self._keeper.restored():
            first, size = 0, min(map(len, kept.values()))
            while first < size:
                rows, columns = next(tiles)
                last = first + size_of(rows, columns)
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                self.fill(rows, columns, {k: x[first:last].view(shape) for k, x in kept.items()})
                first, self._count = last, self._count + 1
            self.done += size
        self._kept = self._count

    def _read(self, name: Kernel, first: int, last: int) -> Iterator[Tensor]:
        for rows, columns in islice(self._plan.tiles(*self._sides), first, last):
            yield self._whole[name][rows, columns]


def size_of(rows: slice, columns: slice) -> int:
    """Pairs of examples in a tile."""
    return int((rows.stop - rows.start) * (columns.stop - columns.start))


def twins(rows: slice, columns: slice) -> Tensor | None:
    """Which pairs of a tile of one set are twice one example; ``None`` if none is."""
    i, j = torch.arange(rows.start, rows.stop), torch.arange(columns.start, columns.stop)
    same = i[:, None] == j[None]
    return same if bool(same.any()) else None
