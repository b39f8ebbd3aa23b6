"""Kernels put together from blocks of pairs of examples."""

from collections.abc import Iterable, Iterator

from torch import Tensor

Place = tuple[slice, slice]
"""Rows and columns of a kernel."""


class Kernels:
    """Kernels by name, filled block by block.

    Args:
        sizes: (N, M) examples.
        traced: whether they are [N, M]; else [N, M, C, C].
    """

    def __init__(self, sizes: tuple[int, int], traced: bool):
        self._sizes, self._traced = sizes, traced
        self.found: dict[str, Tensor] = {}

    def add(self, name: str, block: Tensor, place: Place) -> None:
        """Add a block at its place.

        Args:
            name: of the kernel.
            block: [n, m, ...].
            place: slices of N and M.
        """
        if name not in self.found:
            if tuple(block.shape[:2]) == self._sizes:
                self.found[name] = block
                return
            self.found[name] = block.new_zeros(*self._sizes, *block.shape[2:])
        self.found[name][place] += block

    def mirror(self, places: Iterable[Place]) -> None:
        """Fill what lies across the diagonal from these places."""
        for place in places:
            for kernel in self.found.values():
                block = kernel[place].transpose(0, 1)
                kernel[place[::-1]] = block if self._traced else block.transpose(2, 3)


def above_diagonal(rows: list[slice]) -> Iterator[Place]:
    """The places of a symmetric kernel that have another one across the diagonal."""
    for i, low in enumerate(rows):
        yield from ((low, high) for high in rows[i + 1 :])
