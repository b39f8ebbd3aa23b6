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
from benchmarks.loops import BATCH_SIZE, config_of, our_loop, random_data, wait_for
from Data.dataset import Dataset
from Data.transforms import Normalize
from Models import build_model
from Training.config import TrainConfig
from Training.optimizers import build_optimizer
from Utils.devices import allow_tf32, select_device

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
            config = config_of(model, dataset)
            ours = partial(our_loop, config, dataset, recorders)
            blocks: dict[str, Callable[[], object]] = {
                "bare": partial(Bare(config, dataset).run, steps),
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
    """The hand-written loop.

    Args:
        config: what to train, how, and on which device.
        dataset: large enough for all steps to come.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset):
        entry, self._device = dataset.entry, select_device(config.device)
        allow_tf32(config.tf32)
        model = build_model(config, entry.input_shape, entry.num_classes).to(self._device)
        self._format = torch.channels_last if config.channels_last else torch.contiguous_format
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model: Any = torch.compile(model) if config.compile else model
        self._mixed = torch.autocast(
            self._device.type, torch.bfloat16, enabled=config.precision == "bf16"
        )
        self._optimizer = build_optimizer(config, model)
        self._split = dataset.train.to(self._device)
        self._normalize = Normalize(entry, self._device, torch.float32)
        self._order = torch.randperm(len(self._split), device=self._device)
        self._batch_size, self._next = config.train_batch_size, 0

    def run(self, steps: int) -> None:
        """Train for some steps, to their end."""
        for _ in range(steps):
            index = self._order[self._next : self._next + self._batch_size]
            self._next += self._batch_size
            raw, targets = self._split.take(index)
            inputs = self._normalize(raw).contiguous(memory_format=self._format)
            self._optimizer.zero_grad()
            with self._mixed:
                logits = self._model(inputs)
            loss: Any = nn.functional.cross_entropy(logits.float(), targets)
            loss.backward()
            self._optimizer.step()
        wait_for(self._device)


def main() -> None:
    """Print the table."""
    logging.disable(logging.INFO)
    print_table(f"Training loop, batch {BATCH_SIZE}, plain SGD", measure())


if __name__ == "__main__":
    main()
