"""The doctor's look at buckets: emulated, missing, out of reach, refused."""

import time

import pytest

from tests.clouds import Cloud, answering, closed_port
from tests.scripts.doctors import doctor

#: no credentials are looked for in this machine's files or on its network
NO_CREDENTIALS = {"HOME": "/nonexistent", "CLOUDSDK_CONFIG": "/nonexistent", "NO_GCE_CHECK": "true"}


def bucket(address: str, **environment: str) -> list[str]:
    return doctor("--only=bucket", "--timeout=1", "--save-dir", address, **environment)[1]


@pytest.mark.parametrize("prefix", ["", "/a prefix/"])
def test_a_bucket_is_written_read_and_left_as_it_was(cloud: Cloud, prefix: str) -> None:
    line, _ = bucket(f"gs://{cloud.name}{prefix}", STORAGE_EMULATOR_HOST=cloud.emulator.url)
    assert line.startswith("ok")
    assert "written, read and deleted" in line
    assert cloud.names() == []


def test_a_bucket_that_does_not_exist(cloud: Cloud) -> None:
    lines = bucket("gs://other-bucket/a", STORAGE_EMULATOR_HOST=cloud.emulator.url)
    assert lines[0] == "FAIL  bucket       gs://other-bucket: there is no such bucket"
    assert "create it with 'gcloud storage buckets create gs://other-bucket'" in lines[1]


def test_an_address_without_a_bucket() -> None:
    assert bucket("gs://")[0].startswith("FAIL  bucket       --save-dir gs://")


def test_a_bucket_that_cannot_be_reached_costs_bounded_time() -> None:
    begin = time.monotonic()
    lines = bucket("gs://lab", STORAGE_EMULATOR_HOST=closed_port())
    assert time.monotonic() - begin < 20
    assert lines[0].startswith("FAIL  bucket       gs://lab does not answer")
    assert "mend the connection" in lines[1]


def test_missing_credentials() -> None:
    lines = bucket("gs://lab", **NO_CREDENTIALS)
    assert lines[0] == "FAIL  bucket       gs://lab: there are no Google credentials"
    assert "gcloud auth application-default login" in lines[1]


@pytest.mark.parametrize(
    ("status", "found", "fix"),
    [
        (401, "the Google credentials were refused", "gcloud auth application-default login"),
        (403, "access denied", "roles/storage.objectUser"),
    ],
)
def test_refused_credentials(status: int, found: str, fix: str) -> None:
    with answering(status) as address:
        lines = bucket("gs://lab", STORAGE_EMULATOR_HOST=address)
    assert lines[0].startswith("FAIL")
    assert found in lines[0]
    assert fix in lines[1]
