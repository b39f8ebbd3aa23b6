"""Files that are whole or absent: written beside the target, flushed, then renamed over it."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from Utils.errors import UserError, storage_error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Make ``path`` hold what ``write`` writes, or leave it as it was.

    Args:
        path: the target; its folder is made if missing.
        write: gets the temporary file beside the target that it has to write.

    Raises:
        UserError: full disk, read-only folder and the like; the old file is intact.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise storage_error(_with_errno(error), path) from error
    except RuntimeError as error:  # how torch.save reports that a write failed
        if "writ" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise storage_error(OSError(_free_space_errno(path), str(error)), path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _with_errno(error: OSError) -> OSError:
    """HDF5 tells the system's error number in its message only."""
    number = re.search(r"errno = (\d+)", str(error))
    return OSError(int(number[1]), str(error)) if number and not error.errno else error


def _free_space_errno(path: Path) -> int:
    return errno.ENOSPC if shutil.disk_usage(path.parent).free < 1 << 20 else errno.EFBIG


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented, sorted JSON, atomically."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda file: file.write_text(text))


def read_json(path: Path, advice: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        advice: what the user should do if it is missing or damaged.

    Raises:
        UserError: missing, unreadable, or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {advice}") from None
    except OSError as error:
        raise storage_error(error, path) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {advice}") from None


def write_hdf5(
    path: Path,
    arrays: Mapping[str, Any],
    attributes: Mapping[str, Any] | None = None,
    dimensions: Mapping[str, tuple[str, ...]] | None = None,
    array_attributes: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write arrays to an HDF5 file, uncompressed and contiguous, atomically.

    Args:
        path: the target.
        arrays: numpy arrays (or what converts to them) by dataset path; readers find the
            members of a group in this order.
        attributes: of the file's root.
        dimensions: for some dataset paths, the dataset that scales each axis ("" for none),
            attached as HDF5 dimension scales, as xarray expects.
        array_attributes: of some datasets.
    """

    def write(file: Path) -> None:
        with h5py.File(file, "w", track_order=True) as h5:
            for name, array in arrays.items():
                _group_of(h5, name).create_dataset(name.rpartition("/")[2], data=array)
            for key, value in (attributes or {}).items():
                h5.attrs[key] = value
            for name, values in (array_attributes or {}).items():
                h5[name].attrs.update(values)
            for name, scales in (dimensions or {}).items():
                for axis, scale in enumerate(scales):
                    if scale:
                        if not h5[scale].is_scale:
                            h5[scale].make_scale(scale.strip("/"))
                        h5[name].dims[axis].attach_scale(h5[scale])

    write_atomically(path, write)


def _group_of(h5: h5py.File, name: str) -> h5py.Group:
    """The group that holds dataset ``name``, made with the order of its members kept."""
    group: h5py.Group = h5
    for part in name.split("/")[:-1]:
        group = group[part] if part in group else group.create_group(part, track_order=True)
    return group


@contextmanager
def open_hdf5(path: Path, advice: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Args:
        path: the file.
        advice: what the user should do if it is missing, truncated or lacks a dataset.

    Raises:
        UserError: missing, truncated or not HDF5, or a dataset is not in it.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {advice}") from None
    except OSError as error:
        if error.errno:
            raise storage_error(error, path) from error
        raise UserError(f"{path} is damaged or no HDF5 file; {advice}") from None
    with file:
        try:
            yield file
        except (KeyError, OSError) as error:
            raise UserError(f"{path} is damaged or incomplete ({error}); {advice}") from error


def read_arrays(group: h5py.Group) -> dict[str, np.ndarray]:
    """All datasets below an HDF5 group, by their path within it."""
    arrays: dict[str, np.ndarray] = {}
    group.visititems(
        lambda name, item: (
            arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    )
    return arrays
