"""Which conservation laws a run follows."""

import json

import torch
from torch import nn

from Models.symmetry import Laws, find_laws, no_laws
from Training.config import TrainConfig
from Training.folder import WITHOUT_EFFECT

_ANY_LAWS = WITHOUT_EFFECT | {"seed", "init_seed", "lr"}
"""Flags that do not change the laws."""

_latest: dict[object, Laws] = {}
"""The laws that were found last: runs of a sweep share them, whose steps may take less time."""


def laws_of(config: TrainConfig, model: nn.Module) -> Laws:
    """The laws that a run follows: those of its model, or none if it shall not.

    Args:
        config: of the run.
        model: its network, in training mode.
    """
    if not config.laws:
        return no_laws("they were not looked for, with --no-laws")
    flags = {name: value for name, value in config.flat().items() if name not in _ANY_LAWS}
    kinds = tuple((name, type(module)) for name, module in model.named_modules())
    key = json.dumps(flags, sort_keys=True), repr(model), kinds  # a user's code may have changed
    if key not in _latest:
        shape, dtype = config.data_entry.input_shape, getattr(torch, config.dtype)
        example = torch.zeros(2, *shape, dtype=dtype)
        _latest.clear()
        _latest[key] = find_laws(model, example, config.loss, config.balance)
    return _latest[key]
