"""The run's network at a checkpoint, for metrics that need more than its weights.

Shape letters: N examples, C classes.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_

from Data import load_dataset
from Data.batches import random_batch
from Metrics.config import CacheConfig
from Metrics.features import StepFeatures
from Metrics.registry import IF_NAMED
from Metrics.spectrum import Loss
from Models.parametrization.scales import Scales
from Training.config import TrainConfig
from Training.rebuild import rebuild_config, rebuild_model
from Training.registry import LOSSES
from Training.schedule import Schedule
from Utils.devices import select_device
from Utils.errors import UserError
from Utils.rundir import RunFolder
from Utils.seeds import stream_seed

INSTEAD = f"leave {', '.join(IF_NAMED)} out of --metrics"
"""What the user can do without the network."""


class SeededModel(nn.Module):
    """A model that draws the same random numbers (dropout) at every call.

    Args:
        model: maps inputs to logits.
        seed: of its random numbers.
    """

    def __init__(self, model: nn.Module, seed: int):
        super().__init__()
        self.model = model
        self._seed = seed

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [N, C]; the global random state is left as it was."""
        devices = [inputs.device] if inputs.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(self._seed)
            if devices:
                torch.cuda.manual_seed(self._seed)
            logits: Tensor = self.model(inputs)
        return logits


class ModelAt:
    """A run's network, its loss, and one fixed batch of training examples.

    Everything is made when it is first asked for, once in a pass over the checkpoints: metrics
    that do not need the network do not pay for it. The network is in training mode, as the laws
    and the loss that was trained on need it: batch normalisation uses the statistics of the
    batch, and its running ones are neither read nor changed; dropout draws the same mask at
    every call. The number format is the run's.

    Args:
        run: the run's folder.
        hyperparameters: the run's.
        config: the command line: how many examples, and on which device.
    """

    def __init__(self, run: RunFolder, hyperparameters: dict[str, Any], config: CacheConfig):
        self._run, self._hyperparameters, self._config = run, hyperparameters, config
        self._loaded = ""

    @cached_property
    def training(self) -> TrainConfig:
        """How the run was trained; raises ``UserError`` if its folder does not say."""
        return rebuild_config(self._run, self._hyperparameters)

    @cached_property
    def schedule(self) -> Schedule:
        """The run's learning rate and momentum at every step."""
        task = self._hyperparameters["task"]
        return Schedule(self.training, task["train_size"], task.get("replicas", 1))

    @cached_property
    def scales(self) -> Scales | None:
        """What the run's parametrization makes of learning rates; ``None`` without one."""
        stored = self._hyperparameters["task"].get("parametrization")
        return None if stored is None else Scales.from_flat(stored)

    @cached_property
    def device(self) -> torch.device:
        """Where the network runs; raises ``UserError`` if there is no such device."""
        return select_device(self._config.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The run's number format."""
        dtype: torch.dtype = getattr(torch, self.training.dtype)
        return dtype

    @cached_property
    def loss(self) -> Loss:
        """The run's loss."""
        return LOSSES[self.training.loss].load()

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs [N, C, H, W] and targets [N]: training examples as evaluation sees them.

        They are drawn from the stream "examples" of the run's seed: the same at every step.
        """
        config = self.training
        options = config.data_options
        split = load_dataset(config.dataset, config.data_dir, config.seed, **options).train
        size = self._config.examples
        return random_batch(split, size, config.seed, "examples", self.device, self.dtype)

    @cached_property
    def model(self) -> SeededModel:
        """The network, on the device; its weights are those of the last :meth:`load`."""
        model = rebuild_model(self._run, self._hyperparameters, INSTEAD)
        replace_all_batch_norm_modules_(model)  # they now normalise by the batch alone
        seed = stream_seed(self.training.seed, "dropout")
        return SeededModel(model, seed).to(self.device).train()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The network's parameters by their names in the run."""
        return dict(self.model.model.named_parameters())

    def load(self, features: StepFeatures) -> SeededModel:
        """The network with the weights of a step, in training mode.

        Raises:
            UserError: they are another network's, or the network cannot be built.
        """
        if self._loaded == features.source:
            return self.model
        model = self.model.model
        own = model.state_dict().keys()
        state = {
            name: value
            for name, value in features.model_state().items()
            if name in own or not _is_running_statistic(name)
        }
        load_weights(model, state, features)
        self._loaded = features.source
        return self.model

    def logits(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The logits [N, C] of the batch with some parameters replaced, by their names.

        Buffers that a module changes in its forward pass are left as they were.
        """
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        replaced = {f"model.{name}": value for name, value in parameters.items()}
        logits: Tensor = functional_call(self.model, buffers | replaced, (self.batch[0],))
        return logits


def load_weights(model: nn.Module, state: Mapping[str, Tensor], features: StepFeatures) -> None:
    """Give a network the weights of a step.

    Raises:
        UserError: they are another network's.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{features.path} does not fit the model ({reason}); bring the model's code back, "
            f"or {INSTEAD}"
        ) from error


def _is_running_statistic(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last in {"running_mean", "running_var", "num_batches_tracked"}
