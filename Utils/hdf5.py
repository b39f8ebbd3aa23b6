"""HDF5 files written with little bookkeeping, through h5py's low-level interface.

A file of many small arrays costs what HDF5 keeps of each, not their bytes. Datasets are given
their place when they are made and filled by plain writes to it, which halves that cost, and
lets arrays that are larger than the memory pass through it in pieces.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5ds, h5p, h5s, h5t
from numpy.typing import NDArray

_PLAIN = "biufcS"
"""Kinds of numpy dtypes whose bytes are the same in HDF5."""


@dataclass(frozen=True)
class Stream:
    """An array that is not in memory as a whole.

    Attributes:
        shape: of the array.
        dtype: of the array.
        pieces: gives its entries in C order, in one-dimensional arrays of that dtype; each may
            be overwritten when the next one is asked for.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: Callable[[], Iterator[NDArray[Any]]]


class Hdf5Writer:
    """Fills a new HDF5 file; readers find the members of a group in the order of writing.

    Args:
        path: the file.

    Raises:
        OSError: at the end of the ``with`` block, if any write failed.
    """

    def __init__(self, path: Path):
        self._target = _ErrorKeepingFile(path)
        self._file = h5py.File(self._target, "w", track_order=True)
        self._groups: dict[str, h5py.Group] = {"": self._file}
        self._held: dict[str, h5d.DatasetID] = {}
        self._types: dict[np.dtype[Any], h5t.TypeID] = {}
        self._places = h5p.create(h5p.DATASET_CREATE)
        self._places.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        self._places.set_fill_time(h5d.FILL_TIME_NEVER)
        self._places.set_obj_track_times(False)  # the same arrays make the same file
        self._links = h5p.create(h5p.LINK_CREATE)
        self._links.set_char_encoding(h5t.CSET_UTF8)

    def __enter__(self) -> "Hdf5Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._target:
            self._held.clear()
            self._file.close()
            if kind is None and self._target.error is not None:
                raise self._target.error

    def write(self, arrays: Iterable[tuple[str, Any]]) -> None:
        """Add datasets: numpy arrays, what converts to them, or streams, by path."""
        for path, value in arrays:
            group, name = self._group(_parent(path)), _last(path)
            array = value if isinstance(value, Stream) else np.asarray(value)
            if array.dtype.kind in _PLAIN:
                self._held[path] = self._plain(group, name, array)
            else:
                self._held[path] = group.create_dataset(name, data=value).id

    def _plain(self, group: h5py.Group, name: str, array: NDArray[Any] | Stream) -> h5d.DatasetID:
        if array.dtype not in self._types:
            self._types[array.dtype] = h5t.py_create(array.dtype, logical=True)
        space = h5s.create_simple(array.shape) if array.shape else h5s.create(h5s.SCALAR)
        kind = self._types[array.dtype]
        held = h5d.create(group.id, name.encode(), kind, space, self._places, self._links)
        offset = held.get_offset()
        if offset is not None:
            self._target.seek(offset)
            for piece in array.pieces() if isinstance(array, Stream) else [array]:
                self._target.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8))
        return held

    def attributes(self, attributes: Mapping[str, Any], path: str = "") -> None:
        """Add attributes to a dataset, or to the root."""
        held = h5py.Dataset(self._held[path]) if path else self._file
        for key, value in attributes.items():
            held.attrs[key] = value

    def scales(self, dimensions: Mapping[str, tuple[str, ...]]) -> None:
        """Attach the datasets that scale the axes of others, by the paths of these."""
        for scale in dict.fromkeys(scale for scales in dimensions.values() for scale in scales):
            h5ds.set_scale(self._held[scale], _last(scale).encode())
        for path, scales in dimensions.items():
            for axis, scale in enumerate(scales):
                h5ds.attach_scale(self._held[path], self._held[scale], axis)

    def _group(self, path: str) -> h5py.Group:
        """The group at a path, made with the order of its members kept."""
        if path not in self._groups:
            above = self._group(_parent(path))
            self._groups[path] = above.create_group(_last(path), track_order=True)
        return self._groups[path]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _last(path: str) -> str:
    return path.rpartition("/")[2]


class _ErrorKeepingFile(io.FileIO):
    """A file for HDF5 to write to, which is told that all went well.

    HDF5 answers a failed write, of which a full disk brings hundreds, with a message for each
    object in the file, and may crash when the process ends.

    Attributes:
        error: the first one.
    """

    def __init__(self, path: Path):
        super().__init__(path, "wb+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write everything, or keep the reason why not."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest and self.error is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size, or keep the reason why not."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0
