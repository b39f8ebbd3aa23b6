"""Figures of experiments: what is drawn is what was measured and predicted."""

from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from Metrics.figures._experiment import ExperimentCache, FittedExponent, read_experiment
from Metrics.figures._exponents import draw_sizes
from Metrics.figures._forest import draw_forest
from Metrics.figures._options import Options
from Metrics.figures._phases import axes_of, draw_phases
from tests.experiments import (
    FLAGS,
    SEEDS,
    STEPS,
    WIDTHS,
    cached,
    make,
    plotted,
)
from Utils.errors import UserError


def test_figures_are_drawn_once(grid: Path) -> None:
    cached(grid, "--metrics gradients")
    drawn = [str(grid / "img" / name) for name in ("gradients.png", "gradients-exponents.png")]
    assert plotted(grid, "--metrics gradients") == drawn
    assert plotted(grid, "--metrics gradients") == [f"{path} is up to date" for path in drawn]
    with pytest.raises(UserError, match=r"cache.py --experiment sp .* --metrics coordinates"):
        plotted(grid, "--metrics coordinates")
    with pytest.raises(UserError, match="unknown layer 'fc9'"):
        plotted(grid, "--metrics gradients --layers fc9")


def test_one_width_has_no_figure(tmp_path: Path) -> None:
    path = make(tmp_path / "e", FLAGS, widths=(16,))
    cached(path, "--metrics gradients")
    assert plotted(path, "--metrics gradients")[0].startswith("gradients: not drawn")


def test_dashed_lines_have_the_predicted_slopes(grid: Path) -> None:
    (found,) = cached(grid, "--metrics coordinates")
    cache = read_experiment(found.path)
    options = Options(layers=("fc1",))
    axes = {a.get_title(loc="left"): a for a in draw_sizes(cache, options).axes}
    assert list(axes) == [f"{q}, step 1" for q in ("preactivation", "change", "own")]
    slopes = {}
    for title, panel in axes.items():
        dots, line, dashes = (np.log(np.array(p.get_data(), float)) for p in panel.lines)
        assert dots.shape == (2, len(WIDTHS) * len(SEEDS))
        means = [dots[1][np.isclose(dots[0], np.log(n))].mean() for n in WIDTHS]
        assert line[1] == pytest.approx(means)
        assert dashes[1].mean() == pytest.approx(line[1].mean())
        slopes[title.partition(",")[0]] = np.polyfit(dashes[0], dashes[1], 1)[0]
    assert slopes == pytest.approx({"preactivation": 0, "change": -1.5, "own": -1.5}, abs=1e-9)
    legend = axes["own, step 1"].get_legend()
    assert legend is not None
    assert legend.get_texts()[0].get_text().endswith("(−3/2)")
    (forest,) = draw_forest(cache, options).axes
    names = [label.get_text() for label in forest.get_yticklabels()]
    assert names == ["preactivation  fc1", "change  fc1", "own  fc1"]
    ticks = [
        float(np.array(line.get_xdata())[0]) for line in forest.lines if line.get_marker() == "|"
    ]
    assert ticks == [0, -1.5, -1.5]


def test_predicted_norms_have_the_part_that_finite_width_adds(grid: Path) -> None:
    """The readout [10, n]: ‖W‖ ∝ √n + √10 over √n of each weight, by Bai and Yin."""
    (found,) = cached(grid, "--metrics update-norms")
    figure = draw_sizes(read_experiment(found.path), Options(layers=("classifier",)))
    axes = {a.get_title(loc="left"): a for a in figure.axes}
    assert axes["operator norm, step 0"].get_ylabel() == "norm"
    assert axes["stable rank, step 0"].get_ylabel() == "rank"
    edge = 1 + np.sqrt(10 / np.array(WIDTHS))
    for title, shape in (("operator norm", edge), ("stable rank", edge**-2.0)):
        dashes = np.array(axes[f"{title}, step 0"].lines[-1].get_data()[1], float)
        assert dashes / dashes[0] == pytest.approx(shape / shape[0])


