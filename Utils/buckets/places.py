"""Where runs are kept: a folder, or a bucket whose files are worked on in a local copy.

A bucket's files have their working copies in ``LEARNING_MECHANICS_CACHE`` (a folder;
``~/.cache/learning-mechanics``), under the bucket's name and the objects' own. Of what is safe in
the bucket at most ``LEARNING_MECHANICS_CACHE_GB`` (20) are kept there. These are properties of a
machine, not of a run, and so no flags.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from Utils.errors import UserError

_SCHEME = "gs://"
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")  # Cloud Storage's rule


@dataclass(frozen=True)
class BucketPlace:
    """``gs://bucket/prefix``.

    Attributes:
        bucket: its name.
        prefix: begins the names of all objects; empty, or without slashes at its ends.
    """

    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def __truediv__(self, name: str) -> "BucketPlace":
        return BucketPlace(self.bucket, f"{self.prefix}/{name}".lstrip("/"))

    @property
    def working_copy(self) -> Path:
        return cache_folder() / self.bucket / self.prefix


def bucket_place(save_dir: str) -> BucketPlace | None:
    """The bucket that ``--save-dir`` names; ``None`` if it names a folder.

    Raises:
        UserError: it begins with ``gs://`` and names no bucket.
    """
    if not save_dir.startswith(_SCHEME):
        return None
    bucket, _, prefix = save_dir.removeprefix(_SCHEME).partition("/")
    parts = [part for part in prefix.split("/") if part]
    if not _BUCKET_NAME.fullmatch(bucket) or {".", ".."} & set(parts):
        raise UserError(
            f"--save-dir {save_dir}: not gs://bucket or gs://bucket/prefix; bucket names have "
            "lower-case letters, digits, dots, dashes and underscores"
        )
    return BucketPlace(bucket, "/".join(parts))


def folder_of(save_dir: str) -> Path:
    """The folder in which what ``--save-dir`` names is worked on."""
    place = bucket_place(save_dir)
    return Path(save_dir).expanduser() if place is None else place.working_copy


def cache_folder() -> Path:
    """The folder of all working copies of buckets."""
    return Path(
        os.environ.get("LEARNING_MECHANICS_CACHE", "~/.cache/learning-mechanics")
    ).expanduser()


def cache_limit() -> int:
    """How many bytes of what is safe in buckets are kept on this machine.

    Raises:
        UserError: ``LEARNING_MECHANICS_CACHE_GB`` is no number.
    """
    text = os.environ.get("LEARNING_MECHANICS_CACHE_GB", "20")
    try:
        limit = float(text) * 1e9
        if limit >= 0:
            return int(limit)
    except (ValueError, OverflowError):
        pass
    raise UserError(
        f"LEARNING_MECHANICS_CACHE_GB={text}: not a number of gigabytes; mend or unset it"
    )
