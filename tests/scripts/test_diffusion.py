"""Displacements after training: the free walk against a simulation, exponents of known powers."""

from pathlib import Path

import numpy as np
import pytest

from scripts.paper.diffusion import Walk, draw_diffusion, free_walk, read_walk
from scripts.paper.grids import Cell, Grid, Point
from tests.runs import cache_run, extract_run, train_run


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_free_walk_is_that_of_independent_gradients(momentum: float) -> None:
    draws = np.random.default_rng(0)
    weights, lr = 20000, 0.1
    v, theta = np.zeros(weights), np.zeros(weights)
    moved, start = [], theta
    for step in range(90):
        if step == 60:
            start = theta
        v = momentum * v + draws.normal(size=weights)
        theta = theta - lr * v
        moved.append(((theta - start) ** 2).sum())
    lags = np.arange(1.0, 31)
    np.testing.assert_allclose(moved[60:], free_walk(lags, lr, momentum, weights), rtol=0.05)


def test_the_exponent_is_that_of_a_power_and_its_interval_students() -> None:
    lags = np.array([1.0, 3, 10, 30, 100])
    powers = np.array([0.4, 0.5, 0.6])
    moved = 2 * lags ** powers[:, None]
    moved[:, 0] = 99  # below the shortest lag
    power, margin = Walk(lags, moved, moved, lags).exponent(2)
    assert power == pytest.approx(0.5)
    assert margin == pytest.approx(4.302653 * 0.1 / 3**0.5)  # t with 2 degrees of freedom


def test_walks_are_read_from_caches_and_drawn(tmp_path: Path) -> None:
    """On plain SGD without decay a velocity is η²|g|²."""
    flags = "--model logistic --lr 0.1 --save-at 3,4,5,7,8 --save-buffers grad --dtype float64"
    cells = []
    for seed in (1, 2):
        run = train_run(tmp_path / "e" / f"s{seed}", f"{flags} --seed {seed}")
        extract_run(run)
        cache_run(run, "--metrics weights_grads_full --subset 0")
        cells.append(Cell(Point(f"s{seed}", f"{flags} --seed {seed}", "x"), "weights_grads_full"))

    def cache_of(cell: Cell) -> Path:
        return tmp_path / "e" / cell.point.expid / "cache" / f"{cell.metric}.h5"

    walk = read_walk(cells, cache_of)
    assert walk.lags.tolist() == [1, 2, 4]  # steps 4, 5 and 7, from 3; 6 ends an epoch
    assert walk.velocity.shape == walk.displacement.shape == (2, 3)
    assert walk.velocity.mean() == pytest.approx(walk.free[0], rel=0.3)
    upper, lower = draw_diffusion(Grid("Walk", [cells]), cache_of).axes
    np.testing.assert_array_equal(upper.get_lines()[1].get_ydata(), walk.displacement[1])
    np.testing.assert_array_equal(lower.get_lines()[0].get_ydata(), walk.velocity[0])
