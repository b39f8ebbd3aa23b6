"""Matrix laws: charges from raw weights, angular momentum from raw momentum buffers, the figure."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from Metrics.figures import draw
from Metrics.figures._style import ANGULAR, KINDS
from Metrics.summary import deviation
from Models.symmetry import Reduction
from Models.symmetry.balance import balance
from Models.symmetry.frames import Side
from tests.metrics.test_figures import check_page, lines, panels, words
from tests.metrics.test_values import cached, weights
from tests.runs import Runs, cache_run, extract_run, train_run
from Utils.rundir import RunFolder

Floats = NDArray[np.float64]

LINEAR = "--model fc --depth 3 --width 4 --nonlinearity identity --dtype float64 --wd 1e-2"
MOMENTUM = f"{LINEAR} --optimizer momentum --momentum 0.9 --lr 0.05 --save-freq 3"
TRIANGLE = np.triu_indices(4)


def with_bias(w: dict[str, Floats], layer: str) -> Floats:
    return np.concatenate([w[f"{layer}.weight"], w[f"{layer}.bias"][:, None]], axis=1)


def matrix(reader: Floats, writer: Floats) -> Floats:
    """B = W₂ᵀ W₂ − W₁ W₁ᵀ."""
    difference: Floats = reader.T @ reader - writer @ writer.T
    return difference


def test_charges_are_the_upper_triangle_of_a_difference_of_gram_matrices(own: Runs) -> None:
    run = own(MOMENTUM)
    cache_run(run, "--metrics balance")
    arrays = cached(run, "balance")
    for place, step in enumerate(arrays["steps"]):
        w = weights(run, step)
        for first, second in (("fc1", "fc2"), ("fc2", "classifier")):
            expected = matrix(w[f"{second}.weight"], with_bias(w, first))[TRIANGLE]
            measured = arrays[f"empirical/{first}|{second}"][place]
            np.testing.assert_allclose(measured, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("optimizer", ["", "--optimizer momentum --momentum 0.9 --dampening 0.5"])
def test_the_exact_law_holds(tmp_path: Path, optimizer: str) -> None:
    run = train_run(tmp_path / "e" / "x", f"{LINEAR} {optimizer} --lr 0.1 --epochs 6")
    extract_run(run, "--probe none")
    (path,) = cache_run(run, "--metrics balance")
    summary = deviation(path)
    assert summary is not None
    assert summary.open == summary.laws == 20
    assert summary.worst[0] <= 1e-12
    assert summary.worst[1] > 1e-9  # the continuous theory is another one
    arrays = cached(run, "balance")
    assert np.abs(arrays["empirical/fc1|fc2"][-1] - arrays["empirical/fc1|fc2"][0]).max() > 1e-3


# ---------------------------------------------------------------- angular momentum


def buffers(run: RunFolder, step: int) -> dict[str, Floats]:
    with h5py.File(run.features(step)) as file:
        return {name: file["buffers"][f"{name}.momentum_buffer"][()] for name in weights(run, step)}


def asymmetry(run: RunFolder, step: int) -> float:
    """Of fc1|fc2: the largest entry of M − Mᵀ with M = W₂ᵀ V₂ − V₁ W₁ᵀ, relative to its size."""
    w, v = weights(run, step), buffers(run, step)
    first = [with_bias(x, "fc1") for x in (w, v)]
    second = [x["fc2.weight"].T for x in (w, v)]
    m = second[0] @ second[1].T - first[1] @ first[0].T
    products = [np.abs(a) @ np.abs(b).T for a, b in (first, second)]
    size: Floats = products[0] + products[1]
    return float(np.abs(m - m.T).max() / 2 / ((size + size.T) / 2).max())


def test_angular_momentum_vanishes_under_momentum(own: Runs) -> None:
    run = own(MOMENTUM)
    cache_run(run, "--metrics balance")
    curve = cached(run, "balance")["asymmetry/fc1|fc2"]
    assert np.isnan(curve[0])  # there are no momentum buffers yet
    assert (curve[1:] < 1e-13).all()
    expected = [asymmetry(run, step) for step in run.checkpoint_steps()[1:]]
    np.testing.assert_allclose(curve[1:], expected, rtol=0, atol=1e-15)


def test_angular_momentum_is_measured_where_there_is_some(own: Runs) -> None:
    run = own(MOMENTUM)
    with h5py.File(run.features(12), "a") as file:
        buffer = file["buffers/fc2.weight.momentum_buffer"]
        buffer[...] = buffer[()] + np.random.default_rng(0).standard_normal((4, 4))
    cache_run(run, "--metrics balance")
    curve = cached(run, "balance")["asymmetry/fc1|fc2"]
    assert curve[-1] > 1e-2
    np.testing.assert_allclose(curve[-1], asymmetry(run, 12), rtol=1e-10)


@pytest.mark.parametrize(
    "optimizer", ["sgd", "momentum --momentum 0.9 --nesterov", "rms --momentum 0.9", "muon"]
)
def test_other_optimizers_have_no_angular_momentum(own: Runs, optimizer: str) -> None:
    run = own(f"{LINEAR} --optimizer {optimizer}")
    cache_run(run, "--metrics balance")
    assert not [path for path in cached(run, "balance") if path.startswith("asymmetry")]
    if "nesterov" in optimizer:
        assert asymmetry(run, 12) > 1e-6  # indeed it has no such law


def test_turning_is_the_antisymmetric_part_of_the_products_of_all_sides() -> None:
    places = ((0, 2, 3),)
    frame = (Side("write", 0, places, 1.0, False), Side("read", 1, ((1, 0, 2),), -1.0, True))
    charges = balance([frame])
    torch.manual_seed(0)
    x, y = (
        {"write": torch.randn(4, 5).double(), "read": torch.randn(2, 3).double()} for _ in range(2)
    )
    turning = charges.turning(x.__getitem__, y.__getitem__)
    j: Any = np.zeros((3, 3))
    for left, right in (
        (x["write"][[0, 2, 3]], y["write"][[0, 2, 3]]),
        (x["read"][:, [1, 0, 2]].T, y["read"][:, [1, 0, 2]].T),
    ):
        j = j + ((left @ right.T - right @ left.T) / 2).numpy()
    np.testing.assert_allclose(turning, j[np.triu_indices(3)], rtol=1e-12, atol=1e-14)
    assert np.abs(turning).max() > 0.1
    row = Reduction("write", "row")
    assert torch.equal(row.turning(x["write"], y["write"]), torch.zeros(4).double())


# ---------------------------------------------------------------- the figure


def test_diagonal_and_other_entries_are_told_apart(own: Runs) -> None:
    run = own(MOMENTUM)
    (path,) = cache_run(run, "--metrics balance")
    arrays, figure = cached(run, "balance"), draw(path)
    main, lower = panels(figure)["fc1|fc2"]
    diagonal = np.cumsum([0, 4, 3, 2])
    others = np.setdiff1d(np.arange(10), diagonal)
    for kind, units in (("diagonal", diagonal), ("off-diagonal", others)):
        solid = [
            line for line in main.get_lines() if to_hex(line.get_color()).upper() == KINDS[kind]
        ]
        drawn = np.array([line.get_ydata() for line in solid])
        np.testing.assert_array_equal(drawn, arrays["empirical/fc1|fc2"][:, units].T)
    dashed = np.array(sorted(line.tolist() for line in lines(main, "--")))
    np.testing.assert_array_equal(dashed, sorted(arrays["exact/fc1|fc2"].T.tolist()))
    (angular,) = lines(lower, ANGULAR["linestyle"])
    shown = np.maximum(arrays["asymmetry/fc1|fc2"], angular[np.isfinite(angular)].min())
    np.testing.assert_array_equal(angular, shown)
    said = words(figure)
    assert all(name in said for name in ("diagonal", "off-diagonal", "angular momentum"))
    assert "all entries" in said
    check_page(figure)


def test_of_many_entries_half_are_on_the_diagonal(own: Runs) -> None:
    run = own(MOMENTUM)
    (path,) = cache_run(run, "--metrics balance")
    figure = draw(path, max_units=4, layers=("fc1",))
    ((main, _),) = panels(figure).values()
    colours = [to_hex(line.get_color()).upper() for line in main.get_lines()]
    assert [colours.count(KINDS[kind]) for kind in KINDS] == [2, 2]
    assert "4 of 10 entries" in words(figure)
    check_page(figure)


def test_without_momentum_nothing_is_said_of_it(own: Runs) -> None:
    run = own(f"{LINEAR} --lr 0.1")
    (path,) = cache_run(run, "--metrics balance")
    figure = draw(path)
    assert "angular momentum" not in words(figure)
    check_page(draw(path, layer_wise=True))
