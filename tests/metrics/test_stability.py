"""Thresholds, against stock optimizers on quadratics just below and above them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from Metrics.stability import stability

Build = Callable[[list[nn.Parameter]], Optimizer]

LR = 0.05
SQUARES = 0.04  # of the gradient, as adaptive optimizers remember them

SGDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 3.0},
    "ignored dampening": {"dampening": 0.5},
    "heavy ball": {"momentum": 0.9},
    "dampened": {"momentum": 0.8, "dampening": 0.6, "weight_decay": 2.0},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 1.0},
    "weak nesterov": {"momentum": 0.3, "nesterov": True},
}
SLOW = 1 - 1e-10  # squares are remembered for ever
ADAPTIVE: dict[str, tuple[Any, dict[str, Any]]] = {
    "adam": (Adam, {"betas": (0.9, SLOW)}),
    "adam, decay": (Adam, {"betas": (0.8, SLOW), "weight_decay": 1.5, "eps": 0.02}),
    "adamw": (AdamW, {"betas": (0.9, SLOW), "weight_decay": 2.0}),
    "adam without momentum": (Adam, {"betas": (0.0, SLOW)}),
    "rmsprop": (RMSprop, {"alpha": SLOW}),
    "rmsprop, momentum": (RMSprop, {"alpha": SLOW, "momentum": 0.9, "eps": 0.01}),
    "rmsprop, centered": (RMSprop, {"alpha": SLOW, "centered": True, "weight_decay": 1.0}),
}


def growth(build: Build, curvature: float, state: dict[str, float]) -> float:
    """|θ| after 800 steps on curvature θ²/2, relative to the start."""
    theta = nn.Parameter(torch.tensor([1e-6], dtype=torch.float64))
    optimizer = build([theta])
    if state:
        theta.grad = torch.zeros_like(theta)
        optimizer.step()
        remembered = optimizer.state[theta]
        remembered.update({k: torch.full_like(remembered[k], v) for k, v in state.items()})
    largest = 0.0
    theta.data.fill_(1e-6)
    for _ in range(800):
        theta.grad = curvature * theta.detach()
        optimizer.step()
        if abs(float(theta.detach())) > 1e-3:  # it diverges; squares shall not be felt
            return float(theta.detach().abs()) / 1e-6
        largest = abs(float(theta.detach()))
    return largest / 1e-6


@pytest.mark.parametrize("case", SGDS)
def test_sgd_diverges_above_its_threshold_and_not_below(case: str) -> None:
    def build(parameters: list[nn.Parameter]) -> Optimizer:
        return SGD(parameters, lr=LR, **SGDS[case])

    edge = stability(build([nn.Parameter(torch.ones(1))]), LR)
    assert edge is not None
    assert edge.preconditioned is None
    assert growth(build, 0.99 * edge.threshold, {}) < 0.1
    assert growth(build, 1.01 * edge.threshold, {}) > 100


@pytest.mark.parametrize("case", ADAPTIVE)
def test_adaptive_optimizers_diverge_above_their_threshold_and_not_below(case: str) -> None:
    kind, options = ADAPTIVE[case]

    def build(parameters: list[nn.Parameter]) -> Optimizer:
        optimizer: Optimizer = kind(parameters, lr=LR, **options)
        return optimizer

    theta = nn.Parameter(torch.ones(1))
    edge = stability(build([theta]), LR)
    assert edge is not None
    assert edge.preconditioned is not None
    own = edge.preconditioned[theta]
    if kind is RMSprop:
        state = {"square_avg": SQUARES} | ({"grad_avg": 0.1} if options.get("centered") else {})
    else:  # 10¹⁰ steps ago: 1 − β₂^t is neither 0 nor 1
        state = {"exp_avg_sq": SQUARES, "step": 1e10}
    inverse = own.inverse(lambda name: torch.tensor([state[name]]) if name in state else None)
    assert inverse is not None
    for factor in (0.99, 1.01):
        curvature = factor * edge.threshold / float(inverse) - own.decay
        grown = growth(build, curvature, state)
        assert grown < 0.1 if factor < 1 else grown > 100, (case, factor, grown)


@pytest.mark.parametrize("kind", [Adam, AdamW, RMSprop])
def test_the_preconditioner_is_what_steps_are_divided_by(kind: Any) -> None:
    torch.manual_seed(0)
    theta = nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = kind([theta], lr=LR, **({"weight_decay": 0.0} if kind is AdamW else {}))
    for _ in range(4):
        theta.grad = torch.randn(5, dtype=torch.float64)
        before = theta.detach().clone()
        optimizer.step()
    state = optimizer.state[theta]
    edge = stability(optimizer, LR)
    assert edge is not None
    assert edge.preconditioned is not None
    own = edge.preconditioned[theta]
    inverse = own.inverse(state.get)
    assert inverse is not None
    assert theta.grad is not None
    along: Tensor = theta.grad if kind is RMSprop else state["exp_avg"]
    torch.testing.assert_close(before - theta.detach(), LR * along * inverse, rtol=1e-12, atol=0)
    assert own.inverse(lambda name: None) is None


GROUPS: dict[str, tuple[Any, dict[str, Any], tuple[float, float], int]] = {
    "sgd": (SGD, {}, (0.0, 0.0), 4),
    "sgd, decay": (SGD, {}, (3.0, 0.0), 4),
    "sgd, decay of one": (SGD, {}, (3.0, 0.0), 1),
    "heavy ball": (SGD, {"momentum": 0.9, "dampening": 0.3}, (0.5, 2.0), 4),
    "nesterov": (SGD, {"momentum": 0.6, "nesterov": True}, (0.0, 1.0), 4),
    "adam": (Adam, {"betas": (0.9, SLOW)}, (1.0, 0.5), 4),
    "adamw, the same decay per step": (AdamW, {"betas": (0.8, SLOW)}, (2.0, 0.5), 4),
    "rmsprop": (RMSprop, {"alpha": SLOW, "momentum": 0.5}, (0.0, 0.3), 4),
}
"""Class, flags, decays of two parameters, and by how much the second's rate is larger."""


