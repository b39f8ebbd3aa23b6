"""Checkpoints of neural-mechanics in the layout of ours, and what its runs lack beside them.

They hold the state dicts of the model, of the optimizer and of the schedule
(``utils/optimize.py`` there). Its files are never written to.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from Data import load_dataset
from Data.batches import probe_batch
from Models import ModelConfig, build_model
from Models.symmetry import find_laws
from Models.weights import misfit, with_our_names
from Training.checkpoints import Checkpoint
from Training.rebuild import rebuild_model
from Training.upstream import gradient_flow_time, phases
from Utils.config import validate
from Utils.errors import UserError
from Utils.rundir import RunFolder
from Utils.storage import write_hdf5

_STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})

_UPDATE = ("lr", "weight_decay", "momentum", "dampening", "nesterov")
"""What is kept of the hyper-parameters that an optimizer's state dict tells."""


class UpstreamCheckpoints:
    """Gives a run's checkpoints the layout of ours, as far as they go.

    Parameters get our names, buffers lie beside the momentum, and the observer's state is the
    time and the hyper-parameters (``update``) of the step before.

    Args:
        hyperparameters: translated.
    """

    def __init__(self, hyperparameters: Mapping[str, Any]):
        task = hyperparameters["task"]
        known = ModelConfig.saved_in(hyperparameters)
        config = validate(ModelConfig, known, "hyperparameters.json")
        with torch.device("meta"):  # names and shapes are enough
            self._model = build_model(config, task["input_shape"], task["num_classes"])
        self._phases = phases(hyperparameters)

    def __call__(self, path: Path, checkpoint: Checkpoint) -> Checkpoint:
        """The content of a checkpoint in our layout.

        Raises:
            UserError: it is of another model.
            KeyError: it lacks what every checkpoint of neural-mechanics has.
        """
        state = with_our_names(self._model, checkpoint["model_state_dict"])
        if found := misfit(self._model, state):
            raise UserError(
                f"{path} does not fit the model that hyperparameters.json names: {found}"
            )
        names = [name for name in state if name.rpartition(".")[2] not in _STATISTICS]
        optimizer = checkpoint["optimizer_state_dict"]
        keys = [key for group in optimizer["param_groups"] for key in group["params"]]
        if len(keys) != len(names):
            raise UserError(f"{path}: its optimizer has {len(keys)} parameters, not {len(names)}")
        group, place = optimizer["param_groups"][0], {key: i for i, key in enumerate(keys)}
        return {
            **checkpoint,
            "model_state_dict": state,
            "optimizer_state_dict": {
                "param_groups": [{"param_names": names}],
                "state": {place[key]: _flat(own) for key, own in optimizer["state"].items()},
            },
            "observer_state_dict": {
                "time": gradient_flow_time(self._phases, checkpoint["step"]),
                "update": {name: float(group.get(name, 0.0)) for name in _UPDATE},
            },
        }


def _flat(state: Mapping[str, Any]) -> dict[str, Tensor | float | None]:
    """A parameter's buffers, those of ``--save-buffers`` among them."""
    own = {name: value for name, value in state.items() if name != "buffers"}
    return {**own, **state.get("buffers", {})}


def add_laws(run: RunFolder, hyperparameters: dict[str, Any]) -> int:
    """Find the laws of a run's architecture and loss, and write ``symmetries.h5``.

    None of its architectures has matrix laws.

    Returns:
        how many there are.

    Raises:
        UserError: the file cannot be written.
    """
    model = rebuild_model(run, hyperparameters, "nothing can be extracted without it")
    example = torch.zeros(2, *hyperparameters["task"]["input_shape"])
    laws = find_laws(model, example, hyperparameters["loss"], matrices=False)
    laws.save(run.symmetries)
    run.publish(run.symmetries)
    return len(laws)


def add_probe(run: RunFolder, hyperparameters: Mapping[str, Any]) -> None:
    """Draw a run's probe batch, of the size that is our default, and write ``feats/probe.h5``.

    Raises:
        UserError: the data set is not there.
    """
    name, seed = hyperparameters["dataset"], hyperparameters["seed"]
    dataset = load_dataset(name, hyperparameters["data_dir"])
    inputs, targets = probe_batch(dataset, hyperparameters["probe_size"], seed)
    write_hdf5(run.probe, {"inputs": inputs.numpy(), "targets": targets.numpy()})
    run.publish(run.probe)
