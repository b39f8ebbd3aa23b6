"""What is known of the files of working copies: which are safe in the bucket, and may go.

The record of a file, ``.bucket/<name>.json`` in its working copy, says which object it is and
which state of the file that was. A file without one, or changed since, is not in the bucket.
"""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from Utils.storage import write_atomically

FOLDER = ".bucket"
_FREE_PART, _FREE_BYTES = 0.05, 5 * 10**9
"""A disk with less free than the smaller of the two is nearly full: what is safe in the bucket
then goes, whatever the limit. On large disks a twentieth would be room enough."""


@dataclass(frozen=True)
class Record:
    """A state of a file, and the object that holds it.

    Attributes:
        generation: of the object.
        size: of the file, in bytes.
        time: of its last change, in nanoseconds.
    """

    generation: int
    size: int
    time: int

    @staticmethod
    def of(path: Path, generation: int = 0) -> "Record":
        """The record of a file as it is now."""
        state = path.stat()
        return Record(generation, state.st_size, state.st_mtime_ns)

    def fits(self, path: Path) -> bool:
        """Whether the file is still in that state."""
        try:
            return Record.of(path, self.generation) == self
        except FileNotFoundError:
            return False


class Records:
    """The records of one working copy, shared by all processes that use it.

    Args:
        root: the working copy.
    """

    def __init__(self, root: Path):
        self._root = root

    def file(self, name: str) -> Path:
        """Where the record of a file is."""
        return self._root / FOLDER / f"{name}.json"

    def get(self, name: str) -> Record | None:
        """The record of a file, if it has one."""
        try:
            return Record(**json.loads(self.file(name).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def keep(self, name: str, record: Record) -> None:
        """Write a record; raises :class:`UserError` if the disk is full and the like."""
        text = json.dumps(asdict(record))
        write_atomically(self.file(name), lambda file: file.write_text(text))

    def forget(self, name: str) -> None:
        """Delete a record."""
        self.file(name).unlink(missing_ok=True)

    def is_sent(self, name: str) -> bool:
        """Whether a file is in the bucket as it is here."""
        record = self.get(name)
        return record is not None and record.fits(self._root / name)

    def owner(self) -> str:
        """What tells this working copy from all others; made when it is first asked for."""
        path = self._root / FOLDER / "copy.id"
        with self.locked("copy.id"):
            if not path.exists():
                write_atomically(path, lambda file: file.write_text(secrets.token_hex(16)))
        return path.read_text()

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Wait until no other process of this machine is at this point for the same file."""
        path = self.file(name).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def make_room(folder: Path, patterns: Sequence[str], limit: int) -> None:
    """Delete files that are safe in their bucket, those used longest ago first.

    A file that a process has locked (``LOCK_SH``) is left.

    Args:
        folder: holds all working copies.
        patterns: of the names of files that may go, in any of them.
        limit: bytes that may stay, as long as the disk is not nearly full.
    """
    files: list[tuple[float, int, Path, Path]] = []
    for pattern in patterns:
        for record_file in folder.glob(f"**/{FOLDER}/{pattern}.json"):
            root = record_file.parents[pattern.count("/") + 1]
            name = record_file.relative_to(root / FOLDER).as_posix().removesuffix(".json")
            record = Records(root).get(name)
            if record is not None and record.fits(root / name):
                used = record_file.stat().st_mtime
                files.append((used, record.size, root / name, record_file))
    total = sum(size for _, size, _, _ in files)
    for _, size, path, record_file in sorted(files):
        if total <= limit and not _is_full(folder):
            return
        if _delete_unless_locked(path):
            record_file.unlink(missing_ok=True)
            total -= size


def _is_full(folder: Path) -> bool:
    disk = shutil.disk_usage(folder)
    return disk.free < min(_FREE_PART * disk.total, _FREE_BYTES)


def _delete_unless_locked(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
    except (BlockingIOError, FileNotFoundError):
        return False
    return True
