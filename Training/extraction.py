"""From checkpoints to features: weights, optimizer buffers and probe outputs as plain HDF5.

``feats/step{N}.h5`` holds ``/metrics/*`` (scalars), ``/params/<parameter>``,
``/buffers/<parameter>.<buffer>`` (the optimizer's, and those of --save-buffers),
``/state/<module buffer>``, ``/conservation/*`` (what the observer knew, and its record since the
previous checkpoint) and, if asked for, ``/probe/*``: ``logits`` and ``activations/<module>`` on
the run's fixed probe batch, in evaluation mode. Its attribute ``source``
identifies the checkpoint, and ``probe`` what was computed.

Of a run of neural-mechanics there is what it saved, by our names: of the observer only
``/conservation/time`` and, in ``/conservation/update``, the hyper-parameters of the step before
(:mod:`Training.upstream_checkpoints`).
"""

import hashlib
import logging
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from Training.checkpoints import Checkpoint, is_zip, load_checkpoint
from Training.config import ExtractConfig
from Training.probe import open_probe
from Training.stored import StoredTensor, stored_checkpoint
from Training.upstream import is_upstreams, read_hyperparameters, refuse_their_files
from Utils.errors import Unreachable, Unreadable, Unwritable, UserError, left_out
from Utils.logging import progress, stage_logger
from Utils.rundir import RunFolder
from Utils.storage import open_hdf5, write_hdf5
from Utils.workers import Failure, shared_out

METRICS = ("epoch", "step", "train_loss", "test_loss", "accuracy1", "accuracy5")
"""The numbers a checkpoint may hold."""

_LEVELS = ("none", "logits", "activations")
"""What --probe computes, each more than the one before."""


def extract(config: ExtractConfig, run: RunFolder) -> int:
    """Write the features of every checkpoint that has none yet.

    Args:
        config: what to extract.
        run: the run's folder.

    Returns:
        how many checkpoints were extracted.

    Raises:
        UserError: there is no run; a file cannot be written; or a checkpoint cannot be read,
            after all others were extracted.
    """
    hyperparameters = read_hyperparameters(run)
    steps = run.checkpoint_steps()
    if not steps:
        raise UserError(f"{run.path} has no checkpoints; run train.py for this run first")
    with run.lock("extract"):
        log = stage_logger("extract", run.logs / "run.log")
        level: str = config.probe
        if is_upstreams(hyperparameters):
            level = _move_in(config, run, hyperparameters, log)
        todo = [step for step in steps if config.overwrite or _lacks(run, step, level)]
        make = partial(_Extraction, config, run, hyperparameters, level)
        unreadable: dict[str, UserError] = {}
        parts = shared_out(make, todo, config.workers, lambda step: str(run.checkpoint(step)))
        with closing(parts) as each:
            for step, outcome in progress(each, "extracting", len(todo)):
                if isinstance(outcome, Failure):
                    if isinstance(outcome.error, (Unwritable, Unreachable)):
                        raise outcome.error
                    unreadable[run.checkpoint(step).name] = outcome.error
                else:
                    of = run.tags(run.checkpoint(step)).get("crc32c", "")
                    run.publish(run.features(step), source=outcome, probe=level, checkpoint=of)
        new = len(todo) - len(unreadable)
        folder = run.shown(run.probe.parent)
        log.info("%d new checkpoints of %d extracted to %s", new, len(steps), folder)
    if unreadable:
        raise left_out(unreadable, len(steps))
    return new


def _move_in(
    config: ExtractConfig, run: RunFolder, hyperparameters: dict[str, Any], log: logging.Logger
) -> str:
    """Add what a run of neural-mechanics lacks: laws, and a probe batch if there are data.

    Returns:
        what can be computed on the probe batch.

    Raises:
        UserError: its model does not exist here, or its own features are in the way.
    """
    # brings torchvision, for which our own runs need not wait
    from Training.upstream_checkpoints import add_laws, add_probe

    level: str = config.probe
    refuse_their_files(run.fetch(run.features(step)) for step in run.feature_steps())
    if not run.symmetries.exists():
        found = add_laws(run, hyperparameters)
        log.info("a run of neural-mechanics: %d laws found for %s", found, hyperparameters["model"])
    if config.probe != "none" and not run.probe.exists():
        try:
            add_probe(run, hyperparameters)
        except UserError as error:
            log.info("no probe outputs, as with --probe none: %s", error)
            level = "none"
    return level


