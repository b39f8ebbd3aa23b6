"""A bucket: what is stored is what was sent, nothing hangs, and every refusal says what to do."""

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.clouds import Cloud, answering, closed_port
from Utils.buckets import bucket as bucket_module
from Utils.buckets.bucket import Bucket
from Utils.buckets.checksums import Part, content_of
from Utils.buckets.errors import Superseded
from Utils.errors import Unreachable, Unreadable, UserError


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit (Castagnoli's polynomial, reflected: 0x82F63B78; RFC 3720, B.4)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every request of this process: method and URL."""
    seen: list[str] = []
    request = requests.Session.request

    def spy(self: requests.Session, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        seen.append(f"{method} {url}")
        return request(self, method, url, *args, **kwargs)

    monkeypatch.setattr(requests.Session, "request", spy)
    return seen


def test_what_is_stored_is_what_was_sent(cloud: Cloud, tmp_path: Path) -> None:
    bucket, file = Bucket(cloud.name), tmp_path / "file"
    file.write_bytes(b"123456789")
    stored = bucket.upload(file, "a/b", 0, {"step": "3"})
    assert cloud.read("a/b") == b"123456789"
    assert crc32c(b"123456789") == 0xE3069283  # the standard's check value
    assert stored.crc32c == "4waSgw=="  # the same, in base64
    assert content_of(file) == (9, stored.crc32c)
    assert stored == bucket.find("a/b") == bucket.list("a/")["a/b"]
    assert stored.tags == {"step": "3"}
    target = tmp_path / "folder" / "copy"
    bucket.download(stored, target)
    assert target.read_bytes() == b"123456789"
    assert target.stat().st_mtime == pytest.approx(stored.updated, abs=1e-3)
    assert [path.name for path in target.parent.iterdir()] == ["copy"]
    bucket.delete("a/b", stored.generation)
    bucket.delete("a/b")
    assert bucket.find("a/b") is None
    assert cloud.names() == []


def test_listing_takes_prefix_and_pattern(cloud: Cloud) -> None:
    for name in ("e/x/h.json", "e/x/ckpt/h.json", "e/y/h.json", "f/x/h.json"):
        cloud.write(name, b"")
    bucket = Bucket(cloud.name)
    assert sorted(bucket.list("e/x")) == ["e/x/ckpt/h.json", "e/x/h.json"]
    assert sorted(bucket.list("e/", "e/*/h.json")) == ["e/x/h.json", "e/y/h.json"]


@pytest.mark.parametrize("size", [10, 9 << 20])  # in one request, and in several
def test_every_write_says_what_it_replaces(
    cloud: Cloud, tmp_path: Path, sent: list[str], size: int
) -> None:
    bucket, file = Bucket(cloud.name), tmp_path / "file"
    file.write_bytes(b"x" * size)
    first = bucket.upload(file, "name", 0)
    file.write_bytes(b"y" * size)
    second = bucket.upload(file, "name", first.generation)
    bucket.download(second, tmp_path / "copy")
    bucket.delete("name", second.generation)
    conditions = [re.search(r"ifGenerationMatch=(\d+)", url) for url in sent]
    given = list(dict.fromkeys(int(found[1]) for found in conditions if found))
    assert given == [0, first.generation, second.generation]
    begins = [url for url in sent if url.startswith("POST")]
    assert len(begins) == 2
    assert all("ifGenerationMatch" in url for url in [*begins, sent[-1]])


def test_a_second_writer_is_refused(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, file = Bucket(cloud.name), tmp_path / "file"
    file.write_bytes(b"mine")
    cloud.write("name", b"theirs")
    find = bucket.find("name")
    with answering(412) as url, monkeypatch.context() as patched:
        patched.setenv("STORAGE_EMULATOR_HOST", url)
        refused = Bucket(cloud.name)
        patched.setattr(refused, "find", lambda name: find)
        with pytest.raises(Superseded, match=r"gs://.*/name was changed by another process; only"):
            refused.upload(file, "name", 0)
        with pytest.raises(Superseded):
            refused.delete("name", 3)
        assert find is not None
        with pytest.raises(Superseded):
            refused.download(find, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        file.write_bytes(b"theirs")  # the answer to an earlier attempt was lost, then
        assert refused.upload(file, "name", 0) == find


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"gs://lab: the Google credentials were refused \(.*\); run 'gcloud auth"),
        (403, r"gs://lab/a: access denied \(.*so says the server.*\); give .*storage.objectUser"),
        (404, r"gs://lab: there is no such bucket; mend --save-dir, or create it with 'gcloud"),
        (429, r"gs://lab: too many requests, or a quota is used up .*; wait or raise it"),
        (503, r"gs://lab does not answer as it should \(.*so says the server.*\); mend the conn"),
    ],
)
def test_refusals_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, message: str
) -> None:
    monkeypatch.setattr(bucket_module, "_WITHIN_UPLOAD", None)
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with answering(status) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        bucket = Bucket("lab", patience=0.3)
        for operation in (lambda: bucket.list("a"), lambda: bucket.upload(file, "a", 0)):
            with pytest.raises(Unreachable, match=message) as caught:
                operation()
            assert "\n" not in str(caught.value)


