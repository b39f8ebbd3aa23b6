"""Exact laws against measurement in float64, for every kind of law and architecture."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from Models.activations import SquaredReLU
from Models.symmetry import Laws, find_laws
from tests.models.symmetry.attention import Attention, Block
from tests.training.test_conservation import residual
from Training.conservation import ConservationObserver

FEATURES, LENGTH, CLASSES = 6, 5, 4


def mlp(activation: nn.Module) -> nn.Module:
    hidden = [nn.Linear(8, 8), activation]
    return nn.Sequential(nn.Linear(FEATURES, 8), activation, *hidden, nn.Linear(8, CLASSES))


def normalised(norm: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 8), norm(), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES)
    )


def deep_linear() -> nn.Module:
    """GL(7) between every two of four layers."""
    widths = [FEATURES, 7, 7, 7, CLASSES]
    pairs = pairwise(widths)
    return nn.Sequential(*(nn.Linear(i, o) for i, o in pairs))


def transformer(gated: bool = True, **options: Any) -> nn.Module:
    return Block(FEATURES, CLASSES, Attention(8, 2, **options), gated)


MODELS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "ReLU²": (lambda: mlp(SquaredReLU()), {"rescale", "translation"}),
    "leaky ReLU": (lambda: mlp(nn.LeakyReLU()), {"rescale", "translation"}),
    "layer norm": (
        lambda: normalised(lambda: nn.LayerNorm(8)),
        {"scale", "rescale", "translation"},
    ),
    "group norm": (
        lambda: normalised(lambda: nn.GroupNorm(2, 8)),
        {"scale", "rescale", "translation"},
    ),
    "RMS norm": (lambda: normalised(lambda: nn.RMSNorm(8)), {"scale", "rescale", "translation"}),
    "deep linear": (deep_linear, {"rescale", "balance", "translation"}),
    "attention": (transformer, {"scale", "rescale", "balance", "translation"}),
    "grouped keys": (lambda: transformer(groups=1), {"scale", "rescale", "balance", "translation"}),
    "rope": (lambda: transformer(rope=True), {"scale", "rescale", "balance", "translation"}),
    "QK-norm": (lambda: transformer(qk_norm=True), {"scale", "rescale", "balance", "translation"}),
    "plain MLP": (lambda: transformer(False), {"scale", "rescale", "balance", "translation"}),
}

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "weight_decay": 5e-3},
    "heavy ball": {"lr": 0.02, "momentum": 0.9, "dampening": 0.3, "weight_decay": 5e-3},
    "Nesterov": {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-3},
}


def batch(sequences: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shape = (16, LENGTH, FEATURES) if sequences else (16, FEATURES)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(CLASSES, (16,), generator=generator)


@cache
def laws_of(name: str) -> Laws:
    model = MODELS[name][0]().double()
    inputs, _ = batch(isinstance(model, Block), torch.Generator())
    return find_laws(model, torch.zeros_like(inputs), "ce")


def observed(
    name: str, steps: int, options: dict[str, Any], own_groups: bool = False
) -> tuple[ConservationObserver, nn.Module]:
    """A model after training under a schedule and clipping.

    Args:
        name: of the model.
        steps: of training.
        options: of SGD.
        own_groups: every parameter decays at its own rate.
    """
    torch.manual_seed(0)
    model = MODELS[name][0]().double()
    generator = torch.Generator().manual_seed(0)
    groups: Any = model.parameters()
    if own_groups:
        groups = [{"params": [p], "weight_decay": 3e-3 * i} for i, p in enumerate(groups)]
    optimizer = torch.optim.SGD(groups, **options)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 50, 0.3)
    observer = ConservationObserver(model, optimizer, laws_of(name))
    for _ in range(steps):
        inputs, targets = batch(isinstance(model, Block), generator)
        optimizer.zero_grad()
        loss: Any = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    observer.record(steps)
    return observer, model


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_every_law_is_followed_exactly(name: str, options: dict[str, Any]) -> None:
    observer, model = observed(name, 120, options)
    assert {family.kind for family in observer.laws.families} == MODELS[name][1]
    assert observer.open.all()
    assert residual(observer, model).max() < 1e-12


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_laws_are_followed_where_every_parameter_decays_at_its_own_rate(
    name: str, options: dict[str, Any]
) -> None:
    observer, model = observed(name, 60, options, own_groups=True)
    assert observer.open.all()
    assert residual(observer, model).max() < 1e-12