def _lacks(run: RunFolder, step: int, level: str) -> bool:
    """Whether a step has no features, damaged ones, those of another checkpoint, or less."""
    known, checkpoint = run.tags(run.features(step)), run.tags(run.checkpoint(step))
    if known.get("checkpoint") and known["checkpoint"] == checkpoint.get("crc32c"):
        return _LEVELS.index(known["probe"]) < _LEVELS.index(level)
    try:
        with open_hdf5(run.fetch(run.features(step)), "") as file:
            if file.attrs["source"] != _source(run.fetch(run.checkpoint(step))):
                return True
            return _LEVELS.index(file.attrs["probe"]) < _LEVELS.index(level)
    except Unreadable:
        return True


def _source(checkpoint: Path) -> str:
    """What identifies a checkpoint wherever it is copied: a hash of its tensors' checksums."""
    try:
        if is_zip(checkpoint) is False:
            return hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        with zipfile.ZipFile(checkpoint) as archive:
            tensors = (part for part in archive.infolist() if "/data/" in part.filename)
            parts = [(part.file_size, part.CRC) for part in tensors]
    except (OSError, zipfile.BadZipFile):
        return ""  # load_checkpoint will say what is wrong with it
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class _Extraction:
    """Writes the features of one checkpoint after the other.

    Args:
        config: what to extract.
        run: the run's folder.
        hyperparameters: the run's.
        level: what can be computed on the probe batch.

    Raises:
        UserError: the model cannot be built, or the probe batch cannot be read.
    """

    def __init__(
        self, config: ExtractConfig, run: RunFolder, hyperparameters: dict[str, Any], level: str
    ):
        self._run, self._level = run, level
        self._theirs: Callable[[Path, Checkpoint], Checkpoint] | None = None
        if is_upstreams(hyperparameters):
            from Training.upstream_checkpoints import UpstreamCheckpoints  # brings torchvision

            self._theirs = UpstreamCheckpoints(hyperparameters)
        self._probe = open_probe(config, run, hyperparameters) if level != "none" else None

    def __call__(self, step: int) -> str:
        """Write the features of a step.

        Returns:
            what identifies its checkpoint.

        Raises:
            UserError: the checkpoint cannot be read, or the features not be written.
        """
        path = self._run.fetch(self._run.checkpoint(step))
        source = _source(path)
        attributes = {"step": step, "source": source, "probe": self._level}
        with stored_checkpoint(path) as checkpoint:
            write_hdf5(self._run.features(step), self._arrays(path, checkpoint), attributes)
        return source

    def _in_our_layout(self, path: Path, checkpoint: Checkpoint) -> Checkpoint:
        return checkpoint if self._theirs is None else self._theirs(path, checkpoint)

    def _arrays(self, path: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
        """The arrays of the feature file by their path in it, made one after another."""
        try:
            yield from _content(self._in_our_layout(path, checkpoint))
        except KeyError as error:
            raise UserError(
                f"{path} is no checkpoint of this train.py: it lacks {error}"
            ) from error
        if self._probe is not None:
            yield from self._probe(path, self._in_our_layout(path, load_checkpoint(path))).items()


def _content(checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
    """The arrays in a checkpoint by their path in the feature file."""
    optimizer = checkpoint["optimizer_state_dict"]
    parameters = [name for group in optimizer["param_groups"] for name in group["param_names"]]
    for name in METRICS:
        if name in checkpoint:
            yield f"metrics/{name}", checkpoint[name]
    for name, tensor in checkpoint["model_state_dict"].items():
        yield f"{'params' if name in parameters else 'state'}/{name}", _array(tensor)
    for index, state in optimizer["state"].items():
        for buffer, value in state.items():
            if value is not None:
                yield f"buffers/{parameters[index]}.{buffer}", _array(value)
    for parameter, saved in checkpoint.get("buffer_state_dict", {}).items():
        for buffer, value in saved.items():
            yield f"buffers/{parameter}.{buffer}", _array(value)
    for name, value in checkpoint["observer_state_dict"].items():
        if isinstance(value, dict):
            for part, tensor in value.items():
                yield f"conservation/{name}/{part}", _array(tensor)
        else:
            yield f"conservation/{name}", _array(value)


def _array(value: StoredTensor | Tensor | float) -> Any:
    """A tensor as it can be written, bfloat16, which numpy lacks, as float32; a number in full."""
    if isinstance(value, StoredTensor):
        return value.stream()
    if not isinstance(value, Tensor):
        return np.asarray(value)
    return (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
