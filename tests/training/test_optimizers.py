"""Optimizers follow their formulas."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from Training import OPTIMIZERS, TrainConfig
from Training.optimizers import build_optimizer
from Utils.config import validate

Step = Callable[[Tensor, Tensor, dict[str, Tensor], int], Tensor]
"""A formula: (θ, g, memory, number of the step) -> θ'."""

LR, WD = 0.03, 0.2


def adam_direction(
    g: Tensor, memory: dict[str, Tensor], b1: float, b2: float
) -> tuple[Tensor, Tensor]:
    memory["m"] = b1 * memory.get("m", torch.zeros_like(g)) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", torch.zeros_like(g)) + (1 - b2) * g * g
    return memory["m"], memory["v"]


def adam(theta: Tensor, g: Tensor, memory: dict[str, Tensor], k: int) -> Tensor:
    m, v = adam_direction(g + WD * theta, memory, 0.8, 0.95)
    return theta - LR * (m / (1 - 0.8**k)) / ((v / (1 - 0.95**k)).sqrt() + 1e-3)


def adamw(theta: Tensor, g: Tensor, memory: dict[str, Tensor], k: int) -> Tensor:
    m, v = adam_direction(g, memory, 0.8, 0.95)
    step = LR * (m / (1 - 0.8**k)) / ((v / (1 - 0.95**k)).sqrt() + 1e-3)
    return theta * (1 - LR * WD) - step


def rms(theta: Tensor, g: Tensor, memory: dict[str, Tensor], k: int) -> Tensor:
    d = g + WD * theta
    _, v = adam_direction(d, memory, 0.0, 0.95)
    memory["u"] = 0.5 * memory.get("u", torch.zeros_like(g)) + d / (v.sqrt() + 1e-3)
    return theta - LR * memory["u"]


def lamb(theta: Tensor, g: Tensor, memory: dict[str, Tensor], k: int) -> Tensor:
    m, v = adam_direction(g, memory, 0.8, 0.95)
    update = m / (v.sqrt() + 1e-3) + WD * theta
    ratio: Tensor = theta.norm() / (update.norm() + 1e-3)
    return theta - LR * ratio * update


def lion(theta: Tensor, g: Tensor, memory: dict[str, Tensor], k: int) -> Tensor:
    m = memory.get("m", torch.zeros_like(g))
    memory["m"] = 0.95 * m + 0.05 * g
    return theta * (1 - LR * WD) - LR * (0.8 * m + 0.2 * g).sign()


def momentum(theta: Tensor, g: Tensor, memory: dict[str, Tensor], k: int) -> Tensor:
    gain = 1.0 if k == 1 else 0.9
    memory["v"] = 0.5 * memory.get("v", torch.zeros_like(g)) + gain * (g + WD * theta)
    return theta - LR * memory["v"]


def sgd(theta: Tensor, g: Tensor, memory: dict[str, Tensor], k: int) -> Tensor:
    return theta - LR * (g + WD * theta)


NAMES = [entry.name for entry in OPTIMIZERS if not entry.at_infinity]
"""Of networks that have weights."""

FLAGS: dict[str, Any] = {
    "lr": LR,
    "wd": WD,
    "beta1": 0.8,
    "beta2": 0.95,
    "eps": 1e-3,
    "momentum": 0.5,
    "dampening": 0.1,
}
FORMULAS: dict[str, Step] = {
    "sgd": sgd,
    "momentum": momentum,
    "adam": adam,
    "adamw": adamw,
    "rms": rms,
    "lamb": lamb,
    "lion": lion,
}


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    reads = OPTIMIZERS[name].options
    flags = {flag: value for flag, value in FLAGS.items() if flag in reads}
    return build_optimizer(validate(TrainConfig, {"optimizer": name, **flags}, "test"), model)


def gradients(model: nn.Module, steps: int) -> Iterator[None]:
    """Give the parameters random gradients, again and again."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        for parameter in model.parameters():
            shape = parameter.shape
            parameter.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        yield


@pytest.mark.parametrize("name", FORMULAS)
def test_optimizers_follow_their_formulas(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    optimizer = optimizer_of(name, model)
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    memory: dict[str, dict[str, Tensor]] = {n: {} for n in expected}
    for k, _ in enumerate(gradients(model, 6), start=1):
        for n, p in model.named_parameters():
            assert p.grad is not None
            expected[n] = FORMULAS[name](expected[n], p.grad.clone(), memory[n], k)
        optimizer.step()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[n], rtol=1e-12, atol=1e-12)


def test_muon_orthogonalises_matrices_and_gives_the_rest_to_adamw() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 8).double()
    optimizer = optimizer_of("muon", model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    next(gradients(model, 1))
    optimizer.step()
    after = {n: p.detach() for n, p in model.named_parameters()}
    update = (before["weight"] * (1 - LR * WD) - after["weight"]) / LR
    singular = torch.linalg.svdvals(update)  # Newton and Schulz's iteration is a rough one
    assert singular.min() > 0.5 * singular.max() > 0
    adamw = OPTIMIZERS["muon"].options["adamw_lr"]
    step = (before["bias"] * (1 - adamw * WD) - after["bias"]).abs()
    torch.testing.assert_close(step, torch.full_like(step, adamw), rtol=0.02, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_decay_can_spare_vectors(name: str) -> None:
    """Matrices and convolutions move as if all decayed, vectors as if nothing did."""
    reads = OPTIMIZERS[name].options
    flags: dict[str, Any] = {key: value for key, value in FLAGS.items() if key in reads}
    moved = {}
    for variant in ({"wd_on": "matrices"}, {}, {"wd": 0.0}):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(3, 2, 2), nn.LayerNorm(3)).double()
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        values = {"optimizer": name, **flags, **variant}
        optimizer = build_optimizer(validate(TrainConfig, values, "test"), model)
        for _ in gradients(model, 5):
            optimizer.step()
        moved[str(variant)] = dict(model.named_parameters())
    spared, everywhere, nowhere = moved.values()
    for key, parameter in spared.items():
        expected, other = (everywhere, nowhere) if parameter.dim() > 1 else (nowhere, everywhere)
        torch.testing.assert_close(parameter, expected[key], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(parameter, other[key], rtol=1e-6)


def test_a_model_of_vectors_alone_is_trained_without_decay() -> None:
    values = {"wd": 0.1, "wd_on": "matrices"}
    optimizer = build_optimizer(validate(TrainConfig, values, "test"), nn.LayerNorm(3))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]


def test_every_optimizer_is_tested_here() -> None:
    assert set(NAMES) == {*FORMULAS, "muon"}


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_a_checkpoint(name: str, tmp_path: Path) -> None:
    """Saved, read without running code, and loaded into a fresh optimizer, it goes on alike."""
    torch.manual_seed(0)
    models = [nn.Linear(4, 3).double()]
    models.append(copy.deepcopy(models[0]))
    optimizers = [optimizer_of(name, model) for model in models]
    for _ in gradients(models[0], 4):
        optimizers[0].step()
    torch.save(optimizers[0].state_dict(), tmp_path / "state")
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for model, optimizer in zip(models, optimizers, strict=True):
        for _ in gradients(model, 3):
            optimizer.step()
    assert all(map(torch.equal, *(list(model.parameters()) for model in models)))
