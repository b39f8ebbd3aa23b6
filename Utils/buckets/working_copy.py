"""The working copy of a folder in a bucket: files are made here, sent there, and fetched back.

The bucket is the truth: what it holds otherwise than the records here say
(:mod:`Utils.buckets.records`) was changed on another machine, and is fetched again.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import finalize

from Utils.buckets.bucket import Bucket, Object
from Utils.buckets.checksums import content_of
from Utils.buckets.errors import Superseded
from Utils.buckets.lease import Lease
from Utils.buckets.places import BucketPlace, cache_folder, cache_limit
from Utils.buckets.records import FOLDER, Record, Records, make_room
from Utils.buckets.uploads import Uploads
from Utils.errors import StorageError, UserError
from Utils.locks import file_lock

PATIENCE = 60.0
"""Seconds that the end of a stage waits for a bucket that takes nothing."""

_NO_GLOB = frozenset("*?[]{}\\")


@dataclass(frozen=True)
class Layout:
    """What a working copy has to know of the files in it.

    Attributes:
        identity: the file that tells a run from the next one of the same name; "" if none does.
        wanted: files that every stage reads.
        evictable: patterns of the names of files that may be deleted here to make room.
        appended: the file to which several processes, on any machines, add lines: each adds what
            is new here to what is there.
    """

    identity: str = ""
    wanted: tuple[str, ...] = ()
    evictable: tuple[str, ...] = ()
    appended: str = ""


class WorkingCopy:
    """A folder in a bucket, through a folder on this machine.

    It pickles; a copy in another process fetches, and leaves sending to the one that holds it.

    Args:
        place: the folder in the bucket.
        layout: which of its files are what.
        patience: seconds for a request that the bucket does not answer.
    """

    def __init__(self, place: BucketPlace, layout: Layout, patience: float = 15.0):
        self.root = place.working_copy
        self._place, self._layout = place, layout
        self._bucket = Bucket(place.bucket, patience)
        self._records = Records(self.root)
        self._limit = cache_limit()
        self._seen: dict[str, Object] = {}
        self._uploads: Uploads | None = None
        self._lease: Lease | None = None
        self._unpin: Callable[[], object] = _nothing

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_uploads": None, "_lease": None, "_unpin": _nothing}

    # ------------------------------------------------------------------ names

    def shown(self, text: str) -> str:
        """A text with the bucket's URL in the place of this folder's path."""
        return text.replace(str(self.root), self._place.url)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _object_name(self, name: str) -> str:
        return (self._place / name).prefix

    def _local(self, pattern: str) -> list[str]:
        """The files here whose names match, in order."""
        return sorted(self._name(path) for path in self.root.glob(pattern) if path.is_file())

    def _may_go(self, name: str) -> bool:
        return any(_matches(name, pattern) for pattern in self._layout.evictable)

    # ------------------------------------------------------------------ reading

    def files(self, pattern: str) -> list[Path]:
        """The files whose names match, in the bucket or not sent yet."""
        names = {name for name in self._list(pattern) if _matches(name, pattern)}
        names |= {name for name in self._local(pattern) if not self._records.is_sent(name)}
        return [self.root / name for name in sorted(names)]

    def _list(self, pattern: str) -> dict[str, Object]:
        """The objects whose names may match, by their names in this folder."""
        start = self._object_name(pattern.partition("*")[0])
        glob = None
        if pattern.startswith("*/") and not _NO_GLOB & set(self._place.prefix):
            glob = self._object_name(pattern)  # or the objects of all runs would be listed
        skip = len(self._object_name(""))
        found = {name[skip:]: item for name, item in self._bucket.list(start, glob).items()}
        self._seen.update(found)
        return found

    def tags(self, path: Path) -> Mapping[str, str]:
        """What is known of a file without fetching it: its writer's tags, and its ``crc32c``."""
        found = self._seen.get(self._name(path))
        return {} if found is None else {**found.tags, "crc32c": found.crc32c}

    def fetch(self, path: Path) -> None:
        """Make a file be here, if there is one; it stays until this process fetches another.

        Raises:
            Unreadable: its object is damaged.
            Unreachable: the bucket does not give it.
            UserError: full disk and the like.
        """
        if not path.is_relative_to(self.root):
            return
        name = self._name(path)
        for attempt in range(5):
            try:
                if not self._bring(name, asks=attempt > 0) or self._pin(name):
                    return
            except Superseded:
                continue  # replaced since it was looked at
        raise UserError(f"{self.shown(str(path))} is replaced all the time; run the command again")

    def _bring(self, name: str, asks: bool) -> bool:
        """Download a file if need be, the version that was seen or else the newest.

        Returns:
            whether there is one.
        """
        path, record = self.root / name, self._records.get(name)
        if path.exists() and (record is None or not record.fits(path)):
            return True  # not sent yet
        found = None if asks else self._seen.get(name)
        found = found or self._bucket.find(self._object_name(name))
        if found is None:
            self._forget(name)
            return False
        self._seen[name] = found
        if record is None or record.generation != found.generation or not path.exists():
            self._bucket.download(found, path)
            self._records.keep(name, Record.of(path, found.generation))
        return True

    def _pin(self, name: str) -> bool:
        """Keep a file from being deleted to make room; whether it is still there."""
        if not self._may_go(name):
            return True
        path = self.root / name
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        self._unpin()
        self._unpin = finalize(self, os.close, file)
        fcntl.flock(file, fcntl.LOCK_SH)
        if not path.exists() or os.fstat(file).st_ino != path.stat().st_ino:
            return False
        if self._records.file(name).exists():
            os.utime(self._records.file(name))  # its place in the order of use
            make_room(cache_folder(), self._layout.evictable, self._limit)
        return True

    def _forget(self, name: str) -> None:
        """Delete what the bucket no longer has."""
        (self.root / name).unlink(missing_ok=True)
        self._records.forget(name)

    def refresh(self, stage: str = "") -> None:
        """Look at everything in the bucket, and fetch what every stage reads.

        If the bucket has not the identity that was here, what is here is of a run that was deleted
        or replaced, and is deleted, too.

        Args:
            stage: whose lock this process holds, if any.
        """
        name = self._layout.identity
        if not name:
            return
        self._seen = {}
        found, record = self._list("").get(name), self._records.get(name)
        path = self.root / name
        if found is None:
            gone = record is not None
        else:  # copied anew it is the same run: the content tells when it was begun
            same = record is not None and record.generation == found.generation
            gone = path.exists() and not same and not self._is_here(name, found)
        if gone:
            self._discard(stage)
        for wanted in self._layout.wanted:
            self.fetch(self.root / wanted)

    def _is_here(self, name: str, found: Object) -> bool:
        """Whether a file is that object, and its record only was not written any more."""
        path = self.root / name
        if not path.exists() or content_of(path) != (found.size, found.crc32c):
            return False
        self._records.keep(name, Record.of(path, found.generation))
        return True

    def _discard(self, stage: str) -> None:
        if stage != "train":
            try:
                with file_lock(self.root / "logs" / "train.lock", "train"):
                    return self._discard("train")
            except UserError:
                return None  # a training here has begun a run that is not in the bucket yet
        for path in [path for path in self.root.rglob("*") if path.is_file()]:
            if path.suffix not in {".lock", ".lease", ".id"}:
                path.unlink(missing_ok=True)
        return None

    # ------------------------------------------------------------------ writing

    @contextmanager
    def hold(self, stage: str, writes: Sequence[str] = ()) -> Iterator[None]:
        """Be the only process that writes a stage's files; in the end all are in the bucket.

        Args:
            stage: its name.
            writes: patterns of the names of its files, in the order in which they are sent. Those
                that an earlier process left behind are sent first.

        Raises:
            UserError: another process holds it, or a file cannot be sent.
        """
        lock, token = self._object_name(f"logs/{stage}.lock"), self.root / FOLDER / f"{stage}.lease"
        with Lease(self._bucket, lock, token, f"{self._place.url}: {stage}") as lease:
            if self._uploads is not None:  # within another stage, to keep this one away
                yield
                return
            log = logging.getLogger(f"learning-mechanics.{stage}")
            self._lease, self._uploads = lease, Uploads(self._send, Superseded, log, PATIENCE)
            try:
                self.refresh(stage)
                self._send_left_behind(writes, log)
                try:
                    yield
                except (UserError, OSError):
                    try:
                        self._finish(writes)
                    except UserError as error:
                        log.error("%s", error)
                    raise  # what went wrong first
                self._finish(writes)
            finally:
                self._uploads.close()
                self._uploads = self._lease = None

    def _send_left_behind(self, writes: Sequence[str], log: logging.Logger) -> None:
        """Send what an earlier process could not, unless others have gone on since."""
        for pattern in writes:
            names = self._local(pattern)
            there = self._list(pattern) if names else {}
            for name in names:
                found, record = there.get(name), self._records.get(name)
                if name == self._layout.appended:
                    self.publish(self.root / name)
                elif record is None and found is not None and self._is_here(name, found):
                    continue
                elif self._is_from_here(found, record):
                    self.publish(self.root / name)
                else:
                    if not self._records.is_sent(name):
                        log.warning("%s: what the bucket has is kept, not the copy here", name)
                    self._forget(name)

    def _is_from_here(self, found: Object | None, record: Record | None) -> bool:
        """Whether an object, or its absence, is as this working copy left it.

        A process that was killed while it sent has no record of what arrived.
        """
        if (found.generation if found else 0) == (record.generation if record else 0):
            return True
        return found is not None and found.tags.get("copy") == self._records.owner()

    def _finish(self, writes: Sequence[str]) -> None:
        for name in [name for pattern in writes for name in self._local(pattern)]:
            self.publish(self.root / name)
        if self._uploads is not None:
            self._uploads.flush()

    def publish(self, path: Path, tags: Mapping[str, str] | None = None) -> None:
        """Send a file in the background, if it is not in the bucket and this process holds it.

        Raises:
            UserError: another process writes what this one writes.
        """
        if self._uploads is None or self._lease is None or not path.is_relative_to(self.root):
            return
        self._lease.check()
        name = self._name(path)
        if name == self._layout.appended or not self._records.is_sent(name):
            self._uploads.add(name, tags or {})

    def remove(self, path: Path) -> None:
        """Delete a file in the bucket; what is here is the caller's to delete."""
        name = self._name(path)
        if self._uploads is not None:
            self._uploads.cancel(name)
        self._bucket.delete(self._object_name(name))
        self._seen.pop(name, None)
        self._records.forget(name)

    def _send(self, name: str, tags: Mapping[str, str]) -> None:
        """Bring a file into the bucket; in the thread of the uploads."""
        if self._lease is not None:
            self._lease.check()
        path, record = self.root / name, self._records.get(name)
        if name == self._layout.appended:
            self._append(name)
        elif path.exists() and (record is None or not record.fits(path)):
            before, found = Record.of(path), self._seen.get(name)
            generation = 0 if found is None else found.generation
            tags = {**tags, "copy": self._records.owner()}
            stored = self._bucket.upload(path, self._object_name(name), generation, tags)
            time = before.time if stored.size == before.size else 0  # 0: it has grown meanwhile
            self._seen[name] = stored
            self._sent(name, Record(stored.generation, stored.size, time))

    def _sent(self, name: str, record: Record) -> None:
        try:
            self._records.keep(name, record)
        except StorageError:  # the disk is full: make room by what is in the bucket for sure
            if not self._may_go(name):
                raise
            (self.root / name).unlink(missing_ok=True)
        if self._may_go(name):
            make_room(cache_folder(), self._layout.evictable, self._limit)

    def _append(self, name: str) -> None:
        path = self.root / name
        with self._records.locked(name):
            record = self._records.get(name)
            size = path.stat().st_size if path.exists() else 0
            start = record.size if record is not None and record.size <= size else 0
            if size > start:
                with open(path, "rb") as file:
                    file.seek(start)
                    self._bucket.append(self._object_name(name), file.read(size - start))
                with suppress(StorageError):  # on a full disk, some lines may be sent twice
                    self._records.keep(name, Record(0, size, 0))


def _nothing() -> None:
    pass


def _matches(name: str, pattern: str) -> bool:
    path = PurePosixPath(name)
    return path.match(pattern) and len(path.parts) == pattern.count("/") + 1
