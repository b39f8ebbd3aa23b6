"""muP against the library mup: the same network, data and seeds give the same losses."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from Models import ModelConfig
from Models.parametrization.network import Parametrized
from Training.config import TrainConfig
from Training.optimizers import build_optimizer
from Training.registry import OPTIMIZERS
from Utils.cli import parse
from Utils.config import validate

mup = pytest.importorskip("mup")

BASE, WIDTH, INPUTS, CLASSES = 16, 64, 24, 5

SOURCE = """
from torch import nn

def net(input_shape, num_classes, width, readout=nn.Linear):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(24, width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width),
        nn.ReLU(), nn.Linear(width, width), nn.ReLU(), readout(width, num_classes))

def convolutional(input_shape, num_classes, width, readout=nn.Linear):
    return nn.Sequential(
        nn.Unflatten(1, (1, -1)), nn.Conv1d(1, width, 3), nn.ReLU(), nn.Conv1d(width, width, 3),
        nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), readout(width, num_classes))
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(SOURCE)
    return tmp_path / "mine.py"


def losses(model: nn.Module, optimizer: Optimizer) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(10):
        x = torch.randn(32, INPUTS, generator=generator)
        y = x[:, :CLASSES].argmax(1)
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


def theirs(make: Callable[..., nn.Module], width: int, bsh: Path) -> nn.Module:
    """mup's own model at a width, from the same global random numbers as ours."""
    sizes = {"base": BASE, "delta": 2 * BASE}
    base, delta = (make((INPUTS,), CLASSES, n, mup.MuReadout) for n in sizes.values())
    torch.manual_seed(11)
    model = make((INPUTS,), CLASSES, width, mup.MuReadout)
    return mup.set_base_shapes(model, base, delta=delta, savefile=str(bsh))  # type: ignore[no-any-return]


@pytest.mark.parametrize("function", ["net", "convolutional"])
@pytest.mark.parametrize(
    ("flags", "make", "options"),
    [
        ("sgd --lr 0.2 --wd 0.1", "MuSGD", {"lr": 0.2, "weight_decay": 0.1}),
        (
            "momentum --lr 0.05 --momentum 0.9",
            "MuSGD",
            {"lr": 0.05, "momentum": 0.9},
        ),
        ("adam --lr 0.01 --eps 1e-6", "MuAdam", {"lr": 0.01, "eps": 1e-6}),
        (
            "adamw --lr 0.01 --wd 0.1",
            "MuAdamW",
            {"lr": 0.01, "weight_decay": 0.1},
        ),
    ],
)
def test_losses_are_those_of_mup(
    function: str,
    flags: str,
    make: str,
    options: dict[str, Any],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scope: dict[str, Any] = {}
    exec(SOURCE, scope)
    bsh = file.with_name("base.bsh")
    model = theirs(scope[function], WIDTH, bsh)
    expected = losses(model, getattr(mup, make)(model.parameters(), **options))

    # ours draws with the seed of its own stream; here both are to draw the same numbers
    monkeypatch.setattr("Models.parametrization.network.stream_seed", lambda *_: 11)
    given = f"--model {file}:{function} --width {WIDTH} --param mup-table8 --optimizer {flags}"
    config = parse(TrainConfig, f"{given} --base-shapes {bsh}".split())
    network = Parametrized(config, (INPUTS,), CLASSES)
    ours = network.build()
    entry = OPTIMIZERS[config.optimizer]
    assert entry.family is not None
    scales = network.scales(entry.family, entry.decay)
    found = losses(ours, build_optimizer(config, ours, scales))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert float(found.max() - found.min()) > 0.01  # it has learnt something

    by_width = validate(
        ModelConfig,
        {"model": f"{file}:{function}", "width": WIDTH, "param": "mup-table8", "base_width": BASE},
        "command line",
    )
    same = Parametrized(by_width, (INPUTS,), CLASSES).scales(entry.family, entry.decay)
    assert same.parameters == scales.parameters
