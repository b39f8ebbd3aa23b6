"""One writer of a run, on whatever machine: a lock object in the bucket, with a heartbeat."""

import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Self

from Utils.buckets.bucket import Bucket, Object
from Utils.buckets.errors import Superseded
from Utils.errors import UserError

SECONDS = 180.0
"""How long after the last heartbeat a holder is taken for dead, clocks of machines differing."""

_BEATS = 4  # in that time


class Lease:
    """While entered, nobody else can hold the lease.

    Args:
        bucket: where it is.
        name: of its object.
        token: a file that only processes that hold a lock of this machine may write. A lease
            whose token is in it is that of an earlier, dead one of them.
        what: is held, for messages ("gs://b/e/x: train").
    """

    def __init__(self, bucket: Bucket, name: str, token: Path, what: str):
        self._bucket, self._name, self._file, self._what = bucket, name, token, what
        self._token = secrets.token_hex(16)
        self._lost: UserError | None = None
        self._ends = threading.Event()

    def __enter__(self) -> Self:
        """Take it.

        Raises:
            UserError: another process holds it; names its pid and host.
        """
        found = self._bucket.find(self._name)
        if found is not None:
            self._refuse_living(found)
        # the token first: if this process dies in between, its successor must know both
        dead = "" if found is None else found.tags.get("token", "")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(f"{dead} {self._token}")
        try:
            self._held = self._write(0 if found is None else found.generation)
        except Superseded:
            found = self._bucket.find(self._name)
            if found is not None:
                self._refuse_living(found)
            raise
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ends.set()
        self._thread.join()
        try:
            if self._lost is None:
                self._bucket.delete(self._name, self._held.generation)
        except UserError:
            pass  # then it expires

    def check(self) -> None:
        """Raise :class:`Superseded` if another process has taken the lease."""
        if self._lost is not None:
            raise self._lost

    def _refuse_living(self, found: Object) -> None:
        silent = time.time() - found.updated
        known = self._file.read_text().split() if self._file.exists() else []
        if found.tags.get("token") in known or silent > SECONDS:
            return
        holder = found.tags.get("holder", "another process")
        raise UserError(
            f"{self._what} is already running ({holder}, heard of {max(silent, 0):.0f} s ago); "
            f"wait for it or stop it; if it was killed, the run is free {SECONDS:.0f} s after that"
        )

    def _write(self, generation: int) -> Object:
        holder = f"pid {os.getpid()} on {socket.gethostname()}"
        tags = {"holder": holder, "token": self._token}
        return self._bucket.write(self._name, self._token.encode(), generation, tags)

    def _beat(self) -> None:
        while not self._ends.wait(SECONDS / _BEATS):
            try:
                self._held = self._write(self._held.generation)
            except Superseded:
                self._lost = Superseded(
                    f"{self._what} was taken over by another process after this one could not be "
                    f"heard of for {SECONDS:.0f} s"
                )
                return
            except UserError:
                continue  # the bucket may answer the next one
