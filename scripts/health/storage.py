"""Where results go: the disk, HDF5 on it, and buckets."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from scripts.health import INSTALL, Finding, one_line
from Utils.buckets.places import BucketPlace, bucket_place
from Utils.errors import UserError

LITTLE, TOO_LITTLE = 5e9, 1e8
"""Bytes: a demo fits into the second, the runs of a day into the first."""


def local_folder(save_dir: str) -> Path:
    """The folder that results are written to, before an upload if ``save_dir`` is a bucket.

    Where it does not exist yet, the nearest one that does.
    """
    path = Path(tempfile.gettempdir() if save_dir.startswith("gs://") else save_dir)
    path = path.expanduser().absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def check_disk(save_dir: str) -> Iterator[Finding]:
    """Whether files can be written to the folder, and how much space there is."""
    folder = local_folder(save_dir)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(os.urandom(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        fix = "choose another --save-dir, or mend its permissions"
        yield Finding("FAIL", "disk", f"cannot write to {folder}: {error.strerror}", fix)
        return
    yield judge_space(folder, shutil.disk_usage(folder).free)


def judge_space(folder: Path, free: int) -> Finding:
    """What ``free`` bytes in a folder are enough for."""
    found = f"{folder} is writable, {free / 1e9:.1f} GB are free"
    if free >= LITTLE:
        return Finding("ok", "disk", found)
    fix = "free some space, or choose another --save-dir"
    return Finding("warn" if free >= TOO_LITTLE else "FAIL", "disk", found, fix)


def check_hdf5(save_dir: str) -> Iterator[Finding]:
    """Write an HDF5 file as the stages do, and read it; some network disks cannot lock files."""
    import h5py
    import numpy as np

    from Utils.storage import open_hdf5, write_hdf5

    folder = local_folder(save_dir)
    values = np.random.default_rng(0).standard_normal((100, 100))
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch) / "doctor.h5"
            write_hdf5(path, {"group/values": values}, {"attribute": "µ"})
            with open_hdf5(path, "") as file:
                same = np.array_equal(file["group/values"][()], values)
                same &= file.attrs["attribute"] == "µ"
    except Exception as error:
        fix = "choose another --save-dir; on network disks, export HDF5_USE_FILE_LOCKING=FALSE"
        yield Finding("FAIL", "hdf5", f"in {folder}: {one_line(error)}", fix)
        return
    library = f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}"
    if same:
        yield Finding("ok", "hdf5", f"{library}: written and read")
    else:
        yield Finding("FAIL", "hdf5", f"{library}: read other values than written", INSTALL)


def check_bucket(save_dir: str, seconds: float) -> Iterator[Finding]:
    """Write, read and delete a small object below ``gs://bucket/prefix``.

    Args:
        save_dir: the address; a local folder has nothing to check.
        seconds: to try for, each of the three.
    """
    try:
        place = bucket_place(save_dir)
        if place is not None:
            _round_trip(place / f"doctor-{uuid.uuid4().hex}", seconds)
            yield Finding("ok", "bucket", f"{save_dir}: an object was written, read and deleted")
    except UserError as error:
        found, _, fix = str(error).partition("; ")
        yield Finding("FAIL", "bucket", found, fix)


def _round_trip(place: BucketPlace, seconds: float) -> None:
    from Utils.buckets.bucket import Bucket  # brings the client of Cloud Storage

    bucket, content = Bucket(place.bucket, seconds), os.urandom(1024)
    stored = bucket.write(place.prefix, content, 0)
    read = bucket.read(stored)
    bucket.delete(place.prefix)
    if read != content:
        raise UserError(f"{place.url}: what was read is not what was written; {INSTALL}")
