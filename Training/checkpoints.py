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

import torch
from torch import nn

from Utils.errors import UserError, storage_error
from Utils.rundir import RunFolder
from Utils.storage import write_atomically

Checkpoint = dict[str, Any]


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
        path: the file; one of upstream neural-mechanics is welcome, too.
        mmap: read tensors when they are used; writing to them does not change the file.

    Raises:
        UserError: missing, truncated, damaged, or with contents other than tensors and plain
            containers.
    """
    advice = "delete it, and run train.py again to continue from the one before"
    try:
        with open(path, "rb") as file:
            is_whole = zipfile.is_zipfile(file)  # its directory is at its end
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run train.py for this run first") from None
    except OSError as error:
        raise storage_error(error, path) from error
    if not is_whole:
        raise UserError(f"{path} is truncated or no checkpoint; {advice}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
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
    """
    for step in reversed(run.checkpoint_steps()):
        try:
            return load_checkpoint(run.checkpoint(step), mmap=False)
        except UserError as error:
            log.warning("passing over a checkpoint: %s", error)
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")
