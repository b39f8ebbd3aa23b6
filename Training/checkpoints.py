"""Checkpoints in and out: tensors and plain containers, read without running any code.

``ckpt/step{N}.tar`` holds, N being the number of updates done: ``epoch, step,
model_state_dict, optimizer_state_dict, scheduler_state_dict, observer_state_dict, loss_state,
rng_state, data_state`` and, where they were evaluated, ``train_loss, test_loss, accuracy1,
accuracy5``.
"""

import logging
import pickle
from pathlib import Path
from typing import Any

import torch

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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run train.py for this run first") from None
    except OSError as error:
        raise storage_error(error, path) from error
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{path} is truncated or no checkpoint ({reason[0] if reason else 'empty file'}); "
            "delete it, and run train.py again to continue from the one before"
        ) from error
    if not isinstance(content, dict) or "model_state_dict" not in content:
        raise UserError(f"{path} is no checkpoint of train.py; delete it")
    return content


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