@pytest.mark.parametrize("case", GROUPS)
def test_parameters_with_rates_of_their_own(case: str) -> None:
    """On a curvature that couples the two, scaled to lie just below and above the threshold."""
    kind, options, decays, larger = GROUPS[case]
    coupled = torch.tensor([[2.0, 1.0], [1.0, 1.5]], dtype=torch.float64)
    squares = {"exp_avg_sq": (0.04, 0.09), "square_avg": (0.04, 0.09), "step": (1e10, 1e10)}

    def build() -> tuple[list[nn.Parameter], Optimizer]:
        theta = [nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in "ab"]
        groups = [
            {"params": [one], "lr": LR * rate, "weight_decay": decay}
            for one, rate, decay in zip(theta, (1, larger), decays, strict=True)
        ]
        optimizer: Optimizer = kind(groups, lr=LR, **options)
        return theta, optimizer

    theta, optimizer = build()
    edge = stability(optimizer, LR)
    assert edge is not None
    assert edge.preconditioned is not None
    own = [edge.preconditioned[one] for one in theta]
    inverse = []
    for k, each in enumerate(own):
        remembered = {name: torch.tensor(both[k]) for name, both in squares.items()}
        found = each.inverse(remembered.get)
        assert found is not None
        inverse.append(float(found))
    root = torch.tensor(inverse, dtype=torch.float64).sqrt()
    decay = torch.diag(torch.tensor([each.decay for each in own], dtype=torch.float64))

    def largest(scale: float) -> float:
        matrix = root[:, None] * (scale * coupled + decay) * root
        return float(torch.linalg.eigvalsh(matrix)[-1])

    low, high = 0.0, 1e6
    for _ in range(80):  # the scale at which the largest eigenvalue is at the threshold
        middle = (low + high) / 2
        low, high = (middle, high) if largest(middle) < edge.threshold else (low, middle)
    for factor in (0.99, 1.01):
        theta, optimizer = build()
        _remember(theta, optimizer, squares)
        for one in theta:
            one.data.fill_(1e-6)
        for _ in range(1500):
            at = torch.cat([one.detach() for one in theta])
            for one, gradient in zip(theta, factor * low * coupled @ at, strict=True):
                one.grad = gradient[None]
            optimizer.step()
            if float(at.abs().max()) > 1e-3:
                break
        grown = float(at.abs().max()) / 1e-6
        assert grown < 0.1 if factor < 1 else grown > 100, (case, factor, grown)


