"""The account of every charge's change: its parts sum to the change, and are what they say."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from Models.symmetry import Laws
from tests.training.test_conservation import batches, laws_of, network, train
from Training import OPTIMIZERS, TrainConfig
from Training.conservation import ConservationObserver
from Training.optimizers import build_optimizer
from Utils.config import validate

STEPS = 60

RUNS: dict[str, dict[str, Any]] = {
    "sgd": {"wd": 5e-3},
    "momentum": {"wd": 5e-3, "momentum": 0.9, "dampening": 0.2},
    "nesterov": {"optimizer": "momentum", "wd": 5e-3, "momentum": 0.9, "nesterov": True},
    "adam": {"wd": 1e-2},
    "adamw": {"wd": 1e-1},
    "rms": {"momentum": 0.5, "wd": 1e-2},
    "lamb": {"wd": 1e-2},
    "lion": {"wd": 1e-1, "lr": 1e-3},
    "muon": {"wd": 1e-1},
    "sgd on matrices": {"optimizer": "sgd", "wd": 5e-2, "wd_on": "matrices"},
    "momentum on matrices": {
        "optimizer": "momentum",
        "wd": 5e-2,
        "momentum": 0.9,
        "wd_on": "matrices",
    },
    "adamw on matrices": {"optimizer": "adamw", "wd": 1e-1, "wd_on": "matrices"},
}


def observed(
    name: str, dtype: torch.dtype = torch.float64, **flags: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, np.dtype[np.float64]]], Laws]:
    """The observer's state after a run, the measured charges before and after, and the laws."""
    model = network(dtype=dtype)
    laws = laws_of(model)
    config = validate(TrainConfig, {"optimizer": name, **RUNS[name], **flags}, "test")
    optimizer = build_optimizer(config, model)
    observer = ConservationObserver(model, optimizer, laws)
    parameters = dict(model.named_parameters())

    def charges() -> Any:
        return laws.measure(lambda name: parameters[name].detach())

    before = charges()
    train(model, optimizer, list(batches(STEPS, dtype)))
    observer.record(STEPS)
    state = observer.state_dict()
    return state | {"decay": decay_of(state)}, {"before": before, "after": charges()}, laws


def decay_of(state: dict[str, Any]) -> Any:
    return state["charge"] - state["start"] - state["kinetic"] - state["leak"]


@pytest.mark.parametrize("name", RUNS)
def test_the_budget_closes_in_float64(name: str) -> None:
    """Decay is what is left: it must be that of the formulas below, or nothing without decay."""
    state, measured, _ = observed(name)
    drift = measured["after"] - measured["before"]
    budget = (state["decay"] + state["kinetic"] + state["leak"]).numpy()
    assert np.abs(budget - drift).max() < 1e-10 * np.abs(drift).max()


@pytest.mark.parametrize("name", ["adam", "adamw", "lion", "muon"])
def test_the_budget_of_other_optimizers_closes_in_float32_too(name: str) -> None:
    """Weights are compared in float64, so that rounding of the update is part of the account."""
    state, measured, _ = observed(name, torch.float32)
    drift = measured["after"] - measured["before"]
    budget = (state["decay"] + state["kinetic"] + state["leak"]).numpy()
    assert np.abs(budget - drift).max() < 1e-10 * np.abs(drift).max()


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_budget_of_a_weight_that_is_taken_in_blocks_closes(
    decay: float, dtype: torch.dtype
) -> None:
    """More numbers than fit the cache; its rows are no multiple of a block's."""
    torch.manual_seed(0)
    linear = [nn.Linear(32, 301), nn.ReLU(), nn.Linear(301, 307), nn.ReLU(), nn.Linear(307, 5)]
    model = nn.Sequential(nn.Flatten(), *linear).to(dtype)
    laws = laws_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=decay)
    observer = ConservationObserver(model, optimizer, laws)
    parameters = dict(model.named_parameters())
    before = laws.measure(lambda name: parameters[name].detach())
    train(model, optimizer, list(batches(5, dtype)))
    observer.record(5)
    drift = laws.measure(lambda name: parameters[name].detach()) - before
    state = observer.state_dict()
    budget = (decay_of(state) + state["kinetic"] + state["leak"]).numpy()
    assert np.abs(budget - drift).max() < 1e-10 * np.abs(drift).max()
    assert (decay_of(state).abs().max() > 0.01 * np.abs(drift).max()) == (decay > 0)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adamw", "rms", "lion"])
def test_without_weight_decay_there_is_no_decay(name: str) -> None:
    state, measured, _ = observed(name, wd=0.0)
    drift = measured["after"] - measured["before"]
    assert np.abs(state["decay"].numpy()).max() < 1e-12 * np.abs(drift).max()


def test_every_optimizer_has_a_budget() -> None:
    assert {entry.name for entry in OPTIMIZERS if not entry.at_infinity} <= set(RUNS)


