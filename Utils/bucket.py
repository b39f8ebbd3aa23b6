"""Objects of a Cloud Storage bucket: whole, checksummed, and never written over by surprise.

Every write carries the generation of the object that it replaces, 0 for none, so that of two
writers the second is refused. Nothing waits longer than the client's time limits and the
bucket's patience.
"""

import base64
import io
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import google_crc32c
import requests
import urllib3
from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.auth import exceptions as auth_errors
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY

from Utils.errors import Unreachable, Unreadable, UserError, storage_error

T = TypeVar("T")

_TIMEOUT = (5.0, 15.0)  # seconds to connect, and for an answer
_DATA_TIMEOUT = (5.0, 60.0)
_CHUNK = 64 << 20  # bytes of a large upload in one request, held in memory
_LONGEST_PAUSE = 4.0
_WITHIN_UPLOAD = DEFAULT_RETRY.with_timeout(10.0)  # from the last whole chunk
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_REFUSED = (auth_errors.RefreshError, auth_errors.InvalidOperation)
_UPLOAD_LOST = frozenset({400, 404, 410})
"""How a server answers that has forgotten an upload of several requests: begin it again."""


class Superseded(UserError):
    """An object is not as this process left it: another one writes it."""


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
                return self._store(_Part(file), name, generation, tags or {})
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
        return self._store(_Part(io.BytesIO(data)), name, generation, tags or {})

    def _store(
        self, content: "_Part", name: str, generation: int, tags: Mapping[str, str]
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
            checked = _Checked(target)
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
            except (
                GoogleAPICallError,
                RetryError,
                DataCorruption,
                auth_errors.GoogleAuthError,
                requests.RequestException,
                urllib3.exceptions.HTTPError,  # of downloads, which requests leaves as they are
            ) as error:
                if not _is_transient(error, transient) or time.monotonic() + pause > deadline:
                    raise self._explained(error, name) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _explained(self, error: Exception, name: str) -> UserError:
        reason = " ".join(str(error).split()).rpartition("Caused by ")[2][:300]
        code = getattr(error, "code", None)
        log_in = "'gcloud auth application-default login', or set GOOGLE_APPLICATION_CREDENTIALS"
        if code == 412:
            return Superseded(
                f"{self.url(name)} was changed by another process; only one may write a run: stop "
                "it, or choose another --expid"
            )
        if code == 401 or isinstance(error, _REFUSED):
            return Unreachable(
                f"gs://{self.name}: the Google credentials were refused ({reason}); run {log_in}"
            )
        if isinstance(error, auth_errors.DefaultCredentialsError):
            return Unreachable(f"gs://{self.name}: there are no Google credentials; run {log_in}")
        if code == 403:
            return Unreachable(
                f"{self.url(name)}: access denied ({reason}); give these credentials the role "
                "roles/storage.objectUser on the bucket"
            )
        if code == 404:
            return Unreachable(
                f"gs://{self.name}: there is no such bucket; mend --save-dir, or create it with "
                f"'gcloud storage buckets create gs://{self.name}'"
            )
        if code == 429:
            return Unreachable(
                f"gs://{self.name}: too many requests, or a quota is used up ({reason}); wait or "
                "raise it, and run the same command again"
            )
        return Unreachable(
            f"gs://{self.name} does not answer as it should ({reason}); mend the connection and "
            "run the same command again"
        )


def content_of(path: Path) -> tuple[int, str]:
    """Size and CRC32C of a file, as an :class:`Object` that holds it has them."""
    with open(path, "rb") as file:
        part = _Part(file)
        return part.size, part.checksum()


def _is_transient(error: Exception, codes: frozenset[int]) -> bool:
    if isinstance(error, GoogleAPICallError):
        return error.code in codes
    if isinstance(error, auth_errors.GoogleAuthError):
        return isinstance(error, auth_errors.TransportError)
    return True


def _object(blob: Any) -> Object:
    return Object(
        blob.name,
        int(blob.generation),
        int(blob.size),
        blob.crc32c,
        blob.updated.timestamp(),
        dict(blob.metadata or {}),
    )


class _Checked:
    """A file that is written once, from its beginning, and its checksum."""

    def __init__(self, file: IO[bytes]):
        self._file, self._sum = file, 0

    def write(self, data: bytes) -> int:
        self._sum = google_crc32c.extend(self._sum, data)
        return self._file.write(data)

    @property
    def crc32c(self) -> str:
        return _base64(self._sum)


class _Part:
    """A file as long as it is now, whatever is appended to it."""

    def __init__(self, file: IO[bytes]):
        self._file, self.size = file, file.seek(0, os.SEEK_END)

    def checksum(self) -> str:
        """CRC32C as Cloud Storage writes it."""
        self.seek(0)
        checksum = 0
        while part := self.read(1 << 20):
            checksum = google_crc32c.extend(checksum, part)
        return _base64(checksum)

    def read(self, size: int = -1) -> bytes:
        left = self.size - self._file.tell()
        return self._file.read(left if size is None or size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            offset, whence = self.size + offset, os.SEEK_SET
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _base64(checksum: int) -> str:
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()
