"""Stock torch optimizers, and the learning rate of every step."""

import math
from collections.abc import Callable

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from Training.config import TrainConfig
from Training.registry import OPTIMIZERS


def build_optimizer(config: TrainConfig, model: nn.Module) -> SGD:
    """The optimizer that ``config`` asks for, on all parameters of ``model``."""
    entry = OPTIMIZERS[config.optimizer]
    options = {argument: getattr(config, name) for name, argument in entry.options.items()}
    optimizer: SGD = entry.load()(model.named_parameters(), **options)
    return optimizer


def build_scheduler(config: TrainConfig, optimizer: SGD, steps_per_epoch: int) -> LambdaLR:
    """The schedule of ``optimizer``, to be stepped after each of its steps."""
    return LambdaLR(optimizer, lr_factor(config, steps_per_epoch))


def lr_factor(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """What multiplies ``--lr`` in the update that follows ``step`` finished ones.

    The product of: a linear warm-up (k+1)/warmup_steps; lr_drop_rate for every epoch in
    lr_drops that has begun; for "cosine", (1 + cos(π t))/2 with t from 0 after the warm-up to
    1 at the end.
    """
    warmup = config.warmup_steps
    drops = [epoch * steps_per_epoch for epoch in config.lr_drops]
    annealed = max(config.epochs * steps_per_epoch - warmup, 1)

    def factor(step: int) -> float:
        value = config.lr_drop_rate ** sum(step >= drop for drop in drops)
        if step < warmup:
            value *= (step + 1) / warmup
        elif config.lr_schedule == "cosine":
            value *= (1 + math.cos(math.pi * (step - warmup) / annealed)) / 2
        return value

    return factor
