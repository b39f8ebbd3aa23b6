"""Ensembles beside infinite width: statistics, laws that are known, small experiments.

Shape letters: S networks, M numbers, N training examples, P others.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import curve_fit

from Metrics.fits import fit_power
from Metrics.width.samples import sample
from tests.experiments import cached, plotted
from tests.runs import ROOT, extract_run, flags_of, train_run
from Training.config import TrainConfig
from Training.discrete_laws import Coefficients
from Training.ensemble import train_together
from Training.function_space import InfiniteEnsemble, Stretch
from Utils.cli import parse
from Utils.rundir import RunFolder

CLOUDS = (
    "--dataset gaussian-mixture --train-size 30 --test-size 12 --dimension 5 --classes 3 "
    "--probe-size 6 --model fc --depth 3 --param ntk --loss mse --lr 0.3 --train-batch-size 15 "
    "--epochs 2 --no-laws"
)
WIDTHS, NETWORKS = (4, 256), 10


def test_statistics_are_those_of_all_pairs() -> None:
    d = np.random.default_rng(1).normal(0.3, 1.2, (7, 5))
    found = sample(d)
    pairs = [d[i] @ d[j] / 5 for i in range(7) for j in range(7) if i != j]
    assert found.mean == pytest.approx(np.mean(pairs))
    assert found.variance == pytest.approx(d.var(0, ddof=1).mean() - 1)
    whole = d.var(0, ddof=1).mean()
    pseudo = [7 * whole - 6 * np.delete(d, i, 0).var(0, ddof=1).mean() for i in range(7)]
    student = 2.446911851  # of 6 degrees of freedom
    expected = student * np.std(pseudo, ddof=1) / np.sqrt(7)
    assert found.variance_interval == pytest.approx(expected)
    assert found.mean_within == np.mean(np.abs(d.mean(0)) < 1.959964 / np.sqrt(7))
    low, high = stats.chi2.ppf([0.025, 0.975], 6)
    squares = 6 * d.var(0, ddof=1)
    assert found.variance_within == np.mean((low < squares) & (squares < high))


def test_intervals_hold_what_they_should() -> None:
    """Of 400 samples of 12 networks with dependent numbers, in and beside the law."""
    rng = np.random.default_rng(2)
    mix = rng.normal(size=(3, 20)) + np.eye(3, 20)
    mix /= np.linalg.norm(mix, axis=0)  # of every number the variance is 1
    for shift, scale in ((0.0, 1.0), (0.5, 0.8)):
        held, apart, missed = [], [], []
        for _ in range(400):
            found = sample(shift + scale * rng.normal(size=(12, 3)) @ mix)
            held.append(abs(found.mean - shift**2) < found.mean_interval)
            missed.append(abs(found.variance - (scale**2 - 1)) < found.variance_interval)
            apart.append(found.mean > found.mean_noise)
        assert np.mean(held) > 0.9
        assert np.mean(missed) > 0.88  # of so few networks
        assert (np.mean(apart) < 0.12) == (shift == 0)


def test_noise_is_the_spread_of_means_without_a_deviation() -> None:
    """Of 1500 samples of 12 networks, whose outputs depend on each other."""
    rng = np.random.default_rng(5)
    mix = np.linalg.cholesky(np.array([[1.0, 0.6, 0], [0.6, 1, 0.3], [0, 0.3, 1]])).T
    found = [sample(rng.normal(size=(12, 3)) @ mix) for _ in range(1500)]
    spread = np.std([one.mean for one in found])
    noise = np.sqrt(np.mean([one.mean_noise**2 for one in found])) / stats.norm.ppf(0.975)
    assert noise == pytest.approx(spread, rel=0.1)


def test_parts_within_are_those_of_the_laws_of_means_and_variances() -> None:
    networks = 4
    d = np.random.default_rng(6).normal(size=(networks, 5000))
    mean = np.abs(d.sum(0)) < stats.norm.ppf(0.975) * np.sqrt(networks)
    low, high = stats.chi2.interval(0.95, networks - 1)
    squares = np.square(d - d.mean(0)).sum(0)
    found = sample(d)
    assert found.mean_within == mean.mean()
    assert found.variance_within == ((low < squares) & (squares < high)).mean()
    assert found.mean_within == pytest.approx(0.95, abs=0.01)
    assert found.variance_within == pytest.approx(0.95, abs=0.01)


def test_the_law_of_linear_networks_is_exactly_that_of_the_ensemble() -> None:
    """Linear models θ ~ N(0, 1) of 7 features under gradient descent, of one output."""
    rng = np.random.default_rng(3)
    features, others = rng.normal(size=(5, 7)), rng.normal(size=(4, 7))
    y, lr, steps = rng.normal(size=5), 0.3, 6
    tangent = torch.from_numpy(features @ features.T)
    ensemble = InfiniteEnsemble(tangent, tangent, torch.from_numpy(y)[:, None])
    cross = torch.from_numpy(others @ features.T)
    law = ensemble.descent([Stretch(Coefficients(lr, 0.0))], [steps]).at(
        cross, cross, torch.from_numpy(others @ others.T)
    )
    theta = rng.normal(size=(300, 7))
    for _ in range(steps):
        theta = theta - lr * 2 / 5 * (theta @ features.T - y) @ features
    spread = np.sqrt(law.variance[0].numpy())
    d = (theta @ others.T - law.mean[0, :, 0].numpy()) / spread
    found = sample(d)
    assert abs(found.mean) < found.mean_noise + found.mean_interval
    assert abs(found.variance) < 1.5 * found.variance_interval
    assert min(found.mean_within, found.variance_within) >= 0.5
    wrong = sample(d * 1.3 + 0.4)
    assert wrong.mean > wrong.mean_noise
    assert wrong.variance > wrong.variance_interval


def test_powers_are_those_of_weighted_least_squares() -> None:
    widths = np.array([32.0, 64, 128, 256])
    rng = np.random.default_rng(4)
    errors = 0.1 * widths**-0.7
    values = 5 * widths**-1.1 + errors * rng.normal(size=4)
    found = fit_power(widths, -values, 1.959964 * errors, 9, positive=False)
    assert found is not None
    best, covariance = curve_fit(
        lambda n, a, k: a * n**k, widths, values, (5, -1), errors, absolute_sigma=True
    )
    assert found.exponent == pytest.approx(best[1], abs=0.005)
    assert found.interval == pytest.approx(1.96 * covariance[1, 1] ** 0.5, rel=0.2)
    assert found.last_octave == pytest.approx(np.log2(values[3] / values[2]))
    assert (found.widths, found.seeds) == (4, 9)
    halved = fit_power(widths, values**2, 4 * values * errors, 9, positive=True, power=2)
    assert halved is not None
    assert halved.exponent == pytest.approx(best[1], abs=0.03)
    assert halved.interval == pytest.approx(found.interval, rel=0.2)
    assert halved.last_octave == pytest.approx(found.last_octave)
    assert fit_power(widths, errors * [1, -1, 0.5, -1], 2 * errors, 9, positive=False) is None
    assert fit_power(widths, -values, errors, 9, positive=True) is None
    assert fit_power(widths[:1], values[:1], errors[:1], 9, positive=True) is None


def test_a_power_is_told_from_noise_by_the_normal_percentile() -> None:
    """Of values that are all z standard errors the whole χ² is 4 z², to be above 1.96²."""
    widths = np.array([32.0, 64, 128, 256])
    for z, known in ((0.9, False), (1.05, True)):
        found = fit_power(widths, z / widths, 1.959964 / widths, 9, positive=True)
        assert (found is not None) == known, z
    ends = fit_power(widths[:2], np.ones(2), np.full(2, 1.959964 / 1.5), 9, positive=True)
    assert ends is not None
    assert ends.exponent == pytest.approx(0, abs=0.005)
    assert ends.interval == np.inf  # any power fits
    steep, sure = widths**-5, 1e-3 * widths**-5  # steeper than any theory
    assert fit_power(widths, steep, sure, 9, positive=True) is None


# ---------------------------------------------------------------- experiments


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks that differ in their initial weights alone, and their limit; for reading only."""
    path = tmp_path_factory.mktemp("results") / "e"
    for n in WIDTHS:
        runs = [RunFolder(path / f"w{n}-{seed}") for seed in range(NETWORKS)]
        flags = [f"{CLOUDS} --width {n} --init-seed {seed}" for seed in range(NETWORKS)]
        configs = [
            parse(TrainConfig, [*f.split(), *flags_of(r)]) for f, r in zip(flags, runs, strict=True)
        ]
        assert train_together(configs, runs) == [0] * NETWORKS
        for run in runs:
            extract_run(run)
    extract_run(train_run(path / "inf", f"{CLOUDS} --width inf --dtype float64"))
    return path


