"""Buckets on this machine: an emulator in a process of its own, and servers that only refuse."""

import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.api_core.exceptions import PreconditionFailed
from google.cloud import storage


class Emulator:
    """gcp-storage-emulator, which keeps objects on disk and so survives being killed.

    It ignores preconditions: see :func:`heed_preconditions`.

    Args:
        folder: where it keeps them.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "gcp_storage_emulator", "-d", str(self.folder)]
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--quiet"]
        self.process = subprocess.Popen(
            [*command, "start", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError("the emulator does not start")

    def kill(self) -> None:
        """Kill it, though not while it writes its one file of metadata, which is not atomic."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            self.process.send_signal(signal.SIGSTOP)
            try:
                json.loads((self.folder / ".cloudstorage" / ".meta").read_text())
                break
            except (FileNotFoundError, ValueError):
                self.process.send_signal(signal.SIGCONT)
                time.sleep(0.002)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def file(self, bucket: str, name: str) -> Path:
        """Where the content of an object lies."""
        return self.folder / ".cloudstorage" / bucket / name


def heed_preconditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have operations fail where Cloud Storage would refuse them."""

    def heeding(operation: Callable[..., Any]) -> Callable[..., Any]:
        def checked(self: storage.Blob, *args: Any, **kwargs: Any) -> Any:
            expected = kwargs.get("if_generation_match")
            if expected is not None:
                found = self.bucket.get_blob(self.name, retry=None, timeout=kwargs["timeout"])
                if expected != (0 if found is None else found.generation):
                    raise PreconditionFailed("refused")  # type: ignore[no-untyped-call]
            return operation(self, *args, **kwargs)

        return checked

    for name in ("upload_from_file", "download_to_file", "delete"):
        monkeypatch.setattr(storage.Blob, name, heeding(getattr(storage.Blob, name)))


class Cloud:
    """A bucket of an emulator for one test, looked at with Google's own client."""

    def __init__(self, emulator: Emulator, name: str):
        self.emulator, self.name = emulator, name
        self.client = storage.Client(project="test")
        self.client.create_bucket(name)

    @property
    def save_dir(self) -> str:
        return f"gs://{self.name}/some/prefix"

    def names(self, prefix: str = "") -> list[str]:
        return sorted(blob.name for blob in self.client.list_blobs(self.name, prefix=prefix))

    def read(self, name: str) -> bytes:
        content: bytes = self.client.bucket(self.name).blob(name).download_as_bytes()
        return content

    def write(self, name: str, content: bytes) -> None:
        self.client.bucket(self.name).blob(name).upload_from_string(content)

    def delete(self, name: str) -> None:
        self.client.bucket(self.name).blob(name).delete()

    def damage(self, name: str) -> None:
        """Change a byte of an object, as a failing disk would."""
        file = self.emulator.file(self.name, name)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@contextmanager
def answering(status: int | None, seen: list[str] | None = None) -> Iterator[str]:
    """The address of a server that answers every request with a status, or never.

    Args:
        status: the status; ``None`` to be silent.
        seen: gets the method and path of every request.
    """
    ends = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            if seen is not None:
                seen.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if status is None:
                ends.wait(30)
                return
            body = b'{"error": {"message": "so says the server"}}'
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        ends.set()
        server.shutdown()
        thread.join()
        server.server_close()


def closed_port() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
