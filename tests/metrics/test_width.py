"""Metrics of experiments: their numbers against checkpoints by hand, exponents against theory."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray

from Metrics import CacheConfig
from Metrics.figures import PlotConfig
from Metrics.figures._experiment import read_experiment
from Metrics.figures._exponents import draw_forest, draw_sizes
from Metrics.figures._options import Options
from Metrics.figures.experiment import plot_experiment
from Metrics.registry import scope_of
from Metrics.width.alignment import alignments
from Metrics.width.caching import Findings, cache_experiment, contradictions
from Metrics.width.norms import edge, operator_norm
from tests.runs import ROOT, extract_run, train_run
from Utils.cli import parse
from Utils.errors import UserError
from Utils.rundir import ExperimentFolder, RunFolder

WIDTHS, SEEDS = (16, 32, 64, 128, 256), (1, 2, 3)
FLAGS = (
    "--model fc --depth 4 --nonlinearity relu --loss ce --dtype float64 --epochs 1 "
    "--train-batch-size 720 --drop-last --no-balance"
)
STEPS = 1


def make(
    path: Path,
    flags: str,
    lr: str = "8/n",
    widths: tuple[int, ...] = (16, 32),
    seeds: tuple[int, ...] = (1,),
) -> Path:
    """An experiment, trained and extracted; ``lr`` is a formula in n."""
    for n in widths:
        for seed in seeds:
            rate = eval(lr, {"n": n})
            own = f"--width {n} --seed {seed} --lr {rate}"
            extract_run(train_run(path / f"w{n}-s{seed}", f"{flags} {own}"))
    return path


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Standard parametrization with lr ∝ 1/n; for reading only."""
    path = tmp_path_factory.mktemp("results") / "sp"
    return make(path, f"{FLAGS} --no-bias", "8/n", WIDTHS, SEEDS)


@pytest.fixture
def own(experiment: Path, tmp_path: Path) -> Path:
    """A copy for the test alone."""
    copied = tmp_path / "sp"
    shutil.copytree(experiment, copied)
    return copied


def cached(path: Path, arguments: str) -> list[Findings]:
    flags = ["--save-dir", str(path.parent), "--experiment", path.name]
    config = parse(CacheConfig, [*flags, *arguments.split()])
    folder = ExperimentFolder(path)
    return cache_experiment(config, folder, [RunFolder(run) for run in folder.runs()])


def state(run: Path, step: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "ckpt" / f"step{step}.tar")[
        "model_state_dict"
    ]
    return found


def rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def forward(weights: dict[str, torch.Tensor], x: np.ndarray) -> dict[str, tuple[Any, Any]]:
    """(input, output) of the layers of a ReLU network, by numpy."""
    seen = {}
    for layer in ("fc1", "fc2", "fc3", "classifier"):
        h = x @ weights[f"{layer}.weight"].numpy().T
        if f"{layer}.bias" in weights:
            h = h + weights[f"{layer}.bias"].numpy()
        seen[layer] = (x, h)
        x = np.maximum(h, 0)
    return seen


