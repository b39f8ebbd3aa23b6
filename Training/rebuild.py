"""The model and the configuration of a run, from what its folder says of them."""

from typing import Any

from torch import nn

from Models import ModelConfig, build_model
from Training.config import TrainConfig
from Utils.config import validate
from Utils.errors import UserError
from Utils.rundir import RunFolder


def rebuild_config(run: RunFolder, hyperparameters: dict[str, Any]) -> TrainConfig:
    """The configuration that a run was trained with; flags it does not know have defaults.

    Args:
        run: its folder.
        hyperparameters: as ``run.read_hyperparameters()`` gives them.

    Raises:
        UserError: they are no configuration of this ``train.py``.
    """
    fields = TrainConfig.model_fields
    known = {key: value for key, value in hyperparameters.items() if key in fields}
    return validate(TrainConfig, known, str(run.hyperparameters))


def rebuild_model(run: RunFolder, hyperparameters: dict[str, Any], instead: str) -> nn.Module:
    """A run's architecture, on the CPU, with weights that those of a checkpoint are to replace.

    Args:
        run: its folder.
        hyperparameters: as ``run.read_hyperparameters()`` gives them.
        instead: what the user can do without the model, for messages ("use --probe none").

    Raises:
        UserError: something is missing, or the user's function fails.
    """
    try:
        known = ModelConfig.saved_in(hyperparameters)
        task = hyperparameters["task"]
        config = validate(ModelConfig, known, str(run.hyperparameters))
        return build_model(config, tuple(task["input_shape"]), task["num_classes"], weights=False)
    except KeyError as error:
        raise UserError(f"{run.hyperparameters} lacks {error}; {instead}") from error
    except UserError as error:
        raise UserError(f"{error}; bring it back, or {instead}") from error
