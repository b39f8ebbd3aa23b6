"""The lease of a run, in a bucket that heeds preconditions, which the emulator does not."""

import itertools
import os
import socket
import time
from pathlib import Path

import pytest

from Utils.buckets import lease as lease_module
from Utils.buckets.bucket import Bucket, Object
from Utils.buckets.errors import Superseded
from Utils.buckets.lease import Lease
from Utils.errors import Unreachable, UserError


class Heeding(Bucket):
    """A bucket in memory."""

    def __init__(self) -> None:
        super().__init__("lab")
        self.objects: dict[str, Object] = {}
        self.answers = True
        self._generations = itertools.count(1)

    def find(self, name: str) -> Object | None:
        if not self.answers:
            raise Unreachable("gs://lab does not answer")
        return self.objects.get(name)

    def _expect(self, name: str, generation: int | None) -> None:
        found = self.find(name)
        if generation not in {None, 0 if found is None else found.generation}:
            raise Superseded(f"{name} was changed")

    def write(self, name, data, generation, tags=None) -> Object:  # type: ignore[no-untyped-def]
        self._expect(name, generation)
        new = Object(name, next(self._generations), len(data), "", time.time(), tags or {})
        self.objects[name] = new
        return new

    def delete(self, name: str, generation: int | None = None) -> None:
        self._expect(name, generation)
        self.objects.pop(name, None)


@pytest.fixture
def bucket() -> Heeding:
    return Heeding()


def lease_of(bucket: Bucket, machine: Path) -> Lease:
    return Lease(bucket, "x/logs/train.lock", machine / "train.lease", "gs://lab/x: train")


def test_one_machine_at_a_time(bucket: Heeding, tmp_path: Path) -> None:
    with lease_of(bucket, tmp_path / "a"):
        with pytest.raises(UserError) as caught, lease_of(bucket, tmp_path / "b"):
            pass
        holder = f"pid {os.getpid()} on {socket.gethostname()}, heard of 0 s ago"
        assert str(caught.value).startswith(f"gs://lab/x: train is already running ({holder});")
        assert "the run is free 180 s after that" in str(caught.value)
    assert bucket.objects == {}
    with lease_of(bucket, tmp_path / "b") as lease:
        lease.check()


def test_the_loser_of_a_race_is_refused(
    bucket: Heeding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = bucket.write

    def write_after_another(
        name: str, data: bytes, generation: int, tags: dict[str, str]
    ) -> Object:
        write(name, b"", 0, {"holder": "pid 1 on other", "token": "other"})
        return write(name, data, generation, tags)

    monkeypatch.setattr(bucket, "write", write_after_another)
    with pytest.raises(UserError, match=r"already running .pid 1 on other"):
        lease_of(bucket, tmp_path).__enter__()


def killed(bucket: Heeding, machine: Path) -> None:
    """Take the lease and die: its heart no longer beats."""
    lease = lease_of(bucket, machine).__enter__()
    lease._ends.set()
    lease._thread.join()


def test_a_dead_holder_is_succeeded_on_its_machine_at_once(bucket: Heeding, tmp_path: Path) -> None:
    for _ in range(3):
        killed(bucket, tmp_path / "a")
    with pytest.raises(UserError, match="already running"):
        killed(bucket, tmp_path / "b")
    with lease_of(bucket, tmp_path / "a"):
        pass


def test_a_dead_holder_is_succeeded_elsewhere_after_a_time(
    bucket: Heeding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(bucket, tmp_path / "a")
    monkeypatch.setattr(lease_module, "SECONDS", 0.05)
    time.sleep(0.06)
    with lease_of(bucket, tmp_path / "b"):
        pass


def test_a_heart_beats_and_who_was_succeeded_is_told(
    bucket: Heeding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "SECONDS", 0.08)
    with lease_of(bucket, tmp_path / "a") as lease:
        time.sleep(0.2)
        with pytest.raises(UserError, match="already running"):
            lease_of(bucket, tmp_path / "b").__enter__()
        bucket.answers = False  # for some beats
        time.sleep(0.1)
        bucket.answers = True
        lease.check()
        taken = bucket.objects["x/logs/train.lock"]
        bucket.write("x/logs/train.lock", b"", taken.generation, {"token": "other"})
        time.sleep(0.1)
        with pytest.raises(Superseded, match="train was taken over by another process"):
            lease.check()
    assert bucket.objects["x/logs/train.lock"].tags == {"token": "other"}
