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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from Training.checkpoints import Checkpoint, is_zip, load_checkpoint
from Training.config import ExtractConfig
from Training.rebuild import rebuild_model
from Training.upstream import is_upstreams, read_hyperparameters, refuse_their_files
from Utils.devices import select_device
from Utils.errors import Unreachable, Unreadable, UserError, left_out
from Utils.logging import progress, stage_logger
from Utils.rundir import RunFolder
from Utils.storage import open_hdf5, write_hdf5

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
        in_our_layout: _Layout = _as_it_is
        if is_upstreams(hyperparameters):
            level, in_our_layout = _move_in(config, run, hyperparameters, log)
        todo = [step for step in steps if config.overwrite or _lacks(run, step, level)]
        probe = _Probe(config, run, hyperparameters) if level != "none" and todo else None
        unreadable: dict[str, UserError] = {}
        for step in progress(todo, "extracting"):
            path = run.checkpoint(step)
            try:
                source = _source(run.fetch(path))
                arrays = _features(path, load_checkpoint(path), in_our_layout, probe)
            except Unreachable:
                raise
            except UserError as error:
                unreadable[path.name] = error
                continue
            attributes = {"step": step, "source": source, "probe": level}
            write_hdf5(run.features(step), arrays, attributes)
            of = run.tags(path).get("crc32c", "")
            run.publish(run.features(step), source=source, probe=level, checkpoint=of)
        new = len(todo) - len(unreadable)
        folder = run.shown(run.probe.parent)
        log.info("%d new checkpoints of %d extracted to %s", new, len(steps), folder)
    if unreadable:
        raise left_out(unreadable, len(steps))
    return new


_Layout = Callable[[Path, Checkpoint], Checkpoint]
"""Gives a checkpoint the layout of ours."""


def _as_it_is(path: Path, checkpoint: Checkpoint) -> Checkpoint:
    return checkpoint


def _move_in(
    config: ExtractConfig, run: RunFolder, hyperparameters: dict[str, Any], log: logging.Logger
) -> tuple[str, _Layout]:
    """Add what a run of neural-mechanics lacks: laws, and a probe batch if there are data.

    Returns:
        what can be computed on the probe batch, and what translates the checkpoints.

    Raises:
        UserError: its model does not exist here, or its own features are in the way.
    """
    # brings torchvision, for which our own runs need not wait
    from Training.upstream_checkpoints import UpstreamCheckpoints, add_laws, add_probe

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
    return level, UpstreamCheckpoints(hyperparameters)


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


def _features(
    path: Path, checkpoint: Checkpoint, in_our_layout: _Layout, probe: "_Probe | None"
) -> dict[str, Any]:
    """The arrays of a feature file, by their path in it."""
    try:
        checkpoint = in_our_layout(path, checkpoint)
        arrays = dict(_content(checkpoint))
    except KeyError as error:
        raise UserError(f"{path} is no checkpoint of this train.py: it lacks {error}") from error
    return arrays if probe is None else arrays | probe(path, checkpoint)


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


def _array(value: Tensor | float) -> Any:
    """A tensor as numpy sees it, bfloat16, which numpy lacks, as float32; a number in full."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    return (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()


class _Probe:
    """Runs a run's model on its probe batch.

    Args:
        config: what to compute, and where.
        run: the run's folder.
        hyperparameters: the run's.

    Raises:
        UserError: the model cannot be built, or the probe batch cannot be read.
    """

    def __init__(self, config: ExtractConfig, run: RunFolder, hyperparameters: dict[str, Any]):
        self._device = select_device(config.device)
        model = rebuild_model(run, hyperparameters, "use --probe none")
        self._model = model.to(self._device).eval()
        self._activations: dict[str, Any] = {}
        advice = "delete it and run train.py for this run again, or use --probe none"
        with open_hdf5(run.probe, advice) as file:
            self._inputs = torch.from_numpy(file["inputs"][()]).to(self._device)
        if config.probe == "activations":
            for name, module in self._model.named_modules():
                if name and not any(module.children()):
                    module.register_forward_hook(self._keep(f"probe/activations/{name}"))

    def _keep(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._activations[path] = _array(output.clone())  # it may be changed in place

        return hook

    @torch.no_grad()
    def __call__(self, path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
        """``probe/logits`` [N, classes] and, if asked for, ``probe/activations/<module>``."""
        self._activations.clear()
        try:
            self._model.load_state_dict(checkpoint["model_state_dict"])
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path} does not fit the model ({reason}); bring the model's code back, or use "
                "--probe none"
            ) from error
        return {"probe/logits": _array(self._model(self._inputs)), **self._activations}
