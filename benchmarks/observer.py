"""A training step with the conservation observer against the same step without it.

    python -m benchmarks.observer

Forward, backward and a stock optimizer at batch 128, with a record every 10 steps, which is
the default of ``--observe-freq``. Steps with and without are run in turn; ``hooks`` is the time
inside the observer itself, per step. Limit: under SGD the observer reads θ and g (and v) once
and writes a product of each parameter's size; under others it copies θ and forms four products
in float64; ``limit`` is the time in which this machine copies as many bytes.
"""

import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.common import Row, interleaved, print_table, ratio
from Models import ModelConfig, build_model
from Models.symmetry import find_laws
from Training.conservation import ConservationObserver
from Utils.config import validate

BATCH_SIZE, OBSERVE_FREQ = 128, 10

_SGD: Any = partial(torch.optim.SGD, lr=1e-3, weight_decay=1e-4)

OPTIMIZERS: dict[str, Any] = {
    "sgd": _SGD,
    "momentum": partial(_SGD, momentum=0.9),
    "nesterov": partial(_SGD, momentum=0.9, nesterov=True),
    "adamw": torch.optim.AdamW,
}

_PRODUCTS = {"nesterov": 4 * 4, "adamw": 4 * 8}  # bytes of the products formed per parameter

MODELS: dict[str, tuple[str, str, tuple[int, ...], int]] = {
    "conv, 3x32x32": ("conv", "default", (3, 32, 32), 10),
    "conv, 1x28x28": ("conv", "default", (1, 28, 28), 10),
    "conv, 1x8x8": ("conv", "default", (1, 8, 8), 10),
    "vit, 3x32x32": ("vit", "default", (3, 32, 32), 10),
    "vgg16-bn, 3x64x64": ("vgg16-bn", "tinyimagenet", (3, 64, 64), 200),
}


class Loop:
    """A model in training, observed or not.

    Attributes:
        inside: seconds spent in the observer so far.
    """

    def __init__(
        self,
        name: str,
        model_class: str,
        shape: tuple[int, ...],
        classes: int,
        optimizer: Any,
        observed: bool,
        batch_size: int,
    ):
        torch.manual_seed(0)
        flags = {"model": name, "model_class": model_class}
        self._model = build_model(validate(ModelConfig, flags, "benchmark"), shape, classes)
        self._optimizer = optimizer(self._model.parameters())
        self._batch = torch.randn(batch_size, *shape), torch.randint(classes, (batch_size,))
        self._step = 0
        self.inside = 0.0
        self._observer = None
        if observed:
            laws = find_laws(self._model, torch.zeros(2, *shape), "ce")
            self._time_hooks(-1)
            self._observer = ConservationObserver(self._model, self._optimizer, laws)
            self._time_hooks(1)

    def _time_hooks(self, sign: int) -> None:
        """Read the clock in every step's hooks: −1 before the observer's, +1 after them."""

        def read(*_: object) -> None:
            self.inside += sign * time.perf_counter()

        self._optimizer.register_step_pre_hook(read)
        self._optimizer.register_step_post_hook(read)

    def run(self, steps: int) -> None:
        """Train for some steps."""
        inputs, targets = self._batch
        for _ in range(steps):
            self._optimizer.zero_grad()
            loss: Any = nn.functional.cross_entropy(self._model(inputs), targets)
            loss.backward()
            self._optimizer.step()
            self._step += 1
            if self._observer is not None and self._step % OBSERVE_FREQ == 0:
                start = time.perf_counter()
                self._observer.record(self._step)
                self.inside += time.perf_counter() - start

    @property
    def numbers(self) -> int:
        """How many parameters the model has."""
        return sum(p.numel() for p in self._model.parameters())


def measure(
    models: Sequence[str] = tuple(MODELS), repetitions: int = 7, batch_size: int = BATCH_SIZE
) -> list[Row]:
    """One row per model and optimizer.

    Args:
        models: keys of ``MODELS``.
        repetitions: pairs of blocks of 10 steps; the large model gets 1 block.
        batch_size: examples per step.
    """
    rows: list[Row] = []
    for model in models:
        large = model.startswith("vgg")
        for optimizer, build in OPTIMIZERS.items():
            if large and optimizer == "nesterov":
                continue  # minutes for what the small models tell as well
            plain, observed = (
                Loop(*MODELS[model], build, observed, batch_size) for observed in (False, True)
            )
            steps = OBSERVE_FREQ
            plain.run(1)
            observed.run(steps if not large else 1)
            observed.inside, count = 0.0, 1 if large else repetitions
            blocks = {"plain": partial(plain.run, steps), "observed": partial(observed.run, steps)}
            seconds = interleaved(blocks, count, warm_up=False)
            step = statistics.median(seconds["plain"]) / steps
            hooks = observed.inside / (count * steps)
            rows.append(
                {
                    "model": model,
                    "optimizer": optimizer,
                    "step / ms": step * 1e3,
                    "with / without": ratio(seconds["observed"], seconds["plain"]),
                    "hooks / ms": hooks * 1e3,
                    "hooks / step, %": 100 * hooks / step,
                    "limit / ms": _copy_seconds(_bytes(observed.numbers, optimizer)) * 1e3,
                }
            )
    return rows


def _bytes(numbers: int, optimizer: str) -> int:
    """Bytes that one observed step must read and write: both factors and every product."""
    return 3 * _PRODUCTS.get(optimizer, 2 * 4) * numbers


def _copy_seconds(size: int) -> float:
    """How long this machine takes to copy half of ``size`` bytes to another half."""
    source = torch.ones(max(size // 8, 1), dtype=torch.float32)
    target = torch.empty_like(source)
    return statistics.median(interleaved({"copy": lambda: target.copy_(source)}, 5)["copy"])


def main() -> None:
    """Print the table."""
    print_table(f"Conservation observer, batch {BATCH_SIZE}", measure())


if __name__ == "__main__":
    main()
