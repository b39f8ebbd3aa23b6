"""Histograms of the outputs at initialisation, against numpy and scipy."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy import stats

from Metrics.figures._experiment import read_experiment
from Metrics.figures._histogram import draw_histogram, standardised
from Metrics.figures._options import Options
from Models.infinite.limit import limit_network
from tests.experiments import SEEDS, WIDTHS, cached, make, plotted, weights_and_pass
from tests.runs import extract_run, train_run
from Training.rebuild import rebuild_config


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


UNTRAINED = (
    "--dataset gaussian-mixture --train-size 20 --test-size 10 --dimension 5 --classes 8 "
    "--probe-size 6 --model fc --depth 3 --epochs 0 --no-laws --dtype float64"
)


@pytest.mark.parametrize("param", ["ntk", "hybrid:0.5"])
def test_with_infinite_width_the_gaussian_has_a_size(param: str, tmp_path: Path) -> None:
    """K(x, x) of the analytic kernel; wide networks have it, and narrow ones are not rescaled.
    Where it is 0 outputs are compared over their own size."""
    flags = f"{UNTRAINED} --loss mse --param {param}"
    path = make(tmp_path / "e", flags, "0.1", (2, 128), (1, 2, 3, 4))
    limits = [
        train_run(path / f"inf-s{seed}", f"{flags} --width inf --lr 0.1 --seed {seed}")
        for seed in (1, 2, 3, 4)
    ]
    for run in limits:
        extract_run(run)
    inf = limits[2]
    (found,) = cached(path, "--metrics init-distribution")
    with h5py.File(found.path) as file:
        row = file["runs"].asstr()[()].tolist().index("inf-s3")
        second, fourth = (
            np.array([file[f"{name} moment/example {i}"][:, 0] for i in range(6)]).T
            for name in ("second", "fourth")
        )
        of_seed = {int(s): second[r] for r, s in enumerate(file["seeds"]) if r >= 8}
    with h5py.File(inf.probe) as file:
        inputs = torch.from_numpy(file["inputs"][()])
    config = rebuild_config(inf, inf.read_hyperparameters())
    exact = limit_network(config, tuple(inputs.shape[1:]), 8).kernels(inputs).nngp
    assert exact is not None
    np.testing.assert_allclose(second[row], exact.diagonal(), rtol=1e-12)
    np.testing.assert_allclose(fourth[row], 3 * exact.diagonal() ** 2, rtol=1e-12)
    cache = read_experiment(found.path)
    (axes,) = draw_histogram(cache, Options()).axes
    known = param == "ntk"
    assert ("infinite width" in axes.get_xlabel()) == known
    for line, n in enumerate((2, 128)):
        outputs = cache.outputs[cache.widths == n]
        sizes = np.sqrt(np.square(outputs).mean((0, 2)))
        if known:  # every seed has examples of its own
            sizes = np.sqrt([of_seed[s] for s in cache.seeds[cache.widths == n]])
        density, edges, _ = axes.patches[line].get_data()  # type: ignore[attr-defined]
        expected, _ = np.histogram(outputs / sizes[..., None], edges)
        assert np.nan_to_num(density) == pytest.approx(expected / outputs.size / np.diff(edges))
        if known and n == 128:
            assert np.mean(np.square(outputs / sizes[..., None])) == pytest.approx(1, abs=0.25)


def test_without_the_covariance_infinite_width_is_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = f"{UNTRAINED} --loss ce --param ntk"
    path = make(tmp_path / "e", flags, "0.1", (2, 4))
    extract_run(train_run(path / "inf", f"{flags} --width inf --lr 0.1"))
    (found,) = cached(path, "--metrics init-distribution")
    assert "init-distribution: --width inf of inf is left out: with --loss ce" in (
        capfd.readouterr().err
    )
    assert read_experiment(found.path).limit is None