@pytest.fixture
def ensemble(whole: Path, tmp_path: Path) -> Path:
    """A copy, for the test alone."""
    return Path(shutil.copytree(whole, tmp_path / "e"))


def tables(path: Path) -> dict[str, Any]:
    with h5py.File(path / "cache" / "ensemble.h5") as file:
        return {name: dataset[()] for name, dataset in file["ensembles"].items()}


def probe(path: Path, run: str, step: int, name: str) -> Any:
    with h5py.File(path / run / "feats" / f"step{step}.h5") as file:
        return file[f"probe/{name}"][()].astype(float)


def test_an_experiment_is_compared_at_every_step(ensemble: Path) -> None:
    (found,) = cached(ensemble, "--metrics ensemble")
    said = tables(ensemble)
    assert said["width"].tolist() == [*WIDTHS, np.inf]
    for row, n in enumerate(WIDTHS):
        for column, step in enumerate((0, 2, 4)):
            f = np.array(
                [probe(ensemble, f"w{n}-{seed}", step, "logits") for seed in range(NETWORKS)]
            )
            mean = probe(ensemble, "inf", step, "logits")
            spread = np.sqrt(probe(ensemble, "inf", step, "variance"))[:, None]
            ratio = (f.var(0, ddof=1) / spread**2).mean() - 1
            assert said["deviation of the variance"][row, column] == pytest.approx(ratio, abs=1e-9)
            d = (f.mean(0) - mean) / spread
            biased = np.mean(d**2) - np.mean(f.var(0, ddof=1) / spread**2) / NETWORKS
            assert said["squared deviation of the mean"][row, column] == pytest.approx(
                biased, abs=1e-9
            )
    assert (said["networks"][:-1] == NETWORKS).all()
    narrow, *_, wide = said["deviation of the variance"][:-1, -1]
    assert abs(narrow) > said["interval of the variance"][0, -1]
    assert abs(wide) < 1.5 * said["interval of the variance"][-2, -1] < 0.5
    assert said["means within"][-2].min() > 0.7  # of wide ones, whose numbers depend on each other
    fits = {(e.quantity.name, e.step): e for e in found.exponents}
    assert all(one.predicted == (-1 if step else None) for (_, step), one in fits.items())
    slope = np.log(abs(wide / narrow)) / np.log(WIDTHS[1] / WIDTHS[0])
    assert fits["deviation of the variance", 4].fit.exponent == pytest.approx(slope, abs=0.005)
    assert "10 networks" in found.text()


