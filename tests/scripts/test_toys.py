"""The toys' mathematics, against closed forms, differences, and orders of convergence."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from scripts.paper.toys import (
    HEAVY_BALL,
    QUADRATIC,
    ROTATION,
    SYMMETRIES,
    Linear,
    Symmetry,
    descend,
    flow,
)

TOYS = {symmetry.name: symmetry for symmetry in SYMMETRIES}
START = np.array([0.7, -1.3])
TIMES = np.linspace(0, 3, 16)


@pytest.mark.parametrize("toy", SYMMETRIES, ids=TOYS)
class TestSymmetries:
    def test_gradients_are_those_of_the_losses(self, toy: Symmetry) -> None:
        points = np.random.default_rng(0).normal(size=(20, 2))
        for axis in range(2):
            step = 1e-6 * np.eye(2)[axis]
            difference = (toy.loss(points + step) - toy.loss(points - step)) / 2e-6
            np.testing.assert_allclose(toy.gradient(points)[:, axis], difference, atol=1e-7)

    def test_flow_conserves_the_charge_and_descends(self, toy: Symmetry) -> None:
        path = flow(toy.gradient, START, TIMES)
        np.testing.assert_allclose(toy.charge(path), toy.charge(START), rtol=1e-9)
        assert np.all(np.diff(toy.loss(path)) < 0)
        assert not np.allclose(path[-1], START, atol=0.1)


def test_descent_breaks_quadratic_charges_by_its_squared_steps() -> None:
    """q' = q + η²⟨g, g⟩_S for the scale and rescale laws; translations stay."""
    rate = 0.3
    for name, signs in (("scale", [1, 1]), ("rescale", [1, -1])):
        path = descend(TOYS[name].gradient, START, rate, 10)
        kinetic = rate**2 * (TOYS[name].gradient(path[:-1]) ** 2 @ signs)
        np.testing.assert_allclose(np.diff(TOYS[name].charge(path)), kinetic, atol=1e-13)
    path = descend(TOYS["translation"].gradient, START, rate, 10)
    np.testing.assert_allclose(path.sum(axis=1), START.sum(), atol=1e-14)


def test_flow_of_the_normalised_vector_is_solved() -> None:
    """The angle to the target φ obeys φ̇ = −sin φ / |w|², so tan(φ/2) decays exponentially."""
    path = flow(TOYS["scale"].gradient, START, TIMES)
    angle = np.arctan2(path[:, 1], path[:, 0]) - np.arctan2(0.6, 0.8)
    solution = np.tan(angle[0] / 2) * np.exp(-TIMES / (START @ START))
    np.testing.assert_allclose(np.tan(angle / 2), solution, rtol=1e-8)


def test_flow_of_the_product_is_solved() -> None:
    """With equal factors p = w₁w₂ obeys ṗ = 2p(1 − p), the logistic equation."""
    path = flow(TOYS["rescale"].gradient, np.array([0.3, 0.3]), TIMES)
    solution = 1 / (1 + (1 / 0.09 - 1) * np.exp(-2 * TIMES))
    np.testing.assert_allclose(path.prod(axis=1), solution, rtol=1e-8)


def test_descent_has_its_closed_forms() -> None:
    steps = np.arange(21)[:, None]
    eigenvalues = np.array([4.0, 1.0])
    np.testing.assert_allclose(QUADRATIC.descent(20), (1 - 0.1 * eigenvalues) ** steps, rtol=1e-12)
    radius = np.linalg.norm(ROTATION.descent(100), axis=1)
    np.testing.assert_allclose(radius, 1.01 ** (np.arange(101) / 2), rtol=1e-12)


def test_flows_have_their_closed_forms() -> None:
    times = TIMES[:, None]
    eigenvalues = np.array([4.0, 1.0])
    np.testing.assert_allclose(QUADRATIC.flow(TIMES), np.exp(-eigenvalues * times), rtol=1e-12)
    rates = eigenvalues + 0.05 * eigenvalues**2
    np.testing.assert_allclose(QUADRATIC.modified_flow(TIMES), np.exp(-rates * times), rtol=1e-12)
    circle = np.stack([np.cos(TIMES), np.sin(TIMES)], axis=1)
    np.testing.assert_allclose(ROTATION.flow(TIMES), circle, atol=1e-12)
    spiral = np.exp(0.05 * times) * circle
    np.testing.assert_allclose(ROTATION.modified_flow(TIMES), spiral, atol=1e-12)


def test_modified_flow_with_momentum_solves_its_equation() -> None:
    toy, times = HEAVY_BALL, np.linspace(0, 0.5, 11)

    def moving(_: float, state: np.ndarray[tuple[int], np.dtype[np.float64]]) -> object:
        place, velocity = state[:2], state[2:]
        force = -(toy.field @ place) - (1 - 0.9) * velocity
        return np.concatenate([velocity, 2 * force / (0.01 * 1.9)])

    begin = np.concatenate([toy.start, -(toy.field @ toy.start) / 1.9])
    solved = solve_ivp(moving, (0, 0.5), begin, t_eval=times, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(toy.modified_flow(times), solved.y[:2].T, atol=1e-8)


def final_errors(toy: Linear, time: float) -> tuple[float, float]:
    """How far flow and modified flow are from gradient descent at a time."""
    end = toy.descent(round(time / toy.rate))[-1]
    paths = (method(np.array([time]))[0] for method in (toy.flow, toy.modified_flow))
    first, second = (float(np.linalg.norm(path - end)) for path in paths)
    return first, second


@pytest.mark.parametrize(
    ("toy", "time"), [(ROTATION, 2.0), (QUADRATIC, 1.0), (HEAVY_BALL, 0.5)], ids="rqm"
)
def test_modified_flow_is_closer_by_one_order(toy: Linear, time: float) -> None:
    """Halving the learning rate halves the flow's error and quarters the modified flow's."""
    rates = [toy.rate / 2**k for k in (2, 3, 4)]
    flows, modified = zip(*(final_errors(replace(toy, rate=r), time) for r in rates), strict=True)
    orders = [np.log2(e[1] / e[2]) for e in (flows, modified)]
    assert orders == pytest.approx([1, 2], abs=0.15)
    assert all(b < a / 4 for a, b in zip(flows, modified, strict=True))


def test_modified_loss_falls_along_the_modified_flow() -> None:
    """Without momentum the modified flow is the gradient flow of the modified loss."""
    path = QUADRATIC.modified_flow(TIMES)
    slow = QUADRATIC.modified_flow(TIMES + 1e-6)
    np.testing.assert_allclose((slow - path) / 1e-6, -path @ QUADRATIC.modified_loss, rtol=1e-4)


def test_modified_loss_with_momentum_gives_the_slow_rates() -> None:
    """The slow root of (D/2)r² + (1−β)r + s = 0 is −m to first order in η."""
    toy = replace(HEAVY_BALL, rate=1e-6)
    inertia = toy.rate * 1.9 / 2
    for s, m in zip((4.0, 1.0), np.diag(toy.modified_loss), strict=True):
        slow = max(np.roots([inertia, 0.1, s]).real)
        assert -slow == pytest.approx(m, rel=1e-6)
