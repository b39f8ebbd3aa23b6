"""The paper's figures: their grids, their commands, one toy figure and one small run."""

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from Data import DATASETS
from Metrics import CacheConfig
from Metrics.summary import deviation
from scripts.paper import curves, geometry, grids, training
from scripts.paper.grids import Cell, Grid, Point
from scripts.paper.toys import SYMMETRIES
from scripts.paper.training import Experiment, is_done, needed, train_all
from scripts.paper_figures import FIGURES, PaperConfig, paper_figures
from tests.runs import ROOT
from Training.config import ExtractConfig, TrainConfig
from Utils.cli import parse
from Utils.config import RunConfig
from Utils.errors import UserError

SCHEMAS: dict[str, type[RunConfig]] = {
    "train.py": TrainConfig,
    "extract.py": ExtractConfig,
    "cache.py": CacheConfig,
}
TINY = Point("tiny", "--model fc-bn --depth 2 --width 4 --epochs 1 --wd 1e-3", r"$\lambda$")


def all_grids(scale: grids.Scale) -> list[Grid]:
    return [page for figure in FIGURES if figure.grids for page in figure.grids(scale)]


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_commands_are_those_of_the_stages(scale: grids.Scale) -> None:
    experiment = Experiment("e", "results")
    runs = needed(all_grids(scale))
    assert len({point.expid for point in runs}) == len({point.flags for point in runs})
    for point, metrics in runs.items():
        for stage, *flags in experiment.commands(point, metrics):
            if DATASETS.names.count(shlex.split(point.flags)[1]):
                config = parse(SCHEMAS[stage], flags)
                assert config.run_path == experiment.run(point).path


def test_grids_are_the_papers() -> None:
    """The hyper-parameters that Kunin et al. and the scripts of their repository name."""
    runs = {point.expid: point.flags for point in needed(all_grids("paper"))}
    flags = runs["sgd-bn-wd0.0005"]
    wanted = "--dataset tiny-imagenet --model vgg16-bn --lr 0.1 --wd 0.0005 --epochs 100"
    pairs = {*zip(flags.split()[::2], flags.split()[1::2], strict=True)}
    assert {*zip(wanted.split()[::2], wanted.split()[1::2], strict=True)} <= pairs
    assert ("--train-batch-size", "256") in pairs
    assert sum(name.startswith("sgd") for name in runs) == 2 * 4
    assert sum(name.startswith("momentum") for name in runs) == 2 * 3 * 2 * 4


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_momentum_reaches_oscillation(scale: grids.Scale) -> None:
    """Underdamped where ηλ > (1 − √β)²: some points of the grid are, some are not."""
    sides = set()
    for point in needed(grids.momentum(scale)):
        config = dict(zip(*2 * [iter(point.flags.split())], strict=True))
        rate, decay, beta = (float(config[f"--{k}"]) for k in ("lr", "wd", "momentum"))
        sides.add(rate * decay > (1 - np.sqrt(beta)) ** 2)
    assert sides == {True, False}


def test_dry_run_prints_and_does_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "scripts.paper_figures", "--only", "fig1,fig2", "--dry-run"),
            *("--scale", "paper", "--save-dir", str(tmp_path / "none")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert [shlex.split(line)[1] for line in lines] == ["train.py", "extract.py", "cache.py"] * 2
    assert not (tmp_path / "none").exists()


def test_unknown_figure() -> None:
    with pytest.raises(UserError, match="unknown figure 'fig6'; did you mean 'fig"):
        list(paper_figures(parse(PaperConfig, ["--only", "fig6"])))


def test_a_bucket_is_refused() -> None:
    with pytest.raises(UserError, match="--save-dir gs://lab: these figures need a folder"):
        list(paper_figures(parse(PaperConfig, ["--save-dir", "gs://lab"])))


def test_a_toy_figure_is_written(tmp_path: Path) -> None:
    config = parse(PaperConfig, ["--only", "fig4", "--out", str(tmp_path)])
    lines = list(paper_figures(config))
    assert lines[1:3] == [str(tmp_path / f"fig4.{kind}") for kind in ("pdf", "png")]
    assert (tmp_path / "fig4.pdf").read_bytes().startswith(b"%PDF-")


def test_modified_flow_is_drawn_on_the_points_of_descent() -> None:
    """In the figure, too, it passes closer to them than flow does, in all three panels."""
    figure = geometry.draw_modified()
    for axes in figure.axes[3:]:
        flow, modified = (np.asarray(line.get_ydata()) for line in axes.get_lines())
        assert np.median(modified / flow) < 0.3


def test_charges_are_level_along_the_drawn_flows() -> None:
    figure = geometry.draw_charges()
    for axes, toy in zip(figure.axes, SYMMETRIES, strict=True):
        flows = [line for line in axes.get_lines() if line.get_color() == geometry.FLOW["color"]]
        assert len(flows) == 4
        for line in flows:
            charges = toy.charge(np.asarray(line.get_xydata()))
            assert np.ptp(charges) < 1e-8


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """One tiny run, trained, extracted and cached by the stages' own commands."""
    experiment = Experiment("paper", str(tmp_path_factory.mktemp("paper")))
    ((point, seconds),) = train_all(experiment, {TINY: {"scale", "translation"}}, jobs=1)
    assert point == TINY
    assert seconds > 0
    return experiment


def page(experiment: Experiment, layer: int | str = 0) -> Figure:
    row = [Cell(TINY, "scale", layer), Cell(TINY, "translation")]
    return curves.draw_grid(
        Grid("Tiny", [row]), lambda cell: experiment.run(cell.point).cache(cell.metric)
    )


def test_a_run_is_done_once(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_done(experiment, TINY, {"scale", "translation"})
    assert not is_done(experiment, TINY, {"scale", "network"})
    assert not is_done(experiment, replace(TINY, expid="other"), {"scale"})
    monkeypatch.setattr(training, "_last_step", lambda cache: 3)
    assert not is_done(experiment, TINY, {"scale"})


def test_a_run_of_other_flags_is_refused(experiment: Experiment) -> None:
    other = replace(TINY, flags=TINY.flags.replace("1e-3", "1e-2"))
    with pytest.raises(UserError, match=r"--wd was 0\.001 and is now 0\.01"):
        is_done(experiment, other, {"scale"})


def test_a_stage_that_fails_is_named(experiment: Experiment) -> None:
    with pytest.raises(UserError, match=r"'python train.py --model fd .* unknown model"):
        list(train_all(experiment, {Point("x", "--model fd", ""): {"scale"}}, jobs=1))


def test_a_grid_shows_measurements_and_predictions(experiment: Experiment) -> None:
    figure = page(experiment)
    assert len(figure.axes) == 2
    shown = (("scale", "fc1"), ("translation", "classifier.weight"))
    for axes, (metric, layer) in zip(figure.axes, shown, strict=True):
        styles = [line.get_linestyle() for line in axes.get_lines()]
        assert len(styles) == 3 * 4
        assert {styles.count(kind) for kind in ("-", "--", ":")} == {4}
        (note,) = (text.get_text() for text in axes.texts)
        wanted = deviation(experiment.run(TINY).cache(metric), layer)
        assert wanted is not None
        assert note == "exact {:.0e}, paper {:.0e}".format(*wanted.worst).replace("e-0", "e-")


def test_a_layer_that_is_not_there(experiment: Experiment) -> None:
    with pytest.raises(UserError, match="tiny: its cache of scale has no layer fc9, only fc1;"):
        page(experiment, "fc9")
