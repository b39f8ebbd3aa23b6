"""The training loop against a bare hand-written one on the same tensors.

    python -m benchmarks.training_loop

The rival is what one writes in an afternoon: shuffle, index, normalise, forward, backward,
``torch.optim.SGD``. Both see the same number of batches of 128; the loop runs as in train.py,
with its journal, losses and schedule, without checkpoints in the timed window, once with no
laws to observe and once with all. Limit: what the loop adds per step is constant, so its share
grows as the network shrinks.
"""

import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import Row, interleaved, print_table, ratio
from Data import DATASETS
from Data.dataset import Dataset, Split
from Data.transforms import Normalize
from Models import build_model
from Models.symmetry import find_laws
from Training.backends import start
from Training.config import TrainConfig
from Training.loop import Trainer
from Training.recorder import FolderRecorder
from Training.state import TrainingState
from Utils.config import validate
from Utils.rundir import RunFolder

BATCH_SIZE = 128

CASES = {"conv, cifar10": 10, "conv, mnist": 10, "fc, mnist": 100}
"""Model and the data whose shape is used, with the steps of a block."""


def measure(cases: Sequence[str] = tuple(CASES), repetitions: int = 9) -> list[Row]:
    """One row per case.

    Args:
        cases: keys of ``CASES``.
        repetitions: blocks of each loop.
    """
    rows: list[Row] = []
    for case in cases:
        model, data = case.split(", ")
        steps = CASES[case]
        dataset = _random(data, BATCH_SIZE * steps * (repetitions + 2))
        with tempfile.TemporaryDirectory() as folder, ExitStack() as recorders:
            ours = partial(_ours, model, dataset, steps, recorders)
            blocks: dict[str, Callable[[], object]] = {
                "bare": partial(Bare(model, dataset).run, steps),
                "ours": ours(Path(folder) / "ours", observed=False),
                "observed": ours(Path(folder) / "observed", observed=True),
            }
            seconds = interleaved(blocks, repetitions)
        bare = seconds["bare"]
        rows.append(
            {
                "case": case,
                "bare step / ms": sorted(bare)[len(bare) // 2] / steps * 1e3,
                "loop / bare": ratio(seconds["ours"], bare),
                "loop and observer / bare": ratio(seconds["observed"], bare),
            }
        )
    return rows


def _random(name: str, size: int) -> Dataset:
    entry = DATASETS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (size, *entry.input_shape), generator=generator, dtype=torch.uint8)
    split = Split(entry, inputs, torch.arange(size) % entry.num_classes)
    return Dataset(entry, split, split)


class Bare:
    """The hand-written loop."""

    def __init__(self, model: str, dataset: Dataset):
        config = _config(model, dataset)
        entry = dataset.entry
        self._model = build_model(config, entry.input_shape, entry.num_classes)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=config.lr or 0.0)
        self._split = dataset.train
        self._normalize = Normalize(entry, "cpu", torch.float32)
        self._order = torch.randperm(len(self._split))
        self._next = 0

    def run(self, steps: int) -> None:
        """Train for some steps."""
        for _ in range(steps):
            index = self._order[self._next : self._next + BATCH_SIZE]
            self._next += BATCH_SIZE
            raw, targets = self._split.take(index)
            inputs = self._normalize(raw)
            self._optimizer.zero_grad()
            loss: Any = nn.functional.cross_entropy(self._model(inputs), targets)
            loss.backward()
            self._optimizer.step()


def _ours(
    model: str, dataset: Dataset, steps: int, recorders: ExitStack, folder: Path, observed: bool
) -> Callable[[], object]:
    """Run the next steps of train.py's loop on a new model."""
    config = _config(model, dataset)
    entry = dataset.entry
    module = build_model(config, entry.input_shape, entry.num_classes)
    # nothing is conserved under a loss that no symmetry survives: nothing is observed
    laws = find_laws(module if observed else nn.Tanh(), torch.zeros(2, *entry.input_shape), "ce")
    state = TrainingState.initial(config, module, dataset, laws, start(config))
    run, log = RunFolder(folder), logging.getLogger("benchmark")
    run.logs.mkdir(parents=True)
    recorder = recorders.enter_context(FolderRecorder(run, -1))
    trainer = Trainer(config, state, dataset.test, recorder, log)
    trainer.total = 0

    def block() -> None:
        trainer.total += steps
        trainer.fit()

    return block


def _config(model: str, dataset: Dataset) -> TrainConfig:
    flags = {
        "model": model,
        "dataset": dataset.entry.name,
        "augment": False,
        "train_batch_size": BATCH_SIZE,
        "lr": 1e-3,
    }
    return validate(TrainConfig, flags, "benchmark")


def main() -> None:
    """Print the table."""
    logging.disable(logging.INFO)
    print_table(f"Training loop, batch {BATCH_SIZE}, plain SGD", measure())


if __name__ == "__main__":
    main()