def test_nothing_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Bucket("lab").patience + sum(bucket_module._TIMEOUT) < 40
    monkeypatch.setattr(bucket_module, "_TIMEOUT", (0.2, 0.2))
    with answering(None) as silent:
        for url in (silent, closed_port()):
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
            begun = time.monotonic()
            with pytest.raises(Unreachable, match="gs://lab does not answer") as caught:
                Bucket("lab", patience=0.5).find("a")
            assert 0.2 < time.monotonic() - begun < 5
        assert "(HTTPConnection(" in str(caught.value)
        assert "Connection refused); mend the connection" in str(caught.value)


def test_missing_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(Unreachable, match="there are no Google credentials; run 'gcloud auth app"):
        Bucket("lab").list("")


def test_a_damaged_object_is_named(cloud: Cloud, tmp_path: Path) -> None:
    bucket = Bucket(cloud.name)
    stored = bucket.write("a/b", b"some content", 0)
    cloud.damage("a/b")
    url = f"gs://{cloud.name}/a/b"
    with pytest.raises(Unreadable, match=f"{url} is damaged .*'gcloud storage rm {url}'"):
        bucket.download(stored, tmp_path / "copy")
    assert list(tmp_path.glob("copy*")) == []


def test_a_file_that_grows_is_stored_as_it_was(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, checksum = tmp_path / "log", Part.checksum
    file.write_bytes(b"a" * (9 << 20))

    def grow(self: Any) -> str:
        with open(file, "ab") as more:
            more.write(b"b" * 1000)
        return checksum(self)

    monkeypatch.setattr(Part, "checksum", grow)
    stored = Bucket(cloud.name).upload(file, "log", 0)
    assert stored.size == 9 << 20
    assert set(cloud.read("log")) == set(b"a")


def test_lines_of_two_processes_are_all_kept(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(cloud.name)
    bucket.append("log", b"first\n")
    write, refusals = Bucket.write, iter([True, True, False])

    def write_late(self: Bucket, name: str, data: bytes, generation: int) -> Any:
        if next(refusals):  # as a server that heeds preconditions does
            write(self, name, cloud.read(name) + b"theirs\n", generation)
            raise Superseded("too late")
        return write(self, name, data, generation)

    monkeypatch.setattr(Bucket, "write", write_late)
    bucket.append("log", b"mine\n")
    assert cloud.read("log") == b"first\ntheirs\ntheirs\nmine\n"


def test_an_upload_survives_a_server_that_is_killed(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, content = tmp_path / "file", bytes(range(256)) * (12 << 12)
    file.write_bytes(content)
    monkeypatch.setattr(bucket_module, "_CHUNK", 1 << 20)
    chunks, third = [], threading.Event()
    request = requests.Session.request

    def spy(self: requests.Session, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "PUT":
            chunks.append(1)
            if len(chunks) == 4:
                cloud.emulator.kill()
                third.set()
        return request(self, method, *args, **kwargs)

    monkeypatch.setattr(requests.Session, "request", spy)
    stored: list[Any] = []
    upload = threading.Thread(
        target=lambda: stored.append(Bucket(cloud.name).upload(file, "big", 0))
    )
    upload.start()
    assert third.wait(20)
    cloud.emulator.start()
    assert cloud.names() == []  # nothing is there by halves
    upload.join(30)
    assert stored[0].size == len(content)
    assert cloud.read("big") == content
    assert len(chunks) > 12  # it began again


def test_a_file_that_cannot_be_read(cloud: Cloud, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot access .*absent"):
        Bucket(cloud.name).upload(tmp_path / "absent", "a", 0)
