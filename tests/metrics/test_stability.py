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
    assert edge.preconditioner is None
    assert growth(build, 0.99 * edge.threshold, {}) < 0.1
    assert growth(build, 1.01 * edge.threshold, {}) > 100


@pytest.mark.parametrize("case", ADAPTIVE)
def test_adaptive_optimizers_diverge_above_their_threshold_and_not_below(case: str) -> None:
    kind, options = ADAPTIVE[case]

    def build(parameters: list[nn.Parameter]) -> Optimizer:
        optimizer: Optimizer = kind(parameters, lr=LR, **options)
        return optimizer

    edge = stability(build([nn.Parameter(torch.ones(1))]), LR)
    assert edge is not None
    assert edge.preconditioner is not None
    if kind is RMSprop:
        state = {"square_avg": SQUARES} | ({"grad_avg": 0.1} if options.get("centered") else {})
    else:  # 10¹⁰ steps ago: 1 − β₂^t is neither 0 nor 1
        state = {"exp_avg_sq": SQUARES, "step": 1e10}
    p = edge.preconditioner(lambda name: torch.tensor([state[name]]) if name in state else None)
    assert p is not None
    for factor in (0.99, 1.01):
        curvature = factor * edge.threshold * float(p) - edge.decay
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
    assert edge.preconditioner is not None
    p = edge.preconditioner(state.get)
    assert p is not None
    assert theta.grad is not None
    along: Tensor = theta.grad if kind is RMSprop else state["exp_avg"]
    torch.testing.assert_close(before - theta.detach(), LR * along / p, rtol=1e-12, atol=0)
    assert edge.preconditioner(lambda name: None) is None


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
