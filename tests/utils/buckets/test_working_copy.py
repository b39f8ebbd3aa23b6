"""The working copy of a bucket: nothing is deleted before it is safe, nothing is mixed up."""

import dataclasses
import logging
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.clouds import Cloud, answering, closed_port
from Utils.buckets import bucket as bucket_module
from Utils.buckets import records as records_module
from Utils.buckets import working_copy as working_copy_module
from Utils.buckets.bucket import Bucket
from Utils.buckets.errors import Superseded
from Utils.buckets.places import BucketPlace, bucket_place, cache_limit
from Utils.buckets.working_copy import Layout, WorkingCopy
from Utils.errors import StorageError, Unreachable, UserError
from Utils.storage import write_atomically

WRITES = ("id.json", "small.h5", "ckpt/*.tar", "logs/run.log")
LAYOUT = Layout("id.json", ("id.json", "small.h5"), ("ckpt/*.tar",), "logs/run.log")


class Disk(NamedTuple):
    """What ``shutil.disk_usage`` tells, as far as it is asked; in bytes."""

    total: int
    free: int


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with room, however full this machine's is."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Disk(10**12, 10**11))


@pytest.fixture
def place(cloud: Cloud) -> BucketPlace:
    return BucketPlace(cloud.name, "e/x")


@pytest.fixture
def copy(place: BucketPlace) -> WorkingCopy:
    return WorkingCopy(place, LAYOUT, patience=0.3)


