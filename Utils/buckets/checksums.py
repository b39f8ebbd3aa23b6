"""CRC32C, by which Cloud Storage knows contents: big-endian, in base64."""

import base64
import os
from pathlib import Path
from typing import IO

import google_crc32c


def content_of(path: Path) -> tuple[int, str]:
    """Size and CRC32C of a file, as an object that holds it has them."""
    with open(path, "rb") as file:
        part = Part(file)
        return part.size, part.checksum()


class Checked:
    """A file that is written once, from its beginning, and its checksum."""

    def __init__(self, file: IO[bytes]):
        self._file, self._sum = file, 0

    def write(self, data: bytes) -> int:
        """Write, and count in."""
        self._sum = google_crc32c.extend(self._sum, data)
        return self._file.write(data)

    @property
    def crc32c(self) -> str:
        """Of what was written, in base64."""
        return _encoded(self._sum)


class Part:
    """A file as long as it is now, whatever is appended to it."""

    def __init__(self, file: IO[bytes]):
        self._file, self.size = file, file.seek(0, os.SEEK_END)

    def checksum(self) -> str:
        """CRC32C as Cloud Storage writes it."""
        self.seek(0)
        checksum = 0
        while part := self.read(1 << 20):
            checksum = google_crc32c.extend(checksum, part)
        return _encoded(checksum)

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes; all that are left if it is negative."""
        left = self.size - self._file.tell()
        return self._file.read(left if size is None or size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Like that of any file."""
        if whence == os.SEEK_END:
            offset, whence = self.size + offset, os.SEEK_SET
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Likewise."""
        return self._file.tell()


def _encoded(checksum: int) -> str:
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()