def test_parts_under_sgd_are_the_sums_they_stand_for() -> None:
    """kinetic = Σ η²⟨g, g⟩_S, leak = −2 Σ η ⟨θ, g⟩_S, decay the rest."""
    model = network()
    laws = laws_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-3)
    observer = ConservationObserver(model, optimizer, laws)
    parameters = dict(model.named_parameters())

    def gradient(name: str) -> Tensor:
        found = parameters[name].grad
        assert found is not None
        return found

    kinetic, leak = np.zeros(len(laws.quadratic)), np.zeros(len(laws.quadratic))
    old: dict[str, Tensor] = {}
    for batch in batches(STEPS):
        old.update({name: p.detach().clone() for name, p in parameters.items()})
        train(model, optimizer, [batch])
        kinetic += 0.01 * laws.quadratic.form(gradient, gradient)
        leak -= 0.2 * laws.quadratic.form(old.__getitem__, gradient)
    observer.record(STEPS)
    state, quadratic = observer.state_dict(), len(laws.quadratic)
    np.testing.assert_allclose(state["kinetic"][:quadratic], kinetic, rtol=1e-12)
    np.testing.assert_allclose(state["leak"][:quadratic], leak, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
def test_decay_under_momentum_is_a_convolution_of_the_charge(nesterov: bool) -> None:
    """What λ⟨θ, θ⟩ pushed into the buffer comes out in all later steps, with weight βⁿ."""
    model = network()
    laws = laws_of(model)
    eta, lam, beta = 0.03, 5e-2, 0.9
    optimizer = torch.optim.SGD(model.parameters(), eta, beta, weight_decay=lam, nesterov=nesterov)
    observer = ConservationObserver(model, optimizer, laws)
    parameters = dict(model.named_parameters())
    charges = []
    for batch in batches(STEPS):
        charges.append(laws.measure(lambda name: parameters[name].detach()))
        train(model, optimizer, [batch])
    observer.record(STEPS)
    factor = np.where(np.arange(len(laws)) < len(laws.quadratic), 2, 1)
    decay, pushed = np.zeros(len(laws)), np.zeros(len(laws))
    for charge in charges:
        pushed = beta * pushed + lam * charge
        decay -= eta * factor * (lam * charge + beta * pushed if nesterov else pushed)
    np.testing.assert_allclose(decay_of(observer.state_dict()), decay, rtol=1e-9, atol=1e-13)


def test_adamws_decay_is_that_of_the_measured_charge() -> None:
    model = network()
    laws = laws_of(model)
    eta, lam = 1e-2, 0.3
    optimizer = torch.optim.AdamW(model.parameters(), eta, weight_decay=lam)
    observer = ConservationObserver(model, optimizer, laws)
    parameters = dict(model.named_parameters())
    decay = np.zeros(len(laws))
    power = np.where(np.arange(len(laws)) < len(laws.quadratic), 2, 1)
    for batch in batches(20):
        decay += ((1 - eta * lam) ** power - 1) * laws.measure(lambda n: parameters[n].detach())
        train(model, optimizer, [batch])
    observer.record(20)
    np.testing.assert_allclose(decay_of(observer.state_dict()), decay, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["adam", "lion"])
def test_no_law_survives_elementwise_preconditioning(name: str) -> None:
    state, _, _ = observed(name)
    assert state["open"].double().mean() < 0.05
    assert torch.isnan(state["paper"]).all()


class Polynomial(torch.optim.Optimizer):
    """Orthogonalised gradients as in Muon, but in the gradient's own precision."""

    def __init__(self, parameters: Any):
        super().__init__(parameters, {"lr": 0.02, "weight_decay": 0.1, "weight_decouple": True})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            assert parameter.grad is not None
            x = parameter.grad.reshape(len(parameter), -1)
            x = x / x.norm()
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            parameter.mul_(1 - 0.02 * 0.1).add_(x.view_as(parameter), alpha=-0.02)


def test_the_translation_law_survives_orthogonalised_updates() -> None:
    """1ᵀG = 0 survives every odd polynomial of G: the gate stays open, the prediction holds."""
    model = network()
    laws = laws_of(model)
    optimizer = Polynomial(model.parameters())
    observer = ConservationObserver(model, optimizer, laws)
    parameters = dict(model.named_parameters())
    train(model, optimizer, list(batches(STEPS)))
    observer.record(STEPS)
    state = observer.state_dict()
    (family,) = (f for f in laws.of_kind("translation") if f.layer == "6.weight")
    measured = laws.measure(lambda name: parameters[name].detach())[family.units]
    assert observer.open[family.units].all()
    assert state["leak"][family.units].abs().max() < 1e-12
    np.testing.assert_allclose(state["charge"][family.units], measured, rtol=1e-9, atol=1e-14)
    assert not any(observer.open[f.units].all() for f in laws.of_kind("rescale"))


def test_muons_bfloat16_breaks_the_translation_law_and_the_gate_sees_it() -> None:
    """Its iteration blows the rounding of the vanishing direction up like any small value."""
    state, _, laws = observed("muon")
    (family,) = (f for f in laws.of_kind("translation") if f.layer == "6.weight")
    assert state["open"][family.units].double().mean() < 0.3


@pytest.mark.parametrize("name", RUNS)
def test_angles_are_those_between_successive_weights(name: str) -> None:
    model = network()
    laws = laws_of(model)
    config = validate(TrainConfig, {"optimizer": name, **RUNS[name]}, "test")
    optimizer = build_optimizer(config, model)
    observer = ConservationObserver(model, optimizer, laws)
    family = next(laws.of_kind("scale"))
    parameters = dict(model.named_parameters())

    def filters() -> Tensor:
        rows = [parameters[name].detach().view(6, -1) for name in family.parameters]
        flat = torch.cat(rows, dim=1)
        normalized: Tensor = flat / flat.norm(dim=1, keepdim=True)
        return normalized

    turned = torch.zeros(6, dtype=torch.float64)
    for batch in batches(10):
        old = filters()
        train(model, optimizer, [batch])
        new = filters()
        turned += 2 * torch.atan2((old - new).norm(dim=1), (old + new).norm(dim=1))  # Kahan's
    observer.record(10)
    state = observer.state_dict()
    np.testing.assert_allclose(state["turned"][family.units], turned, rtol=1e-7)
    index = laws.families.index(family)
    np.testing.assert_allclose(state["record"]["turned"][0, index], turned.mean(), rtol=1e-7)
