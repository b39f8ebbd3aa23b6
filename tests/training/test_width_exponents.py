"""Exponents measured on the networks that the parametrizations make, against the theory's."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from Models.parametrization import explain
from Models.parametrization.network import Parametrized
from Training.config import TrainConfig
from Training.optimizers import build_optimizer
from Training.registry import OPTIMIZERS
from Training.schedule import Schedule
from Training.state import schedule_multipliers
from Utils.cli import parse

WIDTHS, SEEDS, BATCH, INPUTS = (64, 256, 1024), range(3), 4, (1, 4, 4)

Sizes = dict[str, list[float]]


def reads(model: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What every linear layer reads, and the outputs."""
    found: list[Tensor] = []
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_pre_hook(lambda _, args: found.append(args[0])) for m in layers]
    outputs: Tensor = model(x)
    for hook in hooks:
        hook.remove()
    return found, outputs


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def measure(flags: str, width: int, seed: int) -> Sizes:
    """One step on a linear loss, whose derivative has no noise of its own."""
    given = f"--model fc --depth 4 --width {width} --seed {seed} --dtype float64 {flags}"
    config = parse(TrainConfig, given.split())
    entry = OPTIMIZERS[config.optimizer]
    assert entry.family is not None
    network = Parametrized(config, INPUTS, 6)
    model, scales = network.build(), network.scales(entry.family, entry.decay)
    optimizer = build_optimizer(config, model, scales)
    schedule = Schedule(config, 1000)
    torch.optim.lr_scheduler.LambdaLR(optimizer, schedule_multipliers(optimizer, schedule, scales))
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(BATCH, *INPUTS, generator=generator, dtype=torch.float64)
    y = torch.randn(BATCH, 6, generator=generator, dtype=torch.float64)
    before = copy.deepcopy(model)
    outputs = reads(model, x)[1]
    (outputs * y).mean().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    old, f0 = reads(before, x)
    new, f1 = reads(model, x)
    pairs = [
        (a.weight, b.weight)
        for a, b in zip(model.modules(), before.modules(), strict=True)
        if isinstance(a, nn.Linear) and isinstance(b, nn.Linear)
    ]
    steps = [a - b for a, b in pairs]
    return {
        "preactivation": [*(rms(r) for r in old[1:]), rms(f0)],
        "own": [rms(h @ step.T) for h, step in zip(new, steps, strict=True)],
        "change": [*(rms(b - a) for a, b in zip(old[1:], new[1:], strict=True)), rms(f1 - f0)],
        "update frobenius norm": [float(s.detach().norm()) for s in steps],
    }


def slopes(flags: str) -> dict[str, Any]:
    logs: dict[str, Any] = {}
    for seed in SEEDS:
        sizes = [measure(flags, width, seed) for width in WIDTHS]
        for name in sizes[0]:
            logs.setdefault(name, []).append(np.log2([size[name] for size in sizes]))
    x = np.log2(WIDTHS)
    return {name: np.polyfit(x, np.mean(values, 0), 1)[0] for name, values in logs.items()}


@pytest.mark.parametrize(
    "flags",
    [
        "--param sp-lr1n --lr 0.3",
        "--param ntk --lr 0.3",
        "--param mup --lr 0.3",
        "--param mup-table8 --lr 0.3 --optimizer momentum --momentum 0.9",
        "--param hybrid:0.5 --lr 0.3",
        "--param ip --lr 0.3",
        "--param ipllr --lr 10",
        "--param ipllr-bias --lr 0.3",
        "--param ip-non-centered --lr 0.1",
        "--param mup --optimizer adam --lr 0.01 --eps 1e-30",
        "--param ntk --optimizer adam --lr 0.01 --eps 1e-30",
        "--param sp-lr1n --optimizer lion --lr 0.01",
    ],
)
def test_one_step_scales_as_predicted(flags: str) -> None:
    flags += "" if "ipllr-bias" in flags else " --no-bias"
    config = parse(TrainConfig, f"--model fc --depth 4 {flags}".split())
    family = OPTIMIZERS[config.optimizer].family
    assert family is not None
    theory = explain(Parametrized(config, INPUTS, 6).abc(family), 3, family, config.bias)
    found = slopes(flags)
    predicted = {**theory.initial, **theory.first}
    for name, values in found.items():
        expected = np.array([float(e) for e in predicted[name] if e is not None])
        np.testing.assert_allclose(values, expected, atol=0.17, err_msg=name)