def test_the_mean_training_loss_is_that_of_infinite_width(ensemble: Path) -> None:
    """Not the loss of the mean outputs, which misses their variance."""
    with h5py.File(ensemble / "inf" / "feats" / "step4.h5") as file:
        expected, of_mean = file["ensemble/train_loss"][()], file["metrics/train_loss"][()]
    losses = []
    for seed in range(NETWORKS):
        with h5py.File(ensemble / f"w256-{seed}" / "feats" / "step4.h5") as file:
            losses.append(file["metrics/train_loss"][()])
    error = np.std(losses, ddof=1) / np.sqrt(NETWORKS)
    assert abs(np.mean(losses) - expected) < 3 * error
    assert np.mean(losses) - of_mean > 3 * error


def test_new_networks_are_added(ensemble: Path) -> None:
    last = RunFolder(ensemble / f"w4-{NETWORKS}")
    kept = tables_of(ensemble)
    extract_run(train_run(last.path, f"{CLOUDS} --width 4 --init-seed {NETWORKS}"))
    cached(ensemble, "--metrics ensemble")
    said = tables(ensemble)
    assert said["networks"][0, 0] == NETWORKS + 1
    assert said["networks"][1, 0] == NETWORKS
    assert said["deviation of the variance"][0, 2] != kept["deviation of the variance"][0, 2]
    assert (said["deviation of the variance"][1] == kept["deviation of the variance"][1])[:-1].all()