def elsewhere(place: BucketPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkingCopy:
    """The working copy of another machine."""
    monkeypatch.setenv("LEARNING_MECHANICS_CACHE", str(tmp_path / "elsewhere"))
    return WorkingCopy(place, LAYOUT, patience=0.3)


def work(copy: WorkingCopy, job: Callable[[], None]) -> None:
    with copy.hold("train", WRITES):
        job()


def put(copy: WorkingCopy, name: str, content: bytes) -> Path:
    path = copy.root / name
    write_atomically(path, lambda file: file.write_bytes(content))
    return path


@pytest.mark.parametrize(
    ("save_dir", "expected"),
    [
        ("results", None),
        ("gs://lab", BucketPlace("lab", "")),
        ("gs://lab/", BucketPlace("lab", "")),
        ("gs://lab/a//b/", BucketPlace("lab", "a/b")),
    ],
)
def test_places(save_dir: str, expected: BucketPlace | None) -> None:
    assert bucket_place(save_dir) == expected
    if expected is not None:
        assert bucket_place(expected.url) == expected
        assert bucket_place((expected / "e").url) == expected / "e"


@pytest.mark.parametrize("save_dir", ["gs://", "gs:///a", "gs://UPPER", "gs://lab/../other"])
def test_places_that_are_none(save_dir: str) -> None:
    with pytest.raises(UserError, match=f"--save-dir {save_dir}: not gs://bucket"):
        bucket_place(save_dir)


@pytest.mark.parametrize("value", ["many", "-1", "nan", "inf"])
def test_a_limit_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LEARNING_MECHANICS_CACHE_GB", value)
    with pytest.raises(UserError, match=f"LEARNING_MECHANICS_CACHE_GB={value}: not a number"):
        cache_limit()


def test_what_is_written_here_is_read_elsewhere(
    copy: WorkingCopy,
    cloud: Cloud,
    place: BucketPlace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with copy.hold("train", WRITES):
        put(copy, "id.json", b"1")
        put(copy, "ckpt/half.tar.tmp", b"never")
        path = put(copy, "ckpt/a.tar", b"aaa")
        assert copy.files("ckpt/*.tar") == [path]
        copy.publish(path, {"of": "that"})
    assert cloud.names() == ["e/x/ckpt/a.tar", "e/x/id.json"]
    other = elsewhere(place, tmp_path, monkeypatch)
    other.refresh()
    assert (other.root / "id.json").read_bytes() == b"1"
    (found,) = other.files("ckpt/*.tar")
    assert not found.exists()
    assert other.tags(found)["of"] == "that"
    other = pickle.loads(pickle.dumps(other))  # as a worker gets it
    other.fetch(found)
    assert found.read_bytes() == b"aaa"
    assert other.shown(str(found)) == f"gs://{cloud.name}/e/x/ckpt/a.tar"


def test_files_appear_in_the_order_in_which_they_were_published(
    copy: WorkingCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    upload = Bucket.upload

    def spy(self: Bucket, path: Path, name: str, *args: Any) -> Any:
        order.append(path.name)
        time.sleep(0.02)
        return upload(self, path, name, *args)

    monkeypatch.setattr(Bucket, "upload", spy)
    names = ["id.json", "ckpt/b.tar", "ckpt/a.tar", "small.h5"]
    with copy.hold("train", WRITES):
        for name in names:
            copy.publish(put(copy, name, b"x"), {})
    assert order == [Path(name).name for name in names]


def test_what_changes_while_it_is_sent_is_sent_again(copy: WorkingCopy, cloud: Cloud) -> None:
    with copy.hold("train", WRITES):
        for number in range(5):
            copy.publish(put(copy, "id.json", b"%d" % number), {})
            time.sleep(0.01)
    assert cloud.read("e/x/id.json") == b"4"


# ---------------------------------------------------------------- room on the disk


def use(copy: WorkingCopy, names: str) -> None:
    for name in names:
        path = put(copy, f"ckpt/{name}.tar", name.encode() * 1000)
        copy.publish(path, {})
        time.sleep(0.01)  # the order of use is that of times


def here(copy: WorkingCopy) -> str:
    return "".join(sorted(path.stem for path in (copy.root / "ckpt").glob("*.tar")))


def test_the_cache_keeps_what_was_used_last(
    place: BucketPlace, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEARNING_MECHANICS_CACHE_GB", str(2500e-9))
    copy = WorkingCopy(place, LAYOUT)
    with copy.hold("train", WRITES):
        put(copy, "id.json", b"x" * 5000)  # what every stage reads stays
        for name in "abcd":
            use(copy, name)
            uploads = copy._uploads
            assert uploads is not None
            uploads.flush()
    assert here(copy) == "cd"
    assert len(cloud.names("e/x/ckpt")) == 4
    assert (copy.root / "id.json").exists()
    for path in copy.files("ckpt/*.tar"):
        copy.fetch(path)
        assert path.read_bytes() == path.stem.encode() * 1000
        assert len(here(copy)) <= 2
        time.sleep(0.01)
    other = WorkingCopy(BucketPlace(place.bucket, "e/y"), LAYOUT)  # another run, the same disk
    with other.hold("train", WRITES):
        use(other, "zy")
    assert here(copy) + here(other) == "dy"  # "d" is in use by this process


def test_nothing_goes_that_is_not_known_to_be_in_the_bucket(
    place: BucketPlace, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEARNING_MECHANICS_CACHE_GB", "0")
    monkeypatch.setattr(working_copy_module, "PATIENCE", 0.2)
    copy = WorkingCopy(place, LAYOUT, patience=0.1)

    def damage(self: Bucket, path: Path, name: str, *args: Any) -> Any:
        raise Unreachable(f"{name} was not stored as it was sent")

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "upload", damage)
        with pytest.raises(UserError, match="not stored as it was sent"):
            work(copy, lambda: use(copy, "ab"))
        assert here(copy) == "ab"
    with copy.hold("train", WRITES):
        pass
    assert here(copy) == ""
    assert len(cloud.names("e/x/ckpt")) == 2


def test_an_answer_with_another_checksum_is_no_success(
    copy: WorkingCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bucket_module._object
    wrong = lambda blob: dataclasses.replace(real(blob), crc32c="AAAAAA==")  # noqa: E731
    monkeypatch.setattr(bucket_module, "_object", wrong)
    with pytest.raises(Unreachable, match="e/x/a was not stored as it was sent"):
        copy._bucket.upload(put(copy, "a", b"x"), "e/x/a", 0)


def test_a_file_in_use_stays(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEARNING_MECHANICS_CACHE_GB", "0")
    copy, reader = WorkingCopy(place, LAYOUT), WorkingCopy(place, LAYOUT)
    with copy.hold("train", WRITES):
        use(copy, "ab")
    a, b = copy.files("ckpt/*.tar")
    reader.fetch(a)
    copy.fetch(b)
    assert here(copy) == "ab"
    reader.fetch(b)
    copy.fetch(b)
    assert here(copy) == "b"


@pytest.mark.parametrize(
    ("disk", "kept"),
    [
        (Disk(10**10, 4 * 10**8), ""),
        (Disk(10**10, 6 * 10**8), "ab"),
        (Disk(10**13, 4 * 10**9), ""),
        (Disk(10**13, 6 * 10**9), "ab"),
    ],
)
def test_a_nearly_full_disk_makes_room(
    copy: WorkingCopy, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, disk: Disk, kept: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: disk)
    with copy.hold("train", WRITES):
        use(copy, "ab")
    assert here(copy) == kept
    assert len(cloud.names("e/x/ckpt")) == 2


def test_a_disk_without_room_for_a_record_gets_room(
    copy: WorkingCopy, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, name: str, record: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(records_module.Records, "keep", full)
    with copy.hold("train", ("ckpt/*.tar", "logs/run.log")):
        use(copy, "a")
        put(copy, "logs/run.log", b"line\n")
    assert here(copy) == ""
    assert cloud.read("e/x/ckpt/a.tar") == b"a" * 1000
    assert cloud.read("e/x/logs/run.log") == b"line\n"


# ---------------------------------------------------------------- a bucket that does not answer


def test_what_could_not_be_sent_is_named_and_sent_the_next_time(
    copy: WorkingCopy, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working_copy_module, "PATIENCE", 0.3)
    monkeypatch.setattr(bucket_module, "_WITHIN_UPLOAD", None)
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("learning-mechanics.train")
    log.addHandler(handler)

    def through_a_failure() -> None:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", closed_port())
        use(copy, "a")
        time.sleep(1)  # work goes on
        use(copy, "b")

    with pytest.raises(UserError) as caught:
        work(copy, through_a_failure)
    log.removeHandler(handler)
    message = str(caught.value)
    assert "does not answer as it should" in message
    assert "kept on this machine: ckpt/a.tar, ckpt/b.tar" in message
    assert "run the same command again" in message
    assert "\n" not in message
    assert any("kept on this machine: ckpt/a.tar" in line for line in records)
    assert here(copy) == "ab"
    assert cloud.names("e/x/ckpt") == []
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.emulator.url)
    again = WorkingCopy(copy._place, LAYOUT)
    with again.hold("train", WRITES):
        pass
    assert cloud.names("e/x/ckpt") == ["e/x/ckpt/a.tar", "e/x/ckpt/b.tar"]


def test_a_mistake_of_the_work_is_what_is_told_and_the_rest_is_sent(
    copy: WorkingCopy, cloud: Cloud
) -> None:
    def fail() -> None:
        use(copy, "a")
        raise UserError("mine")

    with pytest.raises(UserError, match=r"^mine$"):
        work(copy, fail)
    assert cloud.names() == ["e/x/ckpt/a.tar"]


def test_a_second_writer_ends_the_work(copy: WorkingCopy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Bucket, path: Path, name: str, *args: Any) -> Any:
        raise Superseded(f"{name} was changed by another process")

    monkeypatch.setattr(Bucket, "upload", refused)

    def go_on() -> None:
        while True:
            use(copy, "ab")

    with pytest.raises(Superseded, match=r"ckpt/a\.tar was changed"):
        work(copy, go_on)


def test_a_run_that_another_machine_took_is_not_written_any_more(
    copy: WorkingCopy, cloud: Cloud
) -> None:
    def lose() -> None:
        assert copy._lease is not None
        copy._lease._lost = Superseded("taken")
        use(copy, "a")

    with pytest.raises(Superseded, match="taken"):
        work(copy, lose)
    assert cloud.names("e/x/ckpt") == []


# ---------------------------------------------------------------- other machines


def test_the_bucket_is_the_truth(
    copy: WorkingCopy,
    cloud: Cloud,
    place: BucketPlace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with copy.hold("train", WRITES):
        put(copy, "id.json", b"1")
        put(copy, "small.h5", b"old")
        use(copy, "abc")
    cloud.write("e/x/small.h5", b"new")
    cloud.write("e/x/ckpt/a.tar", b"new")
    cloud.delete("e/x/ckpt/b.tar")
    put(copy, "ckpt/c.tar", b"changed here, too late")
    cloud.write("e/x/ckpt/c.tar", b"new")
    with copy.hold("train", WRITES):
        assert [path.stem for path in copy.files("ckpt/*.tar")] == ["a", "c"]
        for path in copy.files("ckpt/*.tar"):
            copy.fetch(path)
            assert path.read_bytes() == b"new"
        assert (copy.root / "small.h5").read_bytes() == b"new"
    assert cloud.read("e/x/ckpt/c.tar") == b"new"


def test_a_run_that_was_replaced_leaves_nothing(copy: WorkingCopy, cloud: Cloud) -> None:
    with copy.hold("train", WRITES):
        put(copy, "id.json", b"1")
        use(copy, "a")
    put(copy, "ckpt/unsent.tar", b"of the old run")
    cloud.write("e/x/id.json", b"2")
    cloud.delete("e/x/ckpt/a.tar")
    with copy.hold("train", WRITES):
        assert here(copy) == ""
        assert (copy.root / "id.json").read_bytes() == b"2"
    assert cloud.names("e/x/ckpt") == []
    cloud.delete("e/x/id.json")
    copy.refresh()
    assert not (copy.root / "id.json").exists()


def test_a_record_that_was_not_written_any_more(copy: WorkingCopy, cloud: Cloud) -> None:
    with copy.hold("train", WRITES):
        put(copy, "id.json", b"1")
        use(copy, "a")
    for name in ("id.json", "ckpt/a.tar"):
        copy._records.forget(name)
    with copy.hold("train", WRITES):
        assert copy._uploads is not None
        assert copy._uploads._left == []
    assert here(copy) == "a"


def test_removing_waits_for_what_is_being_sent(
    copy: WorkingCopy, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, upload = threading.Event(), Bucket.upload

    def slow(self: Bucket, *args: Any) -> Any:
        begun.set()
        time.sleep(0.2)
        return upload(self, *args)

    monkeypatch.setattr(Bucket, "upload", slow)
    with copy.hold("train", WRITES):
        use(copy, "ab")
        assert begun.wait(5)
        for path in copy.files("ckpt/*.tar"):
            copy.remove(path)
            path.unlink()
    assert cloud.names("e/x/ckpt") == []


def test_lines_of_all_stages_and_machines_are_in_one_log(
    copy: WorkingCopy,
    cloud: Cloud,
    place: BucketPlace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = elsewhere(place, tmp_path, monkeypatch)
    for number in range(2):
        for machine in (copy, other):
            with machine.hold("train", WRITES):
                (machine.root / "logs").mkdir(exist_ok=True)
                with open(machine.root / "logs" / "run.log", "a") as log:
                    log.write(f"{machine.root.parents[2].name} {number}\n")
    lines = cloud.read("e/x/logs/run.log").decode().splitlines()
    assert lines == ["machine 0", "elsewhere 0", "machine 1", "elsewhere 1"]


def test_no_permission_is_told_at_once(copy: WorkingCopy, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(403) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        with pytest.raises(Unreachable, match="access denied"), copy.hold("train", WRITES):
            pass
    assert not os.path.exists(copy.root / "ckpt")


def test_what_was_replaced_or_deleted_since_it_was_seen(
    copy: WorkingCopy,
    cloud: Cloud,
    place: BucketPlace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with copy.hold("train", WRITES):
        put(copy, "id.json", b"1")
        use(copy, "ab")
    other = elsewhere(place, tmp_path, monkeypatch)
    other.refresh()
    cloud.write("e/x/ckpt/a.tar", b"new")
    cloud.delete("e/x/ckpt/b.tar")
    for name in "ab":
        other.fetch(other.root / f"ckpt/{name}.tar")
    assert (other.root / "ckpt/a.tar").read_bytes() == b"new"
    assert here(other) == "a"


def test_a_description_that_was_copied_anew_is_of_the_same_run(
    copy: WorkingCopy, cloud: Cloud
) -> None:
    with copy.hold("train", WRITES):
        put(copy, "id.json", b"1")
    cloud.write("e/x/id.json", b"1")
    put(copy, "ckpt/a.tar", b"not sent yet")
    with copy.hold("train", WRITES):
        pass
    assert cloud.read("e/x/ckpt/a.tar") == b"not sent yet"


def test_what_grew_after_it_was_sent_without_a_record(copy: WorkingCopy, cloud: Cloud) -> None:
    """A process was killed just after an upload, and had written more meanwhile."""
    with copy.hold("train", WRITES):
        put(copy, "id.json", b"1")
        put(copy, "small.h5", b"line 1")
    before = copy._records.get("small.h5")
    with copy.hold("train", WRITES):
        put(copy, "small.h5", b"line 1, line 2")
    assert before is not None
    copy._records.keep("small.h5", before)
    put(copy, "small.h5", b"line 1, line 2, line 3")
    with copy.hold("train", WRITES):
        assert (copy.root / "small.h5").read_bytes() == b"line 1, line 2, line 3"
    assert cloud.read("e/x/small.h5") == b"line 1, line 2, line 3"
