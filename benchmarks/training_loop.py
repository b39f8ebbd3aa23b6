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
from benchmarks.loops import BATCH_SIZE, config_of, our_loop, random_data
from Data.dataset import Dataset
from Data.transforms import Normalize
from Models import build_model

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
        dataset = random_data(data, BATCH_SIZE * steps * (repetitions + 2))
        with tempfile.TemporaryDirectory() as folder, ExitStack() as recorders:
            ours = partial(our_loop, config_of(model, dataset), dataset, recorders)
            blocks: dict[str, Callable[[], object]] = {
                "bare": partial(Bare(model, dataset).run, steps),
                "ours": partial(ours(Path(folder) / "ours", observed=False), steps),
                "observed": partial(ours(Path(folder) / "observed", observed=True), steps),
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


class Bare:
    """The hand-written loop."""

    def __init__(self, model: str, dataset: Dataset):
        config = config_of(model, dataset)
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


def main() -> None:
    """Print the table."""
    logging.disable(logging.INFO)
    print_table(f"Training loop, batch {BATCH_SIZE}, plain SGD", measure())


if __name__ == "__main__":
    main()
