"""The doctor's look at buckets: emulated, missing, out of reach, refused."""

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripts.doctors import doctor

#: no credentials are looked for in this machine's files or on its network
NO_CREDENTIALS = {"HOME": "/nonexistent", "CLOUDSDK_CONFIG": "/nonexistent", "NO_GCE_CHECK": "true"}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def emulator() -> Iterator[str]:
    """The address of an emulated Cloud Storage with one bucket, ``b``."""
    port = free_port()
    program = Path(sys.executable).with_name("gcp-storage-emulator")
    arguments = [f"--port={port}", "--host=127.0.0.1", "--in-memory", "--default-bucket=b"]
    process = subprocess.Popen(
        [program, "start", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(500):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def bucket(address: str, **environment: str) -> list[str]:
    return doctor("--only=bucket", "--timeout=1", "--save-dir", address, **environment)[1]


@pytest.mark.parametrize("address", ["gs://b", "gs://b/a prefix/"])
def test_a_bucket_is_written_read_and_left_as_it_was(emulator: str, address: str) -> None:
    line, _ = bucket(address, STORAGE_EMULATOR_HOST=emulator)
    assert line.startswith("ok")
    assert "written, read and deleted" in line
    with urllib.request.urlopen(f"{emulator}/storage/v1/b/b/o") as answer:
        assert json.load(answer).get("items", []) == []


def test_a_bucket_that_does_not_exist(emulator: str) -> None:
    lines = bucket("gs://other/a", STORAGE_EMULATOR_HOST=emulator)
    assert lines[0].startswith("FAIL  bucket       gs://other/a: NotFound: 404")
    assert lines[1].endswith("no such bucket; gcloud storage buckets create gs://other")


def test_an_address_without_a_bucket() -> None:
    assert bucket("gs://")[0] == "FAIL  bucket       gs:// names no bucket"


def test_a_bucket_that_cannot_be_reached_costs_bounded_time() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    begin = time.monotonic()
    lines = bucket("gs://b", STORAGE_EMULATOR_HOST=address)
    assert time.monotonic() - begin < 20
    assert "RetryError: Timeout of 1.0s exceeded" in lines[0]
    assert lines[1].startswith(
        f"      fix: is the emulator running? STORAGE_EMULATOR_HOST={address}"
    )


def test_missing_credentials() -> None:
    lines = bucket("gs://b", **NO_CREDENTIALS)
    assert "DefaultCredentialsError" in lines[0]
    assert "gcloud auth application-default login" in lines[1]


class _Refusing(http.server.BaseHTTPRequestHandler):
    """Answers every upload with the status in its address: ``/403/upload/…``."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.mark.parametrize(
    ("status", "error", "advice"),
    [
        (401, "InvalidOperation", "gcloud auth application-default login"),
        (403, "Forbidden: 403", "this account may not do that"),
    ],
)
def test_refused_credentials(status: int, error: str, advice: str) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/{status}"
        lines = bucket("gs://b", STORAGE_EMULATOR_HOST=address)
        server.shutdown()
        thread.join()
    assert lines[0].startswith(f"FAIL  bucket       gs://b: {error}")
    assert advice in lines[1]
