"""Optimizers are torch's own; learning rates follow their formulas."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from Training import OPTIMIZERS, TrainConfig
from Training.optimizers import build_optimizer, build_scheduler
from Utils.config import validate

EPOCHS, STEPS = 6, 5


def rates(**flags: Any) -> list[float]:
    """The learning rate of every step of a run of 6 epochs with 5 steps each."""
    config = validate(TrainConfig, {"lr": 0.5, "epochs": EPOCHS, **flags}, "test")
    optimizer = build_optimizer(config, nn.Linear(1, 1))
    scheduler = build_scheduler(config, optimizer, STEPS)
    seen = []
    for _ in range(EPOCHS * STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_constant() -> None:
    assert rates() == [0.5] * 30


def test_drops_begin_with_their_epoch() -> None:
    expected = [0.5] * 10 + [0.5 * 0.2] * 5 + [0.5 * 0.2**2] * 15
    assert rates(lr_drops="2,3", lr_drop_rate=0.2) == pytest.approx(expected, rel=1e-15)


def test_warm_up_is_linear_and_ends_at_the_full_rate() -> None:
    assert rates(warmup_steps=4) == [0.125, 0.25, 0.375] + [0.5] * 27


def test_cosine_after_the_warm_up() -> None:
    expected = [0.25 * (1 + math.cos(math.pi * k / 28)) for k in range(28)]
    assert rates(lr_schedule="cosine", warmup_steps=2) == pytest.approx([0.25, 0.5, *expected])


def test_a_warm_up_longer_than_the_run() -> None:
    assert rates(lr_schedule="cosine", warmup_steps=60)[-1] == pytest.approx(0.25)


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_every_optimizer_is_torchs_with_the_flags_it_reads(name: str) -> None:
    flags: dict[str, Any] = {"lr": 0.3, "wd": 0.2}
    if "momentum" in OPTIMIZERS[name].options:
        flags |= {"momentum": 0.9, "dampening": 0.1}
    config = validate(TrainConfig, {"optimizer": name, **flags}, "test")
    optimizer = build_optimizer(config, nn.Linear(1, 1))
    assert type(optimizer) is torch.optim.SGD
    group = optimizer.param_groups[0]
    for flag, argument in OPTIMIZERS[name].options.items():
        assert group[argument] == getattr(config, flag)
