"""Runs of infinite width in metrics of widths: the right end of their axes.

Shape letters: P probe examples, C outputs.
"""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.stats import norm

from Metrics.figures._experiment import read_experiment
from Metrics.figures._exponents import draw_sizes, place_of_infinity
from Metrics.figures._options import Options
from Metrics.figures._transfer import draw_transfer
from Metrics.registry import OF_EXPERIMENTS
from Metrics.width.members import Member, grouped, strays
from tests.experiments import cached, plotted
from tests.runs import extract_run, train_run
from Utils.rundir import RunFolder

TINY = (
    "--dataset gaussian-mixture --train-size 24 --test-size 12 --dimension 5 --classes 3 "
    "--probe-size 6 --model fc --depth 3 --no-bias --param ntk --train-batch-size 24 --epochs 2 "
    "--no-laws --dtype float64"
)
WIDTHS, RATES = (8, 16), (0.1, 0.3, 0.9)


@pytest.fixture(scope="module")
def squared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two widths, and of infinite width, at three learning rates; for reading only."""
    path = tmp_path_factory.mktemp("results") / "e"
    for rate in RATES:
        for n in (*WIDTHS, "inf"):
            flags = f"{TINY} --loss mse --width {n} --lr {rate}"
            extract_run(train_run(path / f"w{n}-{rate}", flags))
    return path


@pytest.fixture
def sweep(squared: Path, tmp_path: Path) -> Path:
    """A copy, for the test alone."""
    return Path(shutil.copytree(squared, tmp_path / "e"))


def of_limit(path: Path, metric: str, quantity: str, rate: float = 0.3) -> Any:
    """The curve [steps] of the run of infinite width at a learning rate."""
    with h5py.File(path / "cache" / f"{metric}.h5") as file:
        row = file["runs"][()].tolist().index(f"winf-{rate}".encode())
        assert file["widths"][row] == np.inf
        return file[quantity][row]


def features(path: Path, run: str, step: int, name: str) -> Any:
    with h5py.File(path / run / "feats" / f"step{step}.h5") as file:
        return file[name][()]


def test_what_has_a_meaning_at_infinite_width_is_there(sweep: Path) -> None:
    cached(sweep, "--metrics transfer,coordinates,kernel-convergence,ntk-change")
    loss = features(sweep, "winf-0.3", 2, "ensemble/train_loss")
    assert of_limit(sweep, "transfer", "train loss/network")[2] == loss
    assert loss > features(sweep, "winf-0.3", 2, "metrics/train_loss")
    mean = features(sweep, "winf-0.3", 2, "probe/logits")
    deviation = np.sqrt(features(sweep, "winf-0.3", 2, "probe/variance"))[:, None] + 0 * mean
    size = of_limit(sweep, "coordinates", "preactivation/classifier")[2]
    assert size == pytest.approx(np.sqrt(np.mean(mean**2 + deviation**2)))
    folded = [norm(m, s).expect(abs) for m, s in zip(mean.ravel(), deviation.ravel(), strict=True)]
    found = of_limit(sweep, "coordinates", "mean preactivation/classifier")[2]
    assert found == pytest.approx(np.mean(folded), rel=1e-6)
    assert of_limit(sweep, "kernel-convergence", "kernel deviation/network")[0] == 0
    assert of_limit(sweep, "ntk-change", "kernel change/network")[1:].tolist() == [0, 0]
    with h5py.File(sweep / "winf-0.3" / "kernels.h5") as file:
        trace = np.trace(file["ntk/probe_own"][()]) / 6
    assert of_limit(sweep, "ntk-change", "kernel/network")[0] == pytest.approx(trace)


def test_exponents_are_of_finite_widths(sweep: Path) -> None:
    names = "--metrics transfer,coordinates,kernel-convergence,ntk-change"
    whole = [found.exponents for found in cached(sweep, names)]
    for rate in RATES:
        shutil.rmtree(sweep / f"winf-{rate}")
    assert [found.exponents for found in cached(sweep, f"{names} --overwrite")] == whole


def test_it_is_drawn_at_the_right_end(sweep: Path) -> None:
    convergence, change = cached(sweep, "--metrics kernel-convergence,ntk-change")
    assert "widths 8 to 16 and infinity (2), 1 seed" in convergence.text()
    x = place_of_infinity(np.array(WIDTHS))
    assert x == 32
    figure = draw_sizes(read_experiment(change.path), Options())
    size, moved = figure.axes[:2]
    for axes in (size, moved):
        assert [t.get_text() for t in axes.get_xticklabels()] == ["8", "16", r"$\infty$"]
        assert axes.get_xlim()[1] > x
    (marker,) = [line for line in size.lines if line.get_marker() == "D"]
    trace = of_limit(sweep, "ntk-change", "kernel/network", 0.1)[0]
    assert marker.get_xydata().tolist() == [[x, trace]]  # type: ignore[union-attr]
    (zero,) = [line for line in moved.lines if line.get_marker() == "v"]
    assert zero.get_xydata().tolist() == [[x, 0.0]]  # type: ignore[union-attr]
    assert zero.get_transform() == moved.get_xaxis_transform()  # 0 has no place on the axis itself


def test_losses_over_learning_rates_have_a_curve_at_infinity(sweep: Path) -> None:
    (found,) = cached(sweep, "--metrics transfer")
    figure = draw_transfer(read_experiment(found.path), Options())
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:3] == ["width 8", "width 16", r"width $\infty$"]
    losses = [of_limit(sweep, "transfer", "train loss/network", rate)[2] for rate in RATES]
    curves = [line for line in figure.axes[0].lines if str(line.get_color()) == "k"]
    x, y = (np.asarray(values, float) for values in curves[0].get_data())
    np.testing.assert_allclose(x, RATES)
    np.testing.assert_allclose(y, losses)


def test_losses_at_one_learning_rate_are_drawn_over_widths(sweep: Path) -> None:
    for n in (*WIDTHS, "inf"):
        for rate in (0.1, 0.9):
            shutil.rmtree(sweep / f"w{n}-{rate}")
    (found,) = cached(sweep, "--metrics transfer")
    axes = draw_transfer(read_experiment(found.path), Options()).axes[1]
    (limit,) = [line for line in axes.lines if line.get_marker() == "D"]
    x, y = (np.asarray(values, float) for values in limit.get_data())
    assert [x[0], y[0]] == [32, of_limit(sweep, "transfer", "train loss/network")[2]]
    loss = features(sweep, "w16-0.3", 2, "metrics/train_loss")
    finite = [line.get_data() for line in axes.lines if line.get_marker() == "o"]
    assert [float(np.asarray(y)[0]) for _, y in finite][1] == pytest.approx(loss)


def member(name: str, **flags: Any) -> Member:
    return Member(RunFolder(Path("e") / name), {"lr": 0.1, "init_seed": None, **flags}, (0, 1))


def test_the_limit_of_a_group_has_its_flags() -> None:
    """Where initial weights have seeds of their own, also its seed; --lr if that tells groups."""
    plain = [member(f"{n}-{lr}", width=n, seed=1, lr=lr) for n in (4, 8) for lr in (0.1, 0.2)]
    limits = [member(f"i{lr}", width="inf", seed=2, lr=lr) for lr in (0.1, 0.3)]
    low, high = grouped([*plain, *limits])
    assert [m.name for m in low.limits] == ["i0.1"]
    assert not high.limits
    told = strays([*plain, *limits], [low, high])
    assert told == {"i0.3": "no run of finite width has its --lr"}
    (both,) = grouped([*plain, *limits], within=("lr",))
    assert len(both.limits) == 2
    drawn = [member(f"{s}-{i}", width=4, seed=s, init_seed=i) for s in (1, 2) for i in (3, 4)]
    own = [member(f"i{s}", width="inf", seed=s) for s in (1, 2)]
    groups = grouped([*drawn, *own])
    assert [g.label for g in groups] == ["seed=1", "seed=2"]
    assert [[m.name for m in g.limits] for g in groups] == [["i1"], ["i2"]]
    assert [m.seed for m in groups[1].members] == [3, 4]


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_no_metric_stumbles_over_infinity(
    tmp_path: Path, loss: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "e"
    for n in (*WIDTHS, "inf"):
        extract_run(train_run(path / f"w{n}", f"{TINY} --loss {loss} --width {n} --lr 0.3"))
    nngp = f"{TINY} --loss {loss} --width inf --lr 0.3 --nngp"
    extract_run(train_run(path / "nngp", nngp))
    capfd.readouterr()
    found = cached(path, f"--metrics {','.join(OF_EXPERIMENTS)}")
    log = capfd.readouterr().err
    assert {each.metric for each in found} == set(OF_EXPERIMENTS)
    meant = {"kernel-convergence", "ntk-change"} | (
        {"transfer", "coordinates", "ensemble", "init-distribution"} if loss == "mse" else set()
    )
    for each in found:
        limits = {member.name for group in each.groups for member in group.limits}
        assert limits == ({"winf"} if each.metric in meant else set()), each.metric
    assert "kernel-convergence: --width inf of nngp is left out: no run of finite width" in log
    assert "has its --nngp" in log
    assert "ranks: --width inf of nngp and winf are left out: the metric is about weights" in log
    assert ("--loss mse has the mean and variance of all" in log) == (loss == "ce")
    drawn = {Path(line).stem for line in plotted(path, "") if line.endswith(".png")}
    assert set(OF_EXPERIMENTS) - drawn <= {"ensemble", "transfer"}