def _remember(
    theta: list[nn.Parameter], optimizer: Optimizer, squares: dict[str, tuple[float, float]]
) -> None:
    """Give adaptive optimizers squares that were made long ago."""
    for one in theta:
        one.grad = torch.zeros_like(one)
    optimizer.step()
    for k, one in enumerate(theta):
        state = optimizer.state[one]
        kept = {name: v[k] for name, v in squares.items() if state.get(name) is not None}
        state.update({name: torch.full_like(state[name], v) for name, v in kept.items()})


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, RMSprop])
def test_a_rate_of_its_own_is_like_another_learning_rate(kind: Any) -> None:
    """Decay included, which AdamW multiplies by the rate."""
    theta = nn.Parameter(torch.ones(1))
    state = {"exp_avg_sq": SQUARES, "square_avg": SQUARES, "step": 3.0}
    curvatures = []
    for default, rate in ((LR, 4 * LR), (4 * LR, 4 * LR)):
        optimizer = kind([{"params": [theta], "lr": rate}], lr=default, weight_decay=1.5)
        edge = stability(optimizer, default)
        assert edge is not None
        curvature = edge.threshold
        if edge.preconditioned is not None:
            own = edge.preconditioned[theta]
            inverse = own.inverse(lambda name: torch.tensor([state[name]]))
            assert inverse is not None
            curvature = curvature / float(inverse) - own.decay
        curvatures.append(curvature)
    assert curvatures[0] == pytest.approx(curvatures[1], rel=1e-6)


def test_first_steps_have_rates_of_their_own() -> None:
    theta = nn.Parameter(torch.ones(1))
    optimizer = SGD([{"params": [theta], "lr": 0.2, "first_lr": 5.0}], lr=LR)
    for first, factor in ((False, 4.0), (True, 20.0)):
        edge = stability(optimizer, LR, first)
        assert edge is not None
        assert edge.preconditioned is not None
        assert edge.preconditioned[theta].factor == pytest.approx(factor)
        assert edge.threshold == 2 / LR


def test_published_thresholds() -> None:
    """2/η, 2(1+β)/η and (2/η)(1+β)/(1+2β) of 2021; 38/η of 2022."""
    theta = [nn.Parameter(torch.ones(1))]
    for optimizer, expected in (
        (SGD(theta, lr=LR), 2 / LR),
        (SGD(theta, lr=LR, momentum=0.9), 3.8 / LR),
        (SGD(theta, lr=LR, momentum=0.9, nesterov=True), 2 / LR * 1.9 / 2.8),
        (Adam(theta, lr=LR), 38 / LR),
    ):
        edge = stability(optimizer, LR)
        assert edge is not None
        assert edge.threshold == pytest.approx(expected, rel=1e-14)


def test_no_threshold() -> None:
    theta = [nn.Parameter(torch.ones(1))]
    assert stability(Adagrad(theta), LR) is None
    for optimizer in (SGD(theta, lr=LR), Adam(theta), RMSprop(theta)):
        edge = stability(optimizer, 0.0)  # the end of a cosine
        assert edge is not None
        assert edge.threshold == float("inf")
