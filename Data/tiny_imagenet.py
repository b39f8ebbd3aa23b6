"""Tiny ImageNet as its archive has it, and how its validation images get class folders.

The archive ``tiny-imagenet-200.zip`` unpacks to ``train/<wnid>/images/*.JPEG``, but has all
validation images in ``val/images`` and their classes in ``val/val_annotations.txt``.
"""

from collections import defaultdict
from pathlib import Path

from Utils.errors import UserError, storage_error

FOLDER = "tiny-imagenet-200"
"""What the archive unpacks to, in the data folder."""

_ARCHIVE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def check_set_up(data_dir: Path) -> None:
    """Raise :class:`UserError` if :func:`set_up` has to be run first, or files are missing."""
    folder = data_dir / FOLDER
    _check_unpacked(data_dir)
    if (folder / "val" / "images").is_dir():
        raise UserError(
            f"dataset tiny-imagenet: {folder.absolute()}/val has no class folders yet; run "
            f"python scripts/setup_tiny_imagenet.py --data-dir {data_dir}"
        )


def set_up(data_dir: Path) -> int:
    """Move every validation image from ``val/images`` to ``val/<wnid>/images``.

    Images are renamed one by one, and ``val/images`` is removed when it is empty, so it can be
    killed at any time and run again. ``val_annotations.txt`` stays: it has the bounding boxes.

    Args:
        data_dir: the folder with ``tiny-imagenet-200``.

    Returns:
        how many images were moved.

    Raises:
        UserError: files are missing, or images and annotations do not belong together; nothing
            is lost, and all that can be moved has been.
    """
    _check_unpacked(data_dir)
    val = data_dir / FOLDER / "val"
    source, annotations = val / "images", val / "val_annotations.txt"
    if not source.is_dir() and not annotations.is_file():  # as upstream's code leaves it
        return 0
    try:
        moved, missing = _move(source, _read_annotations(annotations))
        if missing:
            raise UserError(
                f"{len(missing)} annotated images are not in {source}, such as {missing[0]}; "
                f"unzip {_ARCHIVE} again"
            )
        if source.is_dir():
            rest = next(source.iterdir(), None)
            if rest is not None:
                raise UserError(f"{rest} is not in {annotations}; move it elsewhere")
            source.rmdir()
    except OSError as error:
        raise storage_error(error, val) from error
    return moved


def _check_unpacked(data_dir: Path) -> None:
    folder = data_dir / FOLDER
    for part in ("train", "val"):
        if not (folder / part).is_dir():
            raise UserError(
                f"dataset tiny-imagenet: there is no {folder.absolute()}/{part}; unzip {_ARCHIVE} "
                f"in {data_dir.absolute()}, then run python scripts/setup_tiny_imagenet.py "
                f"--data-dir {data_dir}"
            )


def _read_annotations(path: Path) -> dict[str, list[str]]:
    """The names of the validation images by their class: lines of name, class and a box."""
    if not path.is_file():
        raise UserError(f"there is no {path}; unzip {_ARCHIVE} again")
    names: dict[str, list[str]] = defaultdict(list)
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        if not name or not wnid or "/" in name + wnid:
            raise UserError(
                f"line {number} of {path} is no annotation: {line[:80]!r}; unzip {_ARCHIVE} again"
            )
        names[wnid].append(name)
    return names


def _move(source: Path, names: dict[str, list[str]]) -> tuple[int, list[str]]:
    """Move the images; returns how many were moved, and which are in neither place."""
    moved, missing = 0, []
    for wnid, images in names.items():
        folder = source.parent / wnid / "images"
        folder.mkdir(parents=True, exist_ok=True)
        for name in images:
            old, new = source / name, folder / name
            if new.exists() and old.exists():
                raise UserError(f"both {old} and {new} exist; delete the one that is not whole")
            try:
                old.rename(new)
                moved += 1
            except FileNotFoundError:
                if not new.exists():
                    missing.append(name)
    return moved, missing
