"""From checkpoints to features: weights, optimizer buffers and probe outputs as plain HDF5.

``feats/step{N}.h5`` holds ``/metrics/*`` (scalars), ``/params/<parameter>``,
``/buffers/<parameter>.<buffer>``, ``/state/<module buffer>``, ``/conservation/*`` (what the
observer knew, and its record since the previous checkpoint) and, if asked for, ``/probe/*``:
``logits`` and ``activations/<module>`` on the run's fixed probe batch, in evaluation mode.
Its attribute ``source`` identifies the checkpoint, and ``probe`` what was computed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from Models import ModelConfig, build_model
from Training.checkpoints import Checkpoint, load_checkpoint
from Training.config import ExtractConfig
from Utils.devices import select_device
from Utils.errors import UserError
from Utils.logging import progress, stage_logger
from Utils.rundir import RunFolder
from Utils.storage import open_hdf5, write_hdf5

METRICS = ("epoch", "step", "train_loss", "test_loss", "accuracy1", "accuracy5")
"""The numbers a checkpoint may hold."""

_AGAIN = "delete it and run extract.py again"


def extract(config: ExtractConfig, run: RunFolder) -> int:
    """Write the features of every checkpoint that has none yet.

    Args:
        config: what to extract.
        run: the run's folder.

    Returns:
        how many checkpoints were extracted.

    Raises:
        UserError: there is no run, or a checkpoint or feature file cannot be read or written.
    """
    hyperparameters = run.read_hyperparameters()
    steps = run.checkpoint_steps()
    if not steps:
        raise UserError(f"{run.path} has no checkpoints; run train.py for this run first")
    with run.lock("extract"):
        log = stage_logger("extract", run.logs / "run.log")
        done = set(run.feature_steps())
        todo = [s for s in steps if config.overwrite or s not in done or _lacks(run, s, config)]
        probe = _Probe(config, run, hyperparameters) if config.probe != "none" and todo else None
        for step in progress(todo, "extracting"):
            _extract_step(run, step, config.probe, probe)
        log.info("%d of %d checkpoints extracted to %s", len(todo), len(steps), run.probe.parent)
    return len(todo)


def _lacks(run: RunFolder, step: int, config: ExtractConfig) -> bool:
    """Whether a step's features were made from another checkpoint, or lack probe outputs."""
    with open_hdf5(run.features(step), _AGAIN) as file:
        if file.attrs["source"] != _source(run.checkpoint(step)):
            return True
        levels = ("none", "logits", "activations")
        return levels.index(file.attrs["probe"]) < levels.index(config.probe)


def _source(checkpoint: Path) -> str:
    status = checkpoint.stat()
    return f"{status.st_size} bytes, written at {status.st_mtime_ns} ns"


def _extract_step(run: RunFolder, step: int, level: str, probe: "_Probe | None") -> None:
    path = run.checkpoint(step)
    source = _source(path)
    checkpoint = load_checkpoint(path)
    arrays = dict(_features(checkpoint))
    if probe is not None:
        arrays |= probe(checkpoint)
    attributes = {"step": step, "source": source, "probe": level}
    write_hdf5(run.features(step), arrays, attributes)


def _features(checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
    """The arrays in a checkpoint by their path in the feature file."""
    optimizer = checkpoint["optimizer_state_dict"]
    parameters = [name for group in optimizer["param_groups"] for name in group["param_names"]]
    for name in METRICS:
        if name in checkpoint:
            yield f"metrics/{name}", checkpoint[name]
    for name, tensor in checkpoint["model_state_dict"].items():
        yield f"{'params' if name in parameters else 'state'}/{name}", _array(tensor)
    for index, state in optimizer["state"].items():
        for buffer, tensor in state.items():
            if tensor is not None:
                yield f"buffers/{parameters[index]}.{buffer}", _array(torch.as_tensor(tensor))
    for name, value in checkpoint["observer_state_dict"].items():
        if isinstance(value, dict):
            for part, tensor in value.items():
                yield f"conservation/{name}/{part}", _array(tensor)
        else:
            yield f"conservation/{name}", _array(torch.as_tensor(value))


def _array(tensor: Tensor) -> Any:
    """The tensor as numpy sees it; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return tensor.cpu().numpy()


class _Probe:
    """Runs a run's model on its probe batch.

    Args:
        config: what to compute, and where.
        run: the run's folder.
        hyperparameters: the run's.
    """

    def __init__(self, config: ExtractConfig, run: RunFolder, hyperparameters: dict[str, Any]):
        known = {key: hyperparameters[key] for key in ModelConfig.model_fields}
        task = hyperparameters["task"]
        self._device = select_device(config.device)
        model = build_model(ModelConfig(**known), tuple(task["input_shape"]), task["num_classes"])
        self._model = model.to(self._device).eval()
        self._activations: dict[str, Any] = {}
        with open_hdf5(run.probe, "run train.py for this run again") as file:
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
    def __call__(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """``probe/logits`` [N, classes] and, if asked for, ``probe/activations/<module>``."""
        self._activations.clear()
        self._model.load_state_dict(checkpoint["model_state_dict"])
        return {"probe/logits": _array(self._model(self._inputs)), **self._activations}
