"""Everything that changes during training, which is everything that a checkpoint holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from Data.batches import training_batches
from Data.dataset import Dataset
from Data.order import TrainingBatches
from Models.parametrization.scales import Scales
from Models.symmetry import Laws
from Training.backends.backend import Backend, Forward
from Training.buffers import StepBuffers
from Training.checkpoints import Checkpoint, load_weights
from Training.config import TrainConfig
from Training.conservation import ConservationObserver
from Training.losses import LossRecord
from Training.optimizers import build_optimizer
from Training.schedule import Schedule
from Utils.seeds import stream_seed


@dataclass
class TrainingState:
    """The state of a run, between two steps.

    Attributes:
        forward: the model as what maps a batch to logits.
        step: updates done.
        scaled: whether learning rates have the factors of a parametrization.
        losses: of the minibatches since the last means were taken.
    """

    model: nn.Module
    forward: Forward
    optimizer: Optimizer
    schedule: Schedule
    scheduler: LambdaLR
    observer: ConservationObserver
    buffers: StepBuffers
    batches: TrainingBatches
    backend: Backend
    losses: LossRecord
    step: int = 0
    scaled: bool = False

    @classmethod
    def initial(
        cls,
        config: TrainConfig,
        model: nn.Module,
        dataset: Dataset,
        laws: Laws,
        backend: Backend,
        scales: Scales | None = None,
    ) -> Self:
        """The state before the first step.

        Args:
            config: the run's configuration.
            model: initialised.
            dataset: what to train on.
            laws: the model's, for the observer.
            backend: where to train; the model is moved there.
            scales: of the parametrization, if there is one.
        """
        dtype = getattr(torch, config.dtype)
        example = torch.zeros(2, *dataset.entry.input_shape, dtype=dtype)
        forward = backend.forward(model, example)
        schedule = Schedule(config, len(dataset.train), backend.replicas)
        batches = training_batches(
            dataset.train,
            schedule.phases[0].batch_size,
            config.seed,
            backend.data_device,
            dtype,
            config.augment,
            config.drop_last,
            backend.share,
        )
        optimizer = build_optimizer(config, model, scales)
        scheduler = LambdaLR(optimizer, schedule_multipliers(optimizer, schedule, scales))
        observer = ConservationObserver(model, optimizer, laws)
        buffers = StepBuffers(model, optimizer, config.save_buffers)
        backend.seed(stream_seed(config.seed, "dropout") + backend.share[0])
        backend.end_step()  # the beginnings are no part of the first batch's computation
        losses = LossRecord(lambda values: backend.total(values) / backend.share[1])
        return cls(
            model,
            forward,
            optimizer,
            schedule,
            scheduler,
            observer,
            buffers,
            batches,
            backend,
            losses,
            scaled=scales is not None,
        )

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.batches.epoch

    @property
    def lr(self) -> float:
        """The learning rate of the next step, before the factors of a parametrization."""
        if self.scaled:
            return self.schedule.lr(self.step)
        return float(self.optimizer.param_groups[0]["lr"])

    def advance(self) -> None:
        """Move the schedule on, after an update."""
        self.step += 1
        self.scheduler.step()
        if len(self.schedule.phases) > 1:
            for group in self.optimizer.param_groups:
                group["momentum"] = self.schedule.momentum(self.step)
        if self.batches.position == 0:
            self.batches.resize(self.schedule.phase(self.epoch).batch_size)

    def state_dict(self) -> Checkpoint:
        """The content of a checkpoint, without the metrics; called in all processes together."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": self.scheduler.state_dict(),
            "observer_state_dict": self.observer.state_dict(),
            "buffer_state_dict": self.buffers.state_dict(),
            "loss_state": self.losses.state_dict(),
            "rng_state": self.backend.gather(self.backend.rng_state()),
            "data_state": self.batches.state_dict(),
        }

    def load_state_dict(self, checkpoint: Checkpoint) -> None:
        """Continue exactly where the checkpoint was made.

        Raises:
            UserError: the checkpoint is of another model or of other data.
        """
        load_weights(self.model, checkpoint)
        self.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        self.scheduler.load_state_dict(checkpoint["scheduler_state_dict"])
        self.observer.load_state_dict(checkpoint["observer_state_dict"])
        self.buffers.load_state_dict(checkpoint["buffer_state_dict"])
        self.losses.load_state_dict(checkpoint["loss_state"])
        self.batches.resize(self.schedule.phase(checkpoint["epoch"]).batch_size)
        self.batches.load_state_dict(checkpoint["data_state"])
        self.step = checkpoint["step"]
        states: list[dict[str, Any]] = checkpoint["rng_state"]
        if self.backend.rank < len(states):
            self.backend.set_rng_state(states[self.backend.rank])


def schedule_multipliers(
    optimizer: Optimizer, schedule: Schedule, scales: Scales | None
) -> list[Callable[[int], float]]:
    """For each group what its learning rate is multiplied by after so many steps."""
    first_steps = 0 if scales is None else scales.first_steps

    def of(first: float) -> Callable[[int], float]:
        def multiplier(step: int) -> float:
            value = schedule.lr(step) / schedule.phases[0].lr
            return value * first if step < first_steps else value

        return multiplier

    return [of(group.get("first_lr", 1.0)) for group in optimizer.param_groups]
