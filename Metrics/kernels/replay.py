"""A run's training once more, of another model with the same parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from Data import load_dataset
from Metrics.kernels.measures import Floats
from Metrics.model_at import ModelAt
from Models.symmetry import no_laws
from Training.backends import start
from Training.checkpoints import load_checkpoint
from Training.config import TrainConfig
from Training.parametrized import resolve
from Training.state import TrainingState
from Utils.logging import progress
from Utils.rundir import RunFolder


def train_linear(
    at: ModelAt,
    task: Mapping[str, Any],
    model: nn.Module,
    run: RunFolder,
    steps: Sequence[int],
    look: Callable[[nn.Module], Floats],
) -> Mapping[int, Floats]:
    """Train as the run did: its optimizer, schedule, batches and augmentation.

    Args:
        at: how the run was trained.
        task: what the run's folder says of its data and parametrization.
        model: with the parameters' names of the run's, and their values at the first step.
        run: its folder; a first step other than 0 needs that step's checkpoint.
        steps: ascending.
        look: at the model, at each of the steps.

    Raises:
        UserError: the data, or the checkpoint, are not there.
    """
    training = _here(at, task)
    options = training.data_options
    dataset = load_dataset(training.dataset, training.data_dir, training.seed, **options)
    found: dict[int, Floats] = {}
    with torch.random.fork_rng(), start(training) as backend:
        scales = resolve(training, dataset, task.get("parametrization"))
        state = TrainingState.initial(
            training, model, dataset, no_laws("replays follow none"), backend, scales
        )
        if steps[0]:
            checkpoint = load_checkpoint(run.fetch(run.checkpoint(steps[0])))
            state.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
            state.scheduler.load_state_dict(checkpoint["scheduler_state_dict"])
            state.batches.resize(state.schedule.phase(checkpoint["epoch"]).batch_size)
            state.batches.load_state_dict(checkpoint["data_state"])
            state.step = steps[0]
        found[steps[0]] = look(model)
        for step in progress(range(steps[0] + 1, steps[-1] + 1), "training the linear model"):
            inputs, targets = backend.place(*state.batches.next())
            state.optimizer.zero_grad()
            at.loss(state.forward(inputs), targets).backward()  # type: ignore[no-untyped-call]
            if training.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
            state.optimizer.step()
            state.advance()
            if step in steps:
                found[step] = look(model)
        state.batches.close()
    return found


def _here(at: ModelAt, task: Mapping[str, Any]) -> TrainConfig:
    """How the run was trained, in this one process and in full precision, whatever it was on."""
    training = at.training
    return training.model_copy(
        update={
            "device": at.device.type,
            "train_batch_size": training.train_batch_size * task.get("replicas", 1),
            "tpu": None,
            "precision": "full",
            "tf32": False,
            "compile": False,
            "deterministic": False,
            "save_buffers": (),
        }
    )
