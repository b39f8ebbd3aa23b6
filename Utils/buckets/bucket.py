"""Objects of a Cloud Storage bucket: whole, checksummed, and never written over by surprise.

Every write carries the generation of the object that it replaces, 0 for none, so that of two
writers the second is refused. Nothing waits longer than the client's time limits and the
bucket's patience.
"""

import io
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from google.api_core.exceptions import GoogleAPICallError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from Utils.buckets.checksums import Checked, Part
from Utils.buckets.errors import CLIENT_ERRORS, Superseded, explained, is_transient
from Utils.errors import Unreachable, Unreadable, storage_error

T = TypeVar("T")

_TIMEOUT = (5.0, 15.0)  # seconds to connect, and for an answer
_DATA_TIMEOUT = (5.0, 60.0)
_CHUNK = 64 << 20  # bytes of a large upload in one request, held in memory
_LONGEST_PAUSE = 4.0
_WITHIN_UPLOAD = DEFAULT_RETRY.with_timeout(10.0)  # from the last whole chunk
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_UPLOAD_LOST = frozenset({400, 404, 410})
"""How a server answers that has forgotten an upload of several requests: begin it again."""


@dataclass(frozen=True)
class Object:
    """What a bucket knows of an object.

    Attributes:
        name: within the bucket.
        generation: tells its versions apart.
        size: in bytes.
        crc32c: of its content, big-endian, in base64.
        updated: when it was written, by the server's clock, in seconds since 1970.
        tags: the metadata that its writer added.
    """

    name: str
    generation: int
    size: int
    crc32c: str
    updated: float
    tags: Mapping[str, str] = field(default_factory=dict)


