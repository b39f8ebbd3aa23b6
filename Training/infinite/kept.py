"""What is done of a run's kernels, kept in its folder until they are whole.

``kernels.parts/<kernel>-<number>.h5`` holds the tiles that were done since the file before it, one
after another: ``/ntk`` and, where it is computed, ``/nngp``. They stay on this machine.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from Models.infinite import InfiniteNetwork
from Models.infinite.tiles import Kernel, Tiles
from Utils.errors import Unreadable
from Utils.hdf5 import Stream
from Utils.rundir import RunFolder
from Utils.storage import open_hdf5, write_hdf5

_SECONDS = 30.0
"""Of work that may be lost; a third of it at the end of each kernel."""

_SHARE_OF_WRITING = 0.05
"""Of the time, at most."""


def fingerprint(network: InfiniteNetwork, inputs: Mapping[str, Tensor], *others: str) -> str:
    """What tells the kernels of one network, and of one set of examples, from all others.

    Args:
        network: its layers, with their variances and rates.
        inputs: the examples, on the CPU.
        others: what kernels depend on besides.
    """
    found = hashlib.blake2b(digest_size=16)
    found.update(repr((network.program, others)).encode())
    for name, x in inputs.items():
        found.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
        found.update(x.contiguous().numpy().data)
    return found.hexdigest()


class KeptTiles:
    """The tiles of one of a run's kernels; a :class:`Models.infinite.tiles.Keeper`.

    Args:
        run: the run's folder.
        name: of the kernel.
        identity: what its numbers depend on.
        log: where the user is told that tiles of another identity are left out.

    Attributes:
        pairs: of examples in the tiles that were kept before.
    """

    def __init__(self, run: RunFolder, name: str, identity: str, log: logging.Logger):
        self._folder, self._name, self._identity = run.kernel_parts, name, identity
        self._count, self.pairs = 0, 0
        while (path := self._path(self._count)).exists() and self._accept(path):
            self._count += 1
        others = sorted(self._folder.glob(f"{name}-*.h5"))[self._count :]
        if others:
            log.info(
                "%s: what is kept of this kernel is damaged or of other flags or data, and is "
                "computed anew",
                *(others[0],),
            )
        for path in others:
            path.unlink()
        self._last, self._pause = time.monotonic(), _SECONDS

    def restored(self) -> Iterator[Mapping[Kernel, Tensor]]:
        """The tiles of each file."""
        for number in range(self._count):
            with open_hdf5(self._path(number), "run the same command again") as file:
                yield {name: torch.from_numpy(file[name][()]) for name in file}
        self._last = time.monotonic()

    def is_due(self, is_last: bool) -> bool:
        """After :data:`_SECONDS`, or longer where writing is slow."""
        passed = time.monotonic() - self._last
        return passed > (self._pause / 3 if is_last else self._pause)

    def keep(self, pairs: int, tiles: Mapping[Kernel, Tiles]) -> None:
        """Write a file; raises :class:`Utils.errors.UserError`, as if the disk is full."""
        began = time.monotonic()
        arrays: dict[str, Stream] = {name: _stream(each) for name, each in tiles.items()}
        attributes = {"identity": self._identity, "pairs": pairs}
        write_hdf5(self._path(self._count), arrays, attributes)
        self._count += 1
        self._last = time.monotonic()
        self._pause = max(_SECONDS, (self._last - began) / _SHARE_OF_WRITING)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number:06d}.h5"

    def _accept(self, path: Path) -> bool:
        try:
            with open_hdf5(path, "") as file:
                if file.attrs["identity"] != self._identity:
                    return False
                self.pairs = int(file.attrs["pairs"])
        except Unreadable:
            return False
        return True


def _stream(tiles: Tiles) -> Stream:
    """Tiles as one array of numbers."""
    first, size = next(tiles()), sum(tile.numel() for tile in tiles())

    def pieces() -> Iterator[NDArray[Any]]:
        for tile in tiles():
            yield tile.flatten().cpu().numpy()

    return Stream((size,), first.flatten()[:0].cpu().numpy().dtype, pieces)
