"""train.py's loop on random images, without checkpoints: what benchmarks of training time."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from Data import DATASETS
from Data.dataset import Dataset, Split
from Models import build_model
from Models.symmetry import find_laws
from Training.backends import start
from Training.config import TrainConfig
from Training.loop import Trainer
from Training.recorder import FolderRecorder, Recorder, Silence
from Training.state import TrainingState
from Utils.config import validate
from Utils.rundir import RunFolder

BATCH_SIZE = 128


def random_data(name: str, size: int) -> Dataset:
    """Random images of a data set's shape; training and test examples are the same ones."""
    entry = DATASETS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (size, *entry.input_shape), generator=generator, dtype=torch.uint8)
    split = Split(entry, inputs, torch.arange(size) % entry.num_classes)
    return Dataset(entry, split, split)


def config_of(model: str, dataset: Dataset, **flags: Any) -> TrainConfig:
    """The configuration of a benchmark: no augmentation, and ``flags``."""
    fixed = {"model": model, "dataset": dataset.entry.name, "augment": False, "lr": 1e-3}
    return validate(TrainConfig, {**fixed, "train_batch_size": BATCH_SIZE, **flags}, "benchmark")


def our_loop(
    config: TrainConfig, dataset: Dataset, held: ExitStack, folder: Path, observed: bool
) -> Callable[[int], None]:
    """What runs the next steps, as many as asked for, of train.py's loop on a new model.

    Args:
        config: from :func:`config_of`.
        dataset: large enough that no epoch ends while it is timed.
        held: ends the backend and closes the journal.
        folder: of the journal.
        observed: whether the conservation laws are followed.
    """
    entry = dataset.entry
    backend = held.enter_context(start(config))
    module = build_model(config, entry.input_shape, entry.num_classes)
    # nothing is conserved under a loss that no symmetry survives: nothing is observed
    laws = find_laws(module if observed else nn.Tanh(), torch.zeros(2, *entry.input_shape), "ce")
    state = TrainingState.initial(config, module, dataset, laws, backend)
    run = RunFolder(folder)
    run.logs.mkdir(parents=True, exist_ok=True)
    recorder: Recorder = FolderRecorder(run, -1) if backend.is_first else Silence()
    held.enter_context(recorder)
    trainer = Trainer(config, state, dataset.test, recorder, logging.getLogger("benchmark"))
    trainer.total = 0

    def run_steps(steps: int) -> None:
        trainer.total += steps
        trainer.fit()
        wait_for(backend.device)

    return run_steps


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was asked for; others are never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
