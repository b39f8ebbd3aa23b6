"""Files that are whole or absent: written beside the target, flushed, then renamed over it."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py

from Utils.errors import Unreadable, Unwritable, UserError, storage_error
from Utils.hdf5 import Hdf5Writer


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Make ``path`` hold what ``write`` writes, or leave it as it was.

    Args:
        path: the target; its folder is made if missing.
        write: gets the temporary file beside the target that it has to write.

    Raises:
        Unwritable: full disk, read-only folder and the like; the old file is intact.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise Unwritable(str(storage_error(error, path))) from error
    except RuntimeError as error:  # how torch.save reports that a write failed
        if "writ" not in str(error) and "unexpected pos" not in str(error):
            raise
        full = OSError(_free_space_errno(path), str(error))
        raise Unwritable(str(storage_error(full, path))) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _free_space_errno(path: Path) -> int:
    return errno.ENOSPC if shutil.disk_usage(path.parent).free < 1 << 20 else errno.EFBIG


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented, sorted JSON, atomically."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda file: file.write_text(text))


def read_json(path: Path, if_missing: str, if_damaged: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        if_missing: what the user should do then.
        if_damaged: likewise.

    Raises:
        UserError: missing, unreadable, or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {if_missing}") from None
    except OSError as error:
        raise storage_error(error, path) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {if_damaged}") from None


def write_hdf5(
    path: Path,
    arrays: Mapping[str, Any] | Iterable[tuple[str, Any]],
    attributes: Mapping[str, Any] | None = None,
    dimensions: Mapping[str, tuple[str, ...]] | None = None,
    array_attributes: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write arrays to an HDF5 file, uncompressed and contiguous, atomically.

    Args:
        path: the target.
        arrays: numpy arrays (or what converts to them, or :class:`Utils.hdf5.Stream`) by
            dataset path; readers find the members of a group in this order. Of pairs that are
            made one after another, only one is held.
        attributes: of the file's root.
        dimensions: for some dataset paths, the dataset that scales each axis, attached as
            HDF5 dimension scales. xarray asks that all axes of a dataset have one, and that
            it lies in the dataset's group or above.
        array_attributes: of some datasets.
    """

    def write(file: Path) -> None:
        with Hdf5Writer(file) as h5:
            h5.write(arrays.items() if isinstance(arrays, Mapping) else arrays)
            h5.attributes(attributes or {})
            for name, values in (array_attributes or {}).items():
                h5.attributes(values, name)
            h5.scales(dimensions or {})

    write_atomically(path, write)


@contextmanager
def open_hdf5(path: Path, advice: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Args:
        path: the file.
        advice: what the user should do if it is missing, truncated or lacks a dataset.

    Raises:
        Unreadable: missing, truncated or not HDF5, or a dataset is not in it.
        UserError: permission denied and the like.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise Unreadable(f"{path} does not exist; {advice}") from None
    except OSError as error:
        if error.errno:
            raise storage_error(error, path) from error
        raise Unreadable(f"{path} is damaged or no HDF5 file; {advice}") from None
    with file:
        try:
            yield file
        except (KeyError, OSError) as error:
            reason = error.args[0] if error.args else "no message"
            raise Unreadable(f"{path} is damaged or incomplete ({reason}); {advice}") from error


def datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """All datasets below an HDF5 group, by their path within it, in the file's order."""
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            yield from ((f"{name}/{path}", dataset) for path, dataset in datasets(item))
        else:
            yield name, item