def test_every_group_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "e"
    for rate in ("0.1", "0.2", "0.3", "0.4"):
        make(path, FLAGS, rate)
        for run in path.glob("w*"):
            run.rename(run.with_name(f"lr{rate}-{run.name}"))
    (found,) = cached(path, "--metrics gradients")
    labels = [group.label for group in found.groups]
    assert labels == ["lr=0.1", "lr=0.2", "lr=0.3", "lr=0.4"]
    files = [Path(line).stem for line in plotted(path, "--metrics gradients")]
    assert files == [*(f"gradients-{label}" for label in labels), "gradients-exponents"]
    forest = draw_forest(read_experiment(found.path), Options())
    assert [a.get_title(loc="left") for a in forest.axes] == labels


def test_phases_are_those_of_the_recursion() -> None:
    """In the plane of the hidden c and the readout's b, r = 0 is where c + b = 1 (and SGD)."""
    told: dict[str, dict[str, str]] = {}
    fits: list[FittedExponent] = []
    for c in ("0", "1"):
        for b in ("1/2", "1"):
            label = f"c={c} b={b}"
            roles = {"input": ("0", "0", "0"), "hidden": ("0", "1/2", c), "readout": ("0", b, "1")}
            named = {
                f"{name} of {role}": exponent
                for role, exponents in roles.items()
                for name, exponent in zip("abc", exponents, strict=True)
            }
            told[label] = named | {"family": "sgd", "depth": "2"}
            moved = 1 - float(Fraction(b)) - float(c)
            for layer, e in (("fc1", -0.5), ("fc2", moved), ("out", 1.0)):
                fits.append(FittedExponent(label, "change", layer, 1, e, 0.1, None, ""))
    none, whole = np.empty(0), np.empty(0, np.int64)
    cache = ExperimentCache(
        metric="coordinates",
        kind="coordinates",
        title="",
        ylabel="",
        widths=whole,
        seeds=whole,
        data_seeds=whole,
        groups=np.array(list(told)),
        rates=none,
        diverged=whole,
        parametrizations=told,
        steps=whole,
        curves={},
        outputs=none,
        fits=tuple(fits),
        features_hash="",
    )
    assert axes_of(cache) == ["c of hidden", "b of readout"]
    axes = draw_phases(cache, Options()).axes[0]
    dots, *lines = axes.collections
    colours = dots.get_array()
    assert colours is not None
    assert colours.tolist() == [0.5, 0, -0.5, -0.5]  # the first layer moves most at last
    (line,) = lines
    points = np.array(line.get_paths()[0].vertices)
    inside = points[(points[:, 0] > -0.05) & (points[:, 0] < 0.5)]
    assert inside.sum(1) == pytest.approx(np.ones(len(inside)), abs=1e-3)


def test_losses_over_learning_rates(tmp_path: Path) -> None:
    path = tmp_path / "e"
    for rate in ("0.01", "0.1", "1"):
        make(path, FLAGS, rate)
        for run in path.glob("w*"):
            run.rename(run.with_name(f"lr{rate}-{run.name}"))
    (found,) = cached(path, "--metrics transfer")
    assert [(g.label, len(g.members)) for g in found.groups] == [("all", 6)]
    losses = {}
    with h5py.File(found.path) as file:
        for name, loss in zip(file["runs"][()], file["train loss"]["network"][:, -1], strict=True):
            losses[name.decode()] = loss
    for name, loss in losses.items():
        saved = torch.load(path / name / "ckpt" / f"step{STEPS}.tar")["train_loss"]
        assert loss == pytest.approx(saved)
    exponents = {e.quantity.name: e.fit.exponent for e in found.exponents}
    slope = np.log2(losses["lr0.1-w32-s1"] / losses["lr0.1-w16-s1"])
    assert exponents["loss at lr 0.1"] == pytest.approx(slope)
    assert plotted(path, "--metrics transfer")[0].endswith("transfer.png")
    log = (path / "logs" / "cache.log").read_text()
    assert "12 new checkpoints of 6 runs measured" in log
