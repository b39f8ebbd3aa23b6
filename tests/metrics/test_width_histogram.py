"""Histograms of the outputs at initialisation, against numpy and scipy."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import stats

from Metrics.figures._experiment import read_experiment
from Metrics.figures._histogram import draw_histogram, standardised
from Metrics.figures._options import Options
from tests.experiments import SEEDS, WIDTHS, cached, plotted, weights_and_pass


def test_outputs_are_those_of_the_network(grid: Path) -> None:
    (found,) = cached(grid, "--metrics init-distribution")
    (again,) = cached(grid, "--metrics init-distribution")  # nothing is lost on the way
    assert again.exponents == found.exponents
    with h5py.File(found.path) as file:
        row = file["runs"].asstr()[()].tolist().index("w32-s2")
        outputs = file["outputs/network"][row, 0]
    _, layers = weights_and_pass(grid, "w32-s2", 0)
    assert outputs == pytest.approx(layers["classifier"][1][:64])
    assert [Path(p).name for p in plotted(grid, "--metrics init-distribution")] == [
        "init-distribution.png",
        "init-distribution-exponents.png",
    ]


def test_a_gaussian_lies_on_the_gaussian() -> None:
    """Of whatever size the outputs for an example are."""
    random = np.random.default_rng(0)
    outputs = random.normal(size=(200, 4, 50)) * np.array([1e-3, 1, 7, 50])[:, None]
    outputs[0, 1, 2:] = np.nan  # a run with fewer outputs
    ratios = standardised(outputs)
    assert len(ratios) == outputs.size - 48
    assert stats.kstest(ratios, "norm").pvalue > 0.01


def test_a_line_for_each_width(grid: Path) -> None:
    (found,) = cached(grid, "--metrics init-distribution")
    cache = read_experiment(found.path)
    (axes,) = draw_histogram(cache, Options()).axes
    assert len(axes.patches) == len(WIDTHS)
    density, edges, _ = axes.patches[0].get_data()  # type: ignore[attr-defined]
    narrow = standardised(cache.outputs[cache.widths == WIDTHS[0]])
    assert len(narrow) == len(SEEDS) * 64 * 10
    expected, _ = np.histogram(narrow, edges, density=True)
    inside = np.mean((narrow >= edges[0]) & (narrow <= edges[-1]))
    assert np.nan_to_num(density) == pytest.approx(expected * inside)
