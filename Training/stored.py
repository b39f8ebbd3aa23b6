"""Checkpoints whose tensors stay in the file until they are asked for, piece by piece.

``torch.load`` reads a checkpoint, or maps it as memory that could be written to, which systems
refuse for files larger than what they have. Whoever only moves bytes needs neither. A file of
``torch.save`` is a zip archive, uncompressed: a pickle of the containers, and a part for the
bytes of each storage.
"""

import math
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from Training.checkpoints import Checkpoint, load_checkpoint
from Utils.hdf5 import Stream

_PIECE = 1 << 20
"""Bytes read at a time."""

_LOCAL_HEADER = 30
"""Bytes before the name in a zip archive's part; the last four are the lengths of the name and
of what follows it."""

_DTYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
}
"""Numpy's name, or bfloat16, which numpy lacks."""


class StoredTensor(NamedTuple):
    """A tensor's place in an open file.

    Attributes:
        file: the file, unbuffered.
        start: its storage's first byte.
        length: its storage's entries.
        dtype: as in ``_DTYPES``.
        offset: of its first entry in its storage, in entries.
        shape: sizes.
        stride: steps between neighbours along each axis, in entries.
    """

    file: IO[bytes]
    start: int
    length: int
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def stream(self) -> Stream:
        """Its entries; bfloat16 as float32."""
        as_float = self.dtype == "bfloat16"
        pieces = self._widened if as_float else self._pieces
        return Stream(self.shape, np.dtype("f4" if as_float else self.dtype), pieces)

    def _widened(self) -> Iterator[NDArray[Any]]:
        for piece in self._pieces():  # bfloat16 is the upper half of float32
            yield (piece.astype(np.uint32) << 16).view(np.float32)

    def _pieces(self) -> Iterator[NDArray[Any]]:
        size = math.prod(self.shape)
        raw = np.dtype("u2" if self.dtype == "bfloat16" else self.dtype)
        if self._is_contiguous():
            yield from self._read(raw, self.offset, size)
        elif size:  # channels last, and the like: a storage is mapped, and reordered row by row
            bytes_ = (self.length * raw.itemsize,)
            mapped = np.memmap(self.file, np.uint8, "r", self.start, bytes_).view(raw)
            strides = [step * raw.itemsize for step in self.stride]
            whole = np.lib.stride_tricks.as_strided(mapped[self.offset :], self.shape, strides)
            for row in whole:
                yield np.ascontiguousarray(row).reshape(-1)

    def _read(self, raw: np.dtype[Any], offset: int, size: int) -> Iterator[NDArray[Any]]:
        buffer = np.empty(min(size, _PIECE // raw.itemsize), raw)
        self.file.seek(self.start + offset * raw.itemsize)
        for first in range(0, size, max(1, len(buffer))):
            piece = buffer[: size - first]
            rest = piece.view(np.uint8).data
            while rest:
                count = self.file.readinto(rest)  # type: ignore[attr-defined]
                if not count:
                    raise EOFError(f"{self.file.name} has become shorter")
                rest = rest[count:]
            yield piece

    def _is_contiguous(self) -> bool:
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True


@contextmanager
def stored_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """A checkpoint with a :class:`StoredTensor` in place of each tensor.

    One that holds anything else than what ``train.py`` writes, or is damaged, is left to
    :func:`load_checkpoint`, and then has tensors.

    Args:
        path: the file, which is open as long as the context.

    Raises:
        UserError: as :func:`load_checkpoint` does.
    """
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed below)
    except OSError:
        yield load_checkpoint(path)  # which says why
        return
    with file:
        try:
            content = _read_containers(file)
        except Exception:  # damaged bytes can raise anything
            content = None
        if isinstance(content, dict) and "model_state_dict" in content:
            yield content
        else:
            yield load_checkpoint(path)


def _read_containers(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        parts = {part.filename.partition("/")[2]: part for part in archive.infolist()}
        if archive.read(parts["byteorder"]).decode() != sys.byteorder:
            raise ValueError("another byte order")
        with archive.open(parts["data.pkl"]) as pickled:
            return _Containers(pickled, file, parts).load()


class _Storage(NamedTuple):
    start: int
    length: int
    dtype: str


class _Dtype(NamedTuple):
    name: str


class _Containers(pickle.Unpickler):
    """Unpickles containers and numbers, and calls nothing but what makes them.

    Args:
        pickled: the pickle.
        file: of which it is a part.
        parts: all parts, by name.
    """

    def __init__(self, pickled: IO[bytes], file: IO[bytes], parts: dict[str, zipfile.ZipInfo]):
        super().__init__(pickled)
        self._file, self._parts = file, parts
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _Dtype(_DTYPES[name])
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, length = pid
        if key not in self._storages:
            part = self._parts[f"data/{key}"]
            itemsize = 2 if dtype.name == "bfloat16" else np.dtype(dtype.name).itemsize
            if part.compress_type != zipfile.ZIP_STORED or part.file_size < length * itemsize:
                raise ValueError("a part that was not written by torch.save")
            position = self._file.tell()
            self._file.seek(part.header_offset + _LOCAL_HEADER - 4)
            lengths = struct.unpack("<HH", self._file.read(4))
            self._file.seek(position)
            start = part.header_offset + _LOCAL_HEADER + sum(lengths)
            self._storages[key] = _Storage(start, length, dtype.name)
        return self._storages[key]

    def _tensor(
        self, storage: _Storage, offset: int, shape: Any, stride: Any, *_: Any
    ) -> StoredTensor:
        extent = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if min((offset, *shape, *stride)) < 0 or (
            math.prod(shape) and offset + extent >= storage.length
        ):
            raise ValueError("a tensor outside its storage")
        length, start, dtype = storage.length, storage.start, storage.dtype
        return StoredTensor(self._file, start, length, dtype, offset, tuple(shape), tuple(stride))
