"""Locks between the processes of one machine."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from Utils.errors import UserError, storage_error


@contextmanager
def file_lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock; released by the system even if the process is killed.

    Args:
        path: the file that is locked; its folder is made if missing.
        what: is held, for messages ("results/e/x: train").

    Raises:
        UserError: another process holds it; names its pid and host.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab+", buffering=0)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise storage_error(error, path) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}".encode())
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode() or "another process"
            raise UserError(
                f"{what} is already running ({holder}); wait for it or stop it"
            ) from None
        except OSError as error:
            raise storage_error(error, path) from error
        yield
