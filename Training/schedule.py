"""The learning rate, momentum and batch size of every step.

A run has one phase, or several of ``--epochs`` epochs each. The annealing rules of upstream
neural-mechanics (Kunin et al. 2023, The limiting dynamics of SGD, whose invariants they keep)
say what changes from phase to phase; warm-up, drops and the cosine multiply the learning rate
through all of them.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from Data.order import batches_per_epoch
from Training.config import TrainConfig
from Training.registry import SCHEDULES
from Utils.errors import UserError

_LAST_LR, _LAST_MOMENTUM = 1e-8, 0.9999  # upstream's ends of its linear rule


@dataclass(frozen=True)
class Phase:
    """What holds for ``--epochs`` epochs.

    Attributes:
        batch_size: S, examples per step.
        lr: η, before warm-up, drops and cosine.
        momentum: β.
    """

    batch_size: int
    lr: float
    momentum: float


class Schedule:
    """All phases of a run.

    Args:
        config: the run's configuration.
        examples: how many it trains on.
        replicas: devices with ``--train-batch-size`` examples each.

    Attributes:
        phases: in their order.
        total: steps of the whole run.

    Raises:
        UserError: a later phase's batch is larger than the data.
    """

    def __init__(self, config: TrainConfig, examples: int, replicas: int = 1):
        self._config = config
        first = _first(config, replicas)
        rule = SCHEDULES[config.schedule].load()
        self.phases: list[Phase] = [rule(config, first, k) for k in range(config.anneal_steps)]
        largest = max(phase.batch_size for phase in self.phases)
        if largest > max(examples, first.batch_size):
            raise UserError(
                f"--anneal-steps {config.anneal_steps}: batches grow to {largest} of "
                f"{examples} examples; choose fewer, or a smaller --train-batch-size"
            )
        sizes = [phase.batch_size for phase in self.phases for _ in range(config.epochs)]
        steps = [batches_per_epoch(examples, size, config.drop_last) for size in sizes]
        self._starts = [0, *accumulate(steps)]  # the first step of each epoch, and the end
        self.total = self._starts[-1]

    def epoch(self, step: int) -> int:
        """The epoch, from 0, to which the update after ``step`` finished ones belongs."""
        return min(bisect_right(self._starts, step) - 1, max(len(self._starts) - 2, 0))

    def steps_of(self, epoch: int) -> range:
        """The updates of an epoch, from 0, by how many were finished before each."""
        return range(self._starts[epoch], self._starts[epoch + 1])

    def phase(self, epoch: int) -> Phase:
        """What holds in an epoch; after the last one, what held in it."""
        return self.phases[min(epoch // max(self._config.epochs, 1), len(self.phases) - 1)]

    def lr(self, step: int) -> float:
        """The learning rate of the update that follows ``step`` finished ones.

        The phase's, times: a linear warm-up (k+1)/warmup_steps; lr_drop_rate for every epoch in
        lr_drops that has begun; for "cosine", (1 + cos(π t))/2 with t from 0 after the warm-up
        to 1 at the end.
        """
        config, epoch, warmup = self._config, self.epoch(step), self._config.warmup_steps
        value = self.phase(epoch).lr
        value *= config.lr_drop_rate ** sum(epoch >= drop for drop in config.lr_drops)
        if step < warmup:
            value *= (step + 1) / warmup
        elif config.lr_schedule == "cosine":
            progress = (step - warmup) / max(self.total - warmup, 1)
            value *= (1 + math.cos(math.pi * progress)) / 2
        return value

    def momentum(self, step: int) -> float:
        """β of the update that follows ``step`` finished ones."""
        return self.phase(self.epoch(step)).momentum

    def describe(self) -> list[dict[str, float]]:
        """The phases, with the epoch and the step at which each begins."""
        epochs = (k * self._config.epochs for k in range(len(self.phases)))
        return [
            {"epoch": e, "step": self._starts[e], **vars(phase)}
            for e, phase in zip(epochs, self.phases, strict=True)
        ]


def _first(config: TrainConfig, replicas: int) -> Phase:
    assert config.lr is not None
    return Phase(config.train_batch_size * replicas, config.lr, config.momentum or 0.0)


def constant(config: TrainConfig, start: Phase, k: int) -> Phase:
    """The same in every phase."""
    return start


def double_batches(config: TrainConfig, start: Phase, k: int) -> Phase:
    """S doubles; η/(S(1−β)) and 1/(S(1−β²)), temperature and friction, stay."""
    momentum = math.sqrt(1 - (1 - start.momentum**2) / 2**k)
    lr = start.lr * 2**k * (1 - momentum) / (1 - start.momentum)
    return Phase(start.batch_size * 2**k, lr, momentum)


def linear(config: TrainConfig, start: Phase, k: int) -> Phase:
    """η and β go in equal steps to 10⁻⁸ and 0.9999, reached in the last phase."""
    t = k / (config.anneal_steps - 1)
    lr = (1 - t) * start.lr + t * _LAST_LR
    return Phase(start.batch_size, lr, (1 - t) * start.momentum + t * _LAST_MOMENTUM)


def halve_lr(config: TrainConfig, start: Phase, k: int) -> Phase:
    """η halves; η/(1−β), the effective learning rate, stays."""
    return Phase(start.batch_size, start.lr / 2**k, 1 - (1 - start.momentum) / 2**k)