class Bucket:
    """A bucket, as whoever runs this process may use it.

    Pickles, and can be used in several threads and after a fork.

    Args:
        name: the bucket's.
        patience: seconds that an operation is tried again for, if the server does not answer.
    """

    def __init__(self, name: str, patience: float = 15.0):
        self.name, self.patience = name, patience
        self._clients = threading.local()

    def __reduce__(self) -> tuple[type["Bucket"], tuple[str, float]]:
        return Bucket, (self.name, self.patience)

    def url(self, name: str) -> str:
        """``gs://…`` of an object."""
        return f"gs://{self.name}/{name}"

    def list(self, prefix: str, glob: str | None = None) -> dict[str, Object]:
        """The objects whose names begin with ``prefix`` and, if given, match ``glob``."""

        def operation() -> dict[str, Object]:
            blobs = self._client.list_blobs(
                self.name, prefix=prefix, match_glob=glob, timeout=_TIMEOUT, retry=None
            )
            return {blob.name: _object(blob) for blob in blobs}

        return self._try(operation, prefix)

    def find(self, name: str) -> Object | None:
        """An object; ``None`` if there is no such one."""

        def operation() -> Object | None:
            blob = self._client.bucket(self.name).get_blob(name, timeout=_TIMEOUT, retry=None)
            return None if blob is None else _object(blob)

        return self._try(operation, name)

    def upload(
        self, path: Path, name: str, generation: int, tags: Mapping[str, str] | None = None
    ) -> Object:
        """Store a file as an object, which readers see when it is whole.

        Args:
            path: the file; what is appended to it meanwhile is left out.
            name: of the object.
            generation: of the object that is replaced; 0 if there is none.
            tags: metadata for the object.

        Returns:
            the object, whose size and checksum were found to be the file's.

        Raises:
            Superseded: there is another generation, of another content.
            Unreachable: the server does not take it.
            UserError: the file cannot be read.
        """
        try:
            with open(path, "rb") as file:
                return self._store(Part(file), name, generation, tags or {})
        except OSError as error:
            raise storage_error(error, path) from error

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of an object, together with others that do so.

        Raises:
            Superseded: they do so all the time.
        """
        for attempt in range(20):
            found = self.find(name)
            try:
                old = b"" if found is None else self.read(found)
                self.write(name, old + data, 0 if found is None else found.generation)
                return
            except Superseded:
                time.sleep(0.05 * attempt)
        raise Superseded(
            f"{self.url(name)} is written by too many processes; run the command again"
        )

    def write(
        self, name: str, data: bytes, generation: int, tags: Mapping[str, str] | None = None
    ) -> Object:
        """Like :meth:`upload`, of a few bytes."""
        return self._store(Part(io.BytesIO(data)), name, generation, tags or {})

    def _store(
        self, content: "Part", name: str, generation: int, tags: Mapping[str, str]
    ) -> Object:
        checksum = content.checksum()

        def operation() -> Object:
            content.seek(0)
            blob = self._client.bucket(self.name).blob(name, chunk_size=_CHUNK)
            blob.metadata = dict(tags)
            blob.upload_from_file(
                content,
                size=content.size,
                if_generation_match=generation,
                checksum="crc32c",
                crc32c_checksum_value=checksum,  # the server refuses any other content
                timeout=_DATA_TIMEOUT,
                retry=_WITHIN_UPLOAD,
            )
            return _object(blob)

        try:
            stored: Object | None = self._try(operation, name, _TRANSIENT | _UPLOAD_LOST)
        except Superseded:
            stored = self.find(name)
            if stored is None or (stored.size, stored.crc32c) != (content.size, checksum):
                raise  # otherwise only the answer to an earlier attempt was lost
        assert stored is not None
        if (stored.size, stored.crc32c) != (content.size, checksum):
            raise Unreachable(
                f"{self.url(name)} was not stored as it was sent; run the command again"
            )
        return stored

    def read(self, found: Object) -> bytes:
        """The content of a small object; raises as :meth:`download` does."""
        content = io.BytesIO()
        self._load(found, content)
        return content.getvalue()

    def download(self, found: Object, path: Path) -> None:
        """Make ``path`` hold an object, with the time at which that was written, or leave it.

        Raises:
            Unreadable: the object is not what was stored.
            Superseded: it was replaced or deleted meanwhile.
            Unreachable: the server does not give it.
            UserError: full disk and the like.
        """
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                self._load(found, file)
                file.flush()
                os.fsync(file.fileno())
            os.utime(temporary, (found.updated, found.updated))
            os.replace(temporary, path)
        except OSError as error:
            raise storage_error(error, path) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _load(self, found: Object, target: IO[bytes]) -> None:
        def operation() -> str:
            target.seek(0)
            target.truncate()
            checked = Checked(target)
            blob = self._client.bucket(self.name).blob(found.name)
            try:
                blob.download_to_file(
                    checked,
                    raw_download=True,
                    if_generation_match=found.generation,
                    checksum=None,
                    timeout=_DATA_TIMEOUT,
                    retry=None,
                )
            except GoogleAPICallError as error:
                if error.code == 404:
                    raise Superseded(f"{self.url(found.name)} was deleted") from error
                raise
            return checked.crc32c

        read = self._try(operation, found.name)
        if read != found.crc32c:
            read = self._try(operation, found.name)  # perhaps it was the network
        if read != found.crc32c:
            url = self.url(found.name)
            raise Unreadable(
                f"{url} is damaged (its checksum is {read}, not {found.crc32c}); delete it with "
                f"'gcloud storage rm {url}' and run the stage that wrote it again"
            )

    def delete(self, name: str, generation: int | None = None) -> None:
        """Delete an object, if there is one; raises :class:`Superseded` if it is another."""

        def operation() -> None:
            blob = self._client.bucket(self.name).blob(name)
            try:
                blob.delete(if_generation_match=generation, timeout=_TIMEOUT, retry=None)
            except GoogleAPICallError as error:
                if error.code != 404:
                    raise

        self._try(operation, name)

    @property
    def _client(self) -> Any:
        """A client of this thread and process: sessions are shared by neither."""
        if getattr(self._clients, "pid", None) != os.getpid():
            self._clients.value = storage.Client(project=None)
            self._clients.pid = os.getpid()
        return self._clients.value

    def _try(
        self, operation: Callable[[], T], name: str, transient: frozenset[int] = _TRANSIENT
    ) -> T:
        """Run an operation, again for a while if the server does not answer.

        Raises:
            Superseded: a precondition does not hold.
            Unreachable: it fails otherwise.
        """
        deadline, pause = time.monotonic() + self.patience, 0.1
        while True:
            try:
                return operation()
            except CLIENT_ERRORS as error:
                if not is_transient(error, transient) or time.monotonic() + pause > deadline:
                    raise explained(error, self.name, name) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _object(blob: Any) -> Object:
    return Object(
        blob.name,
        int(blob.generation),
        int(blob.size),
        blob.crc32c,
        blob.updated.timestamp(),
        dict(blob.metadata or {}),
    )