def test_coordinates_are_those_of_the_checkpoints(tmp_path: Path) -> None:
    path = make(tmp_path / "e", FLAGS, widths=(32,))
    (found,) = cached(path, "--metrics coordinates")
    run = path / "w32-s1"
    with h5py.File(run / "feats" / "probe.h5") as file:
        probe = file["inputs"][()].reshape(len(file["inputs"]), -1).astype(float)
    before, after = state(run, 0), state(run, STEPS)
    start, now = forward(before, probe), forward(after, probe)
    with h5py.File(found.path) as file:
        assert file["steps"][()].tolist() == [0, STEPS]
        measured = {
            f"{name}/{layer}": file[name][layer][0, 1]
            for name in ("preactivation", "mean preactivation", "change", "own", "propagated")
            for layer in (start if name != "propagated" else ("fc2", "fc3", "classifier"))
        }
        bias = file["bias"]["fc3"][0, 1]
    w0, w1 = before["fc3.weight"].numpy(), after["fc3.weight"].numpy()
    x0, x1 = start["fc3"][0], now["fc3"][0]
    parts = {
        "preactivation": rms(now["fc3"][1]),
        "mean preactivation": np.mean(np.abs(now["fc3"][1])),
        "change": rms(now["fc3"][1] - start["fc3"][1]),
        "own": rms(x1 @ (w1 - w0).T),
        "propagated": rms((x1 - x0) @ w0.T),
    }
    for name, value in parts.items():
        assert measured[f"{name}/fc3"] == pytest.approx(value, rel=1e-12), name
    moved = (after["fc3.bias"] - before["fc3.bias"]).numpy()
    assert bias == pytest.approx(rms(moved), rel=1e-12)
    total = x1 @ (w1 - w0).T + (x1 - x0) @ w0.T + moved
    assert np.abs(total - (now["fc3"][1] - start["fc3"][1])).max() < 1e-12
    assert len(measured) == 4 * 4 + 3


def test_norms_are_those_of_numpy(own: Path) -> None:
    (found,) = cached(own, "--metrics update-norms")
    before, after = (state(own / "w64-s1", step)["fc2.weight"] for step in (0, STEPS))
    values = np.linalg.svd((after - before).numpy(), compute_uv=False)
    with h5py.File(found.path) as file:
        at = file["runs"][()].astype(str).tolist().index("w64-s1")
        norms = {name: file[name]["fc2"][at, 1] for name in file if name.startswith("update")}
    assert norms == pytest.approx(
        {
            "update operator norm": values[0],
            "update frobenius norm": np.sqrt((values**2).sum()),
            "update stable rank": (values**2).sum() / values[0] ** 2,
            "update spectral ratio": values[0],
        },
        rel=1e-12,
    )


