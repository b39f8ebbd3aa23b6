"""The laws of charges against plain simulations of the update rule, and closed forms."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from Training.discrete_laws import (
    Coefficients,
    Floats,
    linear_step,
    paper_linear_step,
    paper_quadratic_step,
    quadratic_step,
)

Schedule = list[Coefficients]

SCHEDULES: dict[str, Schedule] = {
    "sgd": [Coefficients(lr=0.1, wd=0.02)],
    "sgd with lr drops": [Coefficients(0.1, 0.02), Coefficients(0.01, 0.02), Coefficients(0.3, 0)],
    "momentum": [Coefficients(0.05, 0.01, momentum=0.9)],
    "dampening": [Coefficients(0.05, 0.01, momentum=0.9, dampening=0.5)],
    "nesterov": [Coefficients(0.05, 0.01, momentum=0.9, nesterov=True)],
    "all change": [
        Coefficients(0.2, 0.01, momentum=0.5, dampening=0.3),
        Coefficients(0.02, 0.1, momentum=0.95),
        Coefficients(0.1, 0.0, momentum=0.9, dampening=0.1),
    ],
}


def simulate(
    schedule: Schedule, steps: int = 60
) -> Iterator[tuple[Coefficients, Floats, Floats, Floats, Floats, Floats]]:
    """Yield θ, g, u, v' and θ' of torch's update rule under random gradients, in float64."""
    rng = np.random.default_rng(0)
    theta, v = rng.normal(size=12), np.zeros(12)
    for k in range(steps):
        base = schedule[k * len(schedule) // steps]
        first = k == 0 and base.momentum > 0
        c = Coefficients(base.lr, base.wd, base.momentum, base.dampening, base.nesterov, first)
        g = rng.normal(size=12)
        d = g + c.wd * theta
        if c.momentum:
            v = d.copy() if first else c.momentum * v + (1 - c.dampening) * d
            u = d + c.momentum * v if c.nesterov else v
        else:
            u = d
        new = theta - c.lr * u
        yield c, theta, g, u, v, new
        theta = new


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_quadratic_law_is_exact_for_any_symmetric_form_if_the_leak_is_known(
    schedule: Schedule,
) -> None:
    form = np.random.default_rng(1).normal(size=12)  # S, indefinite

    def product(x: Floats, y: Floats) -> Floats:
        return np.array([np.sum(form * x * y)])

    q, m = np.zeros(0), np.zeros(0)
    for c, theta, g, u, v, new in simulate(schedule):
        if not q.size:
            q, m = product(theta, theta), np.zeros(1)
        squares = (product(u, u), product(u, v)) if c.momentum else (product(g, g), product(g, g))
        q, m = quadratic_step(q, m, c, *squares, product(theta, g))
        np.testing.assert_allclose(q, product(new, new), rtol=0, atol=1e-12 * np.sum(new**2))
        if c.momentum:
            np.testing.assert_allclose(m, product(new, v), rtol=0, atol=1e-12 * np.sum(new**2))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_linear_law_is_exact(schedule: Schedule) -> None:
    direction = np.random.default_rng(2).normal(size=12)
    s, p = np.zeros(0), np.zeros(0)
    for c, theta, g, _, _, new in simulate(schedule):
        if not s.size:
            s, p = np.array([direction @ theta]), np.zeros(1)
        s, p = linear_step(s, p, c, np.array([direction @ g]))
        np.testing.assert_allclose(s, [direction @ new], rtol=0, atol=1e-12)


def test_linear_law_without_leak_is_underdamped_exactly_beyond_the_stated_threshold() -> None:
    beta = 0.9
    threshold = (1 - math.sqrt(beta)) ** 2
    for factor, oscillates in ((0.9, False), (1.1, True)):
        c = Coefficients(lr=1.0, wd=factor * threshold, momentum=beta)
        s, p, signs = np.ones(1), np.zeros(1), set()
        for _ in range(400):
            s, p = linear_step(s, p, c, np.zeros(1))
            signs.add(float(np.sign(s[0])))
        assert (-1.0 in signs) == oscillates


def paper_sum(c: Coefficients, q0: float, squares: Floats) -> float:
    """The paper's momentum integral as a left Riemann sum, written out in extended precision."""
    h = np.longdouble(c.lr * (1 - c.dampening))
    d = h * (1 + np.longdouble(c.momentum))
    gamma, omega2 = (1 - c.momentum) / d, 4 * c.wd / d
    t, tau = h * len(squares), h * np.arange(len(squares), dtype=np.longdouble)
    root = np.sqrt(np.abs(gamma**2 - omega2))

    def green(x: Any) -> Any:
        kind = np.sin if gamma**2 < omega2 else np.sinh
        return np.exp(-gamma * x) * (x if root == 0 else kind(root * x) / root)

    even = np.cos if gamma**2 < omega2 else np.cosh
    free = np.exp(-gamma * t) * even(root * t) + gamma * green(t)
    forcing = 2 * h * squares / (1 - c.dampening) ** 2
    return float(q0 * free + np.sum(green(t - tau) * forcing))


@pytest.mark.parametrize(
    ("lr", "wd", "momentum", "dampening"),
    [(0.1, 5e-4, 0.9, 0.0), (0.1, 1e-2, 0.97, 0.0), (0.1, 1e-3, 0.9, 0.5), (0.05, 0.0, 0.9, 0.0)],
    ids=["overdamped", "underdamped", "dampening", "no decay"],
)
def test_paper_prediction_with_momentum_equals_its_integral(
    lr: float, wd: float, momentum: float, dampening: float
) -> None:
    c = Coefficients(lr, wd, momentum, dampening)
    squares = np.random.default_rng(3).random(800)
    u, rate = np.array([2.0]), np.zeros(1)
    for square in squares:
        u, rate = paper_quadratic_step(u, rate, c, np.array([square]))
    np.testing.assert_allclose(u, paper_sum(c, 2.0, squares), rtol=1e-11)


def test_paper_prediction_without_momentum_equals_its_integral() -> None:
    c = Coefficients(lr=0.1, wd=1e-2)
    squares = np.random.default_rng(4).random(500)
    u, rate = np.array([2.0]), np.zeros(1)
    for square in squares:
        u, rate = paper_quadratic_step(u, rate, c, np.array([square]))
    t = c.lr * len(squares)
    tau = c.lr * np.arange(len(squares))
    integral = c.lr * np.sum(np.exp(-2 * c.wd * (t - tau)) * squares) * c.lr
    np.testing.assert_allclose(u, 2.0 * math.exp(-2 * c.wd * t) + integral, rtol=1e-12)


@pytest.mark.parametrize("wd", [1e-4, 5e-2])
def test_paper_prediction_of_translation_solves_its_oscillator(wd: float) -> None:
    """Against a fine Runge-Kutta solution of (D/2)θ̈ + (1−β)θ̇ + λθ = 0."""
    from scipy.integrate import solve_ivp

    c = Coefficients(lr=0.1, wd=wd, momentum=0.9)
    u, rate = np.ones(1), np.zeros(1)
    for _ in range(200):
        u, rate = paper_linear_step(u, rate, c)
    mass = c.lr * (1 + c.momentum) / 2
    flow = solve_ivp(
        lambda t, y: [y[1], -((1 - c.momentum) * y[1] + c.wd * y[0]) / mass],
        (0, 200 * c.lr),
        [1.0, 0.0],
        rtol=1e-11,
        atol=1e-13,
    )
    np.testing.assert_allclose(u, flow.y[0, -1], rtol=1e-7)


def test_continuous_and_discrete_laws_agree_to_first_order_in_the_step() -> None:
    """Halving η (and doubling the steps) halves the paper's deviation from the exact law."""
    deviations = []
    for halvings in range(3):
        c = Coefficients(lr=0.1 / 2**halvings, wd=0.05)
        exact, paper = np.ones(1), np.ones(1)
        for _ in range(100 * 2**halvings):
            exact, _ = quadratic_step(exact, np.zeros(1), c, *[np.zeros(1)] * 3)
            paper, _ = paper_quadratic_step(paper, np.zeros(1), c, np.zeros(1))
        deviations.append(abs(float(exact[0] - paper[0])))
    assert deviations[0] / deviations[1] == pytest.approx(2, rel=0.05)
    assert deviations[1] / deviations[2] == pytest.approx(2, rel=0.05)
