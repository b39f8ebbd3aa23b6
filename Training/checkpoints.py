"""Checkpoints in and out: tensors and plain containers, read without running any code.

``ckpt/step{N}.tar`` holds, N being the number of updates done: ``epoch, step,
model_state_dict, optimizer_state_dict, scheduler_state_dict, observer_state_dict,
buffer_state_dict, loss_state, rng_state, data_state`` and, where they were evaluated,
``train_loss, test_loss, accuracy1, accuracy5``.
"""

import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from Utils.errors import Unreadable, UserError, storage_error
from Utils.rundir import RunFolder
from Utils.storage import write_atomically

Checkpoint = dict[str, Any]

_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of torch.save began before torch 1.6, which wrote no zip archives."""

_NUMBER_TYPES = ("float64", "float32", "int64", "int32", "bool")


def save_checkpoint(path: Path, content: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: the target, ``RunFolder.checkpoint(step)``.
        content: tensors and plain containers.

    Raises:
        UserError: full disk, read-only folder and the like; an older file is intact.
    """
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path, mmap: bool = True) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Args:
        path: the file; one of upstream neural-mechanics is welcome, too, also from before
            torch 1.6, and with numpy's numbers in it.
        mmap: read tensors when they are used; writing to them does not change the file.

    Raises:
        UserError: missing, truncated, damaged, or with contents other than tensors, numbers and
            plain containers.
    """
    advice = "delete it, and run train.py again to continue from the one before"
    try:
        is_archive = is_zip(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run train.py for this run first") from None
    except OSError as error:
        raise storage_error(error, path) from error
    if is_archive is None:
        raise UserError(f"{path} is truncated or no checkpoint; {advice}")
    try:
        with torch.serialization.safe_globals(_numpy_numbers()):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=mmap and is_archive
            )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain containers and is not read, "
            "because that could run code; save it again without"
        ) from error
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(f"{path} is damaged ({_first_line(error)}); {advice}") from error
    if not isinstance(content, dict) or "model_state_dict" not in content:
        raise UserError(f"{path} is no checkpoint of train.py; delete it")
    return content


def is_zip(path: Path) -> bool | None:
    """Whether a file of torch.save is a whole zip archive, or one from before torch 1.6.

    Returns:
        ``None`` if it is neither.
    """
    with open(path, "rb") as file:
        if zipfile.is_zipfile(file):  # its directory is at its end
            return True
        file.seek(0)
        return False if file.read(len(_BEFORE_ZIP)) == _BEFORE_ZIP else None


def _numpy_numbers() -> list[Any]:
    """What unpickles a single number of numpy's: it makes data, and runs nothing."""
    make = np.float64(0).__reduce__()[0]  # by the names of numpy 1 and 2
    names = [(make, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *(type(np.dtype(name)) for name in _NUMBER_TYPES)]


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Give ``model`` the parameters and buffers of a checkpoint.

    Raises:
        UserError: they are another model's.
    """
    try:
        model.load_state_dict(checkpoint["model_state_dict"])
    except RuntimeError as error:
        raise UserError(
            f"the checkpoint of step {checkpoint['step']} does not fit the model "
            f"({' '.join(str(error).split())}); bring the model's code back, or start anew with "
            "--overwrite"
        ) from error


def newest_checkpoint(run: RunFolder, log: logging.Logger) -> Checkpoint | None:
    """The run's newest checkpoint that can be read; ``None`` if there is none.

    Args:
        run: the run.
        log: gets a line for each newer one that cannot be read and is passed over.

    Raises:
        UserError: one cannot be fetched, which may well be readable.
    """
    for step in reversed(run.checkpoint_steps()):
        path = run.checkpoint(step)
        try:
            run.fetch(path)
        except Unreadable as error:  # of other errors, going on as without it would be the worst
            log.warning("passing over a checkpoint: %s", error)
            continue
        try:
            return load_checkpoint(path, mmap=False)
        except UserError as error:
            log.warning("passing over a checkpoint: %s", run.remote.shown(str(error)))
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")