@pytest.mark.parametrize("shape", [(300, 700), (700, 300), (400, 400)])
def test_large_operator_norms_are_exact_to_the_tolerance(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = np.linalg.norm(matrix.numpy(), ord=2)
    assert operator_norm(matrix) == pytest.approx(exact, rel=1e-9)
    assert operator_norm(torch.zeros(shape, dtype=torch.float64)) == 0
    size = shape[0] ** 0.5 * edge(*shape, shape[0])  # Bai and Yin's limit
    assert exact == pytest.approx(size, rel=0.03)


def test_gradients_are_finite_differences(own: Path) -> None:
    (found,) = cached(own, "--metrics gradients")
    run, step = own / "w16-s1", 1e-6
    weights = {k: v.numpy() for k, v in state(run, 0).items()}
    with h5py.File(run / "feats" / "probe.h5") as file:
        probe = file["inputs"][()].reshape(len(file["inputs"]), -1).astype(float)
    h = forward(state(run, 0), probe)["fc3"][1]

    def head(h3: np.ndarray) -> np.ndarray:
        out: np.ndarray = np.maximum(h3, 0) @ weights["classifier.weight"].T
        return out

    moves = step * np.eye(h.shape[1])
    slopes = [(head(h + move) - head(h - move)) / (2 * step) for move in moves]
    with h5py.File(found.path) as file:
        at = file["runs"][()].astype(str).tolist().index("w16-s1")
        measured = file["output gradient"]["fc3"][at, 0]
    assert measured == pytest.approx(rms(slopes), rel=1e-6)


@pytest.mark.parametrize(
    ("metric", "share"), [("coordinates", 0.7), ("update-norms", 0.9), ("gradients", 1.0)]
)
def test_exponents_are_those_of_theory(own: Path, metric: str, share: float) -> None:
    """The learning rate 8/n is found to be a power of the width, so theory is that of lr/n."""
    (found,) = cached(own, f"--metrics {metric}")
    compared = [e for e in found.exponents if e.verdict]
    assert len(compared) > 5
    assert sum(e.verdict == "agrees" for e in compared) >= share * len(compared)
    assert sum(e.verdict == "contradicts" for e in compared) <= 0.05 * len(compared)
    by_name = {(e.quantity.name, e.quantity.layer, e.step): e for e in found.exponents}
    if metric == "coordinates":
        moved = by_name["own", "fc1", STEPS]
        assert str(moved.predicted) == "-3/2"
        assert moved.fit.exponent == pytest.approx(-1.5, abs=0.1)
    if metric == "gradients":
        for layer in ("fc1", "fc2", "fc3"):
            fit = by_name["output gradient", layer, 0].fit
            assert fit.exponent == pytest.approx(-0.5, abs=0.1)


def test_other_groups_and_other_predictions(tmp_path: Path) -> None:
    """Two learning rates are two groups; constant ones are unstable."""
    flags = f"{FLAGS} --no-bias"
    path = make(tmp_path / "e", flags, "1e-3")
    for run in list(path.iterdir()):
        run.rename(run.with_name(f"a-{run.name}"))
    make(path, flags, "2e-3")
    (found,) = cached(path, "--metrics coordinates")
    assert [(g.label, len(g.members)) for g in found.groups] == [("lr=0.001", 2), ("lr=0.002", 2)]
    predicted = {
        (e.quantity.name, e.quantity.layer): str(e.predicted)
        for e in found.exponents
        if e.step == 1 and e.group == "lr=0.001"
    }
    assert [predicted["own", layer] for layer in ("fc1", "fc2", "fc3")] == ["-1/2", "1/2", "1"]
    assert predicted["change", "classifier"] == "2"


def test_theory_is_silent_where_it_does_not_apply(tmp_path: Path) -> None:
    path = make(tmp_path / "e", f"{FLAGS} --wd 0.1", "0.1")
    (found,) = cached(path, "--metrics gradients")
    assert {e.predicted for e in found.exponents} == {None}
    assert "no theory: weight decay" in found.text()
    assert all(e.verdict == "" for e in found.exponents)


def test_only_what_is_new_is_measured(own: Path) -> None:
    held = own.parent / "held"
    shutil.move(own / "w128-s3", held)
    (first,) = cached(own, "--metrics gradients")
    shutil.move(held, own / "w128-s3")
    run, *_ = own.glob("w16-s1/feats/step0.h5")
    before = first.path.read_bytes()
    run.rename(run.with_name("away.h5"))
    cached(own, "--metrics gradients")  # one more run, and one that lacks step 0
    text = (own / "logs" / "cache.log").read_text()
    assert "w16-s1 is left out: it lacks the features of step 0" in text
    assert f"{1 + STEPS} new checkpoints of 14 runs measured" in text
    run.with_name("away.h5").rename(run)
    (third,) = cached(own, "--metrics gradients")
    (fresh,) = cached(own, "--metrics gradients --overwrite")
    assert [e.row() for e in third.exponents] == [e.row() for e in fresh.exponents]
    assert before != third.path.read_bytes()
    (again,) = cached(own, "--metrics gradients")
    assert "0 new checkpoints of 15 runs measured" in (own / "logs" / "cache.log").read_text()
    assert again.exponents == fresh.exponents


def test_workers_find_the_same(own: Path) -> None:
    for run in [*own.glob("w128-*"), *own.glob("w256-*")]:
        shutil.rmtree(run)
    (here,) = cached(own, "--metrics gradients")
    (there,) = cached(own, "--metrics gradients --overwrite --workers 1")
    assert there.exponents == here.exponents


def test_a_damaged_run_stops_no_other(own: Path) -> None:
    (own / "w16-s1" / "feats" / f"step{STEPS}.h5").write_bytes(b"no HDF5")
    with pytest.raises(UserError, match=r"w16-s1.*all 14 others are done"):
        cached(own, "--metrics gradients")
    with h5py.File(own / "cache" / "gradients.h5") as file:
        assert len(file["runs"]) == 14


def test_an_experiment_without_runs_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    with pytest.raises(UserError, match="has no run that can be measured"):
        cached(tmp_path / "e", "--metrics coordinates")


def test_the_table_is_a_csv_and_xarray_opens_the_cache(own: Path) -> None:
    (found,) = cached(own, "--metrics gradients")
    with open(found.path.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.exponents)
    assert [float(row["exponent"]) for row in rows] == [e.fit.exponent for e in found.exponents]
    assert {row["predicted"] for row in rows} == {"-1/2", ""}
    groups = xarray.open_groups(found.path, engine="h5netcdf")
    assert groups["/"]["widths"].dims == ("runs",)
    assert groups["/output gradient"]["fc1"].dims == ("runs", "steps")


def test_contradictions_end_the_command_with_1(own: Path) -> None:
    found = cached(own, "--metrics gradients")
    assert not contradictions(found)
    for n in WIDTHS:  # what was trained with lr 8/n is now said to be trained with 8
        for seed in SEEDS:
            path = own / f"w{n}-s{seed}" / "hyperparameters.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"lr": 8.0}))
    flags = f"--save-dir {own.parent} --experiment sp --metrics coordinates --assert".split()
    command = [sys.executable, "cache.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"contradiction: own fc1, step 1 of all: -1\.\S+ \(-1/2\)!", done.stderr)
    assert done.stdout.startswith("coordinates, all: widths 16 to 256 (5), 3 seeds; ")
    row = next(line for line in done.stdout.splitlines() if line.startswith("own  "))
    assert "(-1/2)!" in row


def test_nothing_to_compare_is_no_success(tmp_path: Path) -> None:
    found = cached(make(tmp_path / "e", FLAGS, widths=(16,)), "--metrics gradients")
    with pytest.raises(UserError, match="--assert: no exponent has a prediction"):
        contradictions(found)


def weights_and_pass(path: Path, run: str, step: int) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    with h5py.File(path / run / "feats" / "probe.h5") as file:
        probe = file["inputs"][()].reshape(len(file["inputs"]), -1).astype(float)
    weights = state(path / run, step)
    return {k: v.numpy() for k, v in weights.items()}, forward(weights, probe)


def row_of(found: Findings, run: str, layer: str) -> dict[str, Any]:
    """The [steps] curves of a run's layer, by quantity."""
    with h5py.File(found.path) as file:
        at = file["runs"][()].astype(str).tolist().index(run)
        named = {q: file[q] for q in file if isinstance(file[q], h5py.Group) and q != "fits"}
        return {q: group[layer][at] for q, group in named.items() if layer in group}


def test_alignment_contributions_and_ranks_are_those_of_numpy(tmp_path: Path) -> None:
    path = make(tmp_path / "e", FLAGS, widths=(32,))
    alignment, parts, ranks = cached(path, "--metrics alignment,contributions,ranks")
    before, _ = weights_and_pass(path, "w32-s1", 0)
    after, now = weights_and_pass(path, "w32-s1", STEPS)
    w0, moved = before["fc2.weight"], after["fc2.weight"] - before["fc2.weight"]
    x, h = now["fc2"]
    own, initial = np.abs(x @ moved.T).mean(), np.abs(x @ w0.T).mean()
    measured = row_of(parts, "w32-s1", "fc2")
    assert {q: values[1] for q, values in measured.items() if not q.startswith("fan")} == (
        pytest.approx(
            {"initial part": initial, "update part": own, "update share": own / (own + initial)}
        )
    )
    norms = [np.linalg.norm(m) for m in (x @ moved.T, x)]
    aligned = row_of(alignment, "w32-s1", "fc2")
    assert aligned["alignment"][1] == pytest.approx(norms[0] / norms[1] / np.linalg.norm(moved, 2))
    assert 0 < aligned["alignment"][1] <= 1
    power = np.log(rms(x @ moved.T) / rms(x) / rms(moved)) / np.log(32)
    assert aligned["log alignment"][1] == pytest.approx(power)
    of_rank = row_of(ranks, "w32-s1", "fc2")
    squares = np.linalg.svd(h, compute_uv=False) ** 2
    assert of_rank["output rank"][1] == np.linalg.matrix_rank(h)
    assert of_rank["output stable rank"][1] == pytest.approx(squares.sum() / squares[0])
    ratio = squares.sum() ** 2 / (squares**2).sum()
    assert of_rank["output squared-trace rank"][1] == pytest.approx(ratio)
    assert of_rank["update rank"][1] == np.linalg.matrix_rank(moved)
    assert of_rank["argmax diversity"][1] == len(set(h.argmax(1).tolist()))


def test_independent_and_aligned_products_have_their_log_alignment() -> None:
    draw = torch.Generator().manual_seed(0)
    w, x = (torch.randn(n, 400, generator=draw, dtype=torch.float64) for n in (300, 200))
    assert alignments(w, x, x @ w.T)["log alignment"] == pytest.approx(0.5, abs=0.01)
    ones = torch.ones_like(x)
    aligned = alignments(torch.ones_like(w), ones, ones @ torch.ones_like(w).T)
    assert aligned == pytest.approx({"alignment": 1, "log alignment": 1})


def test_outputs_at_initialisation(own: Path) -> None:
    (found,) = cached(own, "--metrics init-distribution")
    _, seen = weights_and_pass(own, "w64-s2", 0)
    f = seen["classifier"][1]
    with h5py.File(found.path) as file:
        at = file["runs"][()].astype(str).tolist().index("w64-s2")
        assert file["fourth moment"]["example 3"][at, 0] == pytest.approx((f[3] ** 4).mean())
    fits = {e.quantity.name: e for e in found.exponents}
    assert fits["output size"].predicted == 0
    assert fits["excess kurtosis"].fit.widths == len(WIDTHS)


def plotted(path: Path, arguments: str) -> list[str]:
    flags = ["--save-dir", str(path.parent), "--experiment", path.name, "--format", "png"]
    return list(plot_experiment(parse(PlotConfig, [*flags, *arguments.split()])))


def test_figures_are_drawn_once(own: Path) -> None:
    cached(own, "--metrics gradients")
    drawn = [str(own / "img" / name) for name in ("gradients.png", "gradients-exponents.png")]
    assert plotted(own, "--metrics gradients") == drawn
    assert plotted(own, "--metrics gradients") == [f"{path} is up to date" for path in drawn]
    with pytest.raises(UserError, match=r"cache.py --experiment sp .* --metrics coordinates"):
        plotted(own, "--metrics coordinates")
    with pytest.raises(UserError, match="unknown layer 'fc9'"):
        plotted(own, "--metrics gradients --layers fc9")


def test_one_width_has_no_figure(tmp_path: Path) -> None:
    path = make(tmp_path / "e", FLAGS, widths=(16,))
    cached(path, "--metrics gradients")
    assert plotted(path, "--metrics gradients")[0].startswith("gradients: not drawn")


def test_dashed_lines_have_the_predicted_slopes(own: Path) -> None:
    (found,) = cached(own, "--metrics coordinates")
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


def test_metrics_read_runs_or_experiments() -> None:
    assert scope_of(["gradients", "coordinates"], "") == "experiment"
    assert scope_of(["gradient", "scale"], "x") == "run"
    with pytest.raises(UserError, match="gradients read a whole experiment and scale single runs"):
        scope_of(["gradients", "scale"], "")
    with pytest.raises(UserError, match=r"--expid x: gradients read all runs.*leave --expid out"):
        scope_of(["gradients"], "x")