def tables_of(path: Path) -> dict[str, Any]:
    cached(path, "--metrics ensemble")
    return tables(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            "remove",
            "there is no run with --width inf and otherwise the same flags; with --loss mse",
        ),
        ("few", "no width has 4 networks; use more --init-seed"),
        ("seeds", "runs differ in --seed, and so in data and probe batch; use --init-seed"),
        ("other", "no run of finite width has its --lr"),
        ("ce", "with --loss ce it begins at f = 0"),
        ("extracted", "run extract.py --probe logits for all"),
    ],
)
def test_why_nothing_is_compared(
    ensemble: Path, change: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for run in sorted(ensemble.iterdir()):
        keep = {"few": 3, "remove": 4, "other": 4, "ce": 4, "extracted": 4}.get(change, 0)
        if run.name != "inf" and int(run.name.rpartition("-")[2]) >= keep:
            shutil.rmtree(run)
    inf = f"{CLOUDS} --width inf"
    if change == "seeds":
        for seed in range(4):
            own = f"{CLOUDS} --width 4 --seed {seed}"
            extract_run(train_run(ensemble / f"s{seed}", own))
    elif change == "extracted":
        for step in (0, 2, 4):
            RunFolder(ensemble / "inf").features(step).unlink()
        extract_run(RunFolder(ensemble / "inf"), "--probe none")
    elif change != "few":
        shutil.rmtree(ensemble / "inf")
    if change == "other":
        extract_run(train_run(ensemble / "inf", inf.replace("--lr 0.3", "--lr 0.2")))
    if change == "ce":
        extract_run(train_run(ensemble / "inf", inf.replace("--loss mse", "--loss ce")))
    (found,) = cached(ensemble, "--metrics ensemble")
    said = found.text() + capfd.readouterr().err
    assert reason in said
    assert not found.exponents
    assert "no networks and their limit were measured" in plotted(ensemble, "--metrics ensemble")[0]


def test_outputs_that_are_extracted_later_are_taken(
    ensemble: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """After --probe none caches hold no outputs, say so, and are completed without --overwrite."""
    for run in sorted(ensemble.iterdir()):
        if run.name != "inf" and (run.name.startswith("w256") or int(run.name[-1]) >= 4):
            shutil.rmtree(run)
    metrics = "--metrics ensemble,transfer,coordinates"
    cached(ensemble, metrics)
    expected, known = tables(ensemble), _limits(ensemble)
    for run in sorted(ensemble.glob("*/feats")):
        for path in run.glob("step*.h5"):
            path.unlink()
        extract_run(RunFolder(run.parent), "--probe none")
    capfd.readouterr()
    found = cached(ensemble, f"{metrics} --overwrite")
    said = capfd.readouterr().err
    advice = "without outputs on the probe batch; run extract.py --probe logits, and then this"
    assert f"ensemble: 5 runs {advice}" in said
    assert f"transfer: inf {advice}" in said
    assert "run extract.py --probe logits for all" in found[0].text()
    assert not found[0].exponents
    assert np.isnan(list(_limits(ensemble).values())).all()
    plotted(ensemble, metrics)
    for run in sorted(ensemble.glob("*/feats")):
        extract_run(RunFolder(run.parent))
    cached(ensemble, metrics)
    assert "without outputs" not in capfd.readouterr().err
    for name, values in tables(ensemble).items():
        np.testing.assert_array_equal(values, expected[name])
    assert _limits(ensemble) == known
    assert np.isfinite(list(known.values())).all()


def _limits(path: Path) -> dict[str, float]:
    """What other metrics know of infinite width at the last step."""
    values = {}
    named = {"transfer": "train loss/network", "coordinates": "preactivation/classifier"}
    for metric, name in named.items():
        with h5py.File(path / "cache" / f"{metric}.h5") as file:
            row = [run.decode() for run in file["runs"][()]].index("inf")
            values[metric] = float(file[name][row, -1])
    return values


def test_by_the_commands(ensemble: Path) -> None:
    flags = ["--save-dir", str(ensemble.parent), "--experiment", "e", "--metrics", "ensemble"]
    for stage, more in (("cache", []), ("plot", ["--format", "png"])):
        command = [sys.executable, f"{stage}.py", *flags, *more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    drawn = [Path(line).name for line in done.stdout.splitlines()]
    assert drawn == ["ensemble.png", "ensemble-exponents.png"]
