"""The budget of every charge, against raw weights; laws that adaptive optimizers do not keep."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from numpy.typing import NDArray

from Metrics.figures import draw
from Metrics.summary import deviation, deviation_table
from tests.metrics.test_figures import check_page, lines, panels, words
from tests.metrics.test_values import cached, columns, expected, rows, weights
from tests.runs import Runs, cache_run, run_stage
from Utils.rundir import RunFolder

Floats = NDArray[np.float64]

BN = "--model conv-bn --width 4 --dtype float64 --save-freq 1"
OPTIMIZERS = {
    "sgd": "--lr 0.1 --wd 5e-2",
    "momentum": "--momentum 0.9 --lr 0.05 --wd 5e-2",
    "adam": "--lr 0.01 --wd 1e-2",
    "adamw": "--lr 0.01 --wd 0.5",
    "lion": "--lr 3e-3 --wd 0.5",
    "muon": "--lr 0.02 --wd 0.5",
    "lamb": "--lr 0.01 --wd 0.1",
    "rms": "--lr 0.01 --wd 0.1",
}
PARTS = ("decay", "kinetic", "leak")


def charges(run: RunFolder, step: int) -> dict[str, Floats]:
    """By "kind layer", from the raw weights of a conv-bn."""
    found = expected("conv-bn", 4, weights(run, step))
    return {f"{kind} {layer}": q for kind, layers in found.items() for layer, q in layers.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_parts_of_every_charge_add_up_to_its_measured_change(own: Runs, optimizer: str) -> None:
    run = own(f"{BN} --optimizer {optimizer} {OPTIMIZERS[optimizer]}")
    cache_run(run, "--metrics budget")
    arrays, start = cached(run, "budget"), charges(run, 0)
    for layer in start:
        drift = np.array([charges(run, step)[layer] - start[layer] for step in arrays["steps"]])
        total = sum(arrays[f"{part}/{layer}"] for part in PARTS)
        assert np.abs(drift).max() > 1e-4
        assert np.abs(drift - total).max() <= 1e-10 * np.abs(drift).max()
        np.testing.assert_allclose(arrays[f"empirical/{layer}"], drift, rtol=0, atol=1e-13)
        np.testing.assert_array_equal(arrays[f"exact/{layer}"], total)
        assert arrays[f"closing/{layer}"].max() <= 1e-10
        assert arrays[f"gate/{layer}"].all()
        at = np.isin(arrays["dense/steps"], arrays["steps"])
        for curve in ("empirical", "exact", *PARTS):
            np.testing.assert_allclose(
                arrays[f"dense/{curve}/{layer}"][at],
                arrays[f"{curve}/{layer}"].sum(1),
                rtol=1e-10,
                atol=1e-12,
            )


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("", "float32"), ("--dtype float64", "float64"), ("--optimizer adamw", "float64")],
)
def test_budgets_close_to_roundings_of_the_charges(own: Runs, flags: str, precision: str) -> None:
    """In float32 a charge that has hardly moved closes badly, and the cache tells by how much."""
    run = own(f"--model conv-bn --width 4 --wd 1e-2 {flags}")
    cache_run(run, "--metrics budget,scale")
    arrays, charges_ = cached(run, "budget"), cached(run, "scale")
    for layer in ("conv1", "conv2"):
        norm, rounding = charges_[f"empirical/{layer}"], arrays[f"rounding/scale {layer}"]
        size = arrays[f"size/scale {layer}"]
        np.testing.assert_allclose(rounding * size, np.finfo(precision).eps * norm, rtol=1e-12)
        assert (arrays[f"closing/scale {layer}"] <= 50 * rounding).all()
        assert arrays[f"closing/scale {layer}"].max() >= rounding[1:].min() / 50


def of_updates(run: RunFolder, factor: float) -> dict[str, dict[str, Floats]]:
    """Decay, kinetic and leak since step 0 [T, U] by layer, from the weights of all steps.

    Quadratic charges of δ = θ' − fθ are its squares, linear ones are all leak.
    """
    layers: dict[str, dict[str, Floats]] = {}
    before = charges(run, 0)
    sums = {part: {name: np.zeros_like(q) for name, q in before.items()} for part in PARTS}
    history: dict[str, dict[str, list[Floats]]] = {p: {n: [] for n in before} for p in PARTS}
    for a, b in pairwise(run.checkpoint_steps()):
        old, new = weights(run, a), weights(run, b)
        delta = {name: new[name] - factor * w for name, w in old.items()}
        moved = expected("conv-bn", 4, delta)
        for name, q in charges(run, a).items():
            kind, _, layer = name.partition(" ")
            f = factor if kind == "translation" else factor**2
            kinetic = 0.0 if kind == "translation" else moved[kind][layer]
            change = {"decay": (f - 1) * q, "kinetic": kinetic + np.zeros_like(q)}
            change["leak"] = charges(run, b)[name] - q - change["decay"] - change["kinetic"]
            for part in PARTS:
                sums[part][name] = sums[part][name] + change[part]
                history[part][name].append(sums[part][name])
    for name in before:
        layers[name] = {part: np.array(history[part][name]) for part in PARTS}
    return layers


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "adam"])
def test_the_parts_are_those_of_the_updates(own: Runs, optimizer: str) -> None:
    flags = OPTIMIZERS[optimizer].split()
    lr, wd = float(flags[1]), float(flags[3])
    run = own(f"{BN} --optimizer {optimizer} {OPTIMIZERS[optimizer]}")
    cache_run(run, "--metrics budget")
    arrays = cached(run, "budget")
    for layer, parts in of_updates(run, 1 - lr * wd if optimizer != "adam" else 1.0).items():
        for part, values in parts.items():
            np.testing.assert_allclose(
                arrays[f"{part}/{layer}"][1:], values, rtol=1e-9, atol=1e-12, err_msg=layer
            )


def test_under_sgd_decay_is_that_of_the_law_and_kinetic_the_squared_gradient(own: Runs) -> None:
    eta, lam = 0.1, 0.05
    flags = f"--lr {eta} --wd {lam} --dtype float64 --save-freq 1"
    run = own(f"--model fc --width 8 --depth 3 {flags}")
    cache_run(run, "--metrics budget")
    kinetic, decay = [], []
    for a, b in pairwise(run.checkpoint_steps()):
        old, new = weights(run, a), weights(run, b)
        g = {name: (w - new[name]) / eta - lam * w for name, w in old.items()}
        q = columns(old, "fc2", 8) - rows(old, "fc1")
        kinetic.append(eta**2 * (columns(g, "fc2", 8) - rows(g, "fc1")))
        decay.append(((1 - eta * lam) ** 2 - 1) * q)
    arrays = cached(run, "budget")
    for part, steps in (("kinetic", kinetic), ("decay", decay)):
        np.testing.assert_allclose(
            arrays[f"{part}/rescale fc1|fc2"][1:], np.cumsum(steps, axis=0), rtol=1e-8, atol=1e-13
        )
    assert np.abs(arrays["leak/rescale fc1|fc2"]).max() < 1e-13


def test_kinds_with_equal_layers_are_told_apart(own: Runs) -> None:
    run = own("--model fc --depth 3 --width 4 --nonlinearity identity --optimizer adamw")
    cache_run(run, "--metrics budget")
    arrays = cached(run, "budget")
    diagonal = np.cumsum([0, 4, 3, 2])
    for curve in ("empirical", *PARTS):
        matrix = arrays[f"{curve}/balance fc1|fc2"]
        assert matrix.shape[1] == 10
        np.testing.assert_allclose(
            matrix[:, diagonal], arrays[f"{curve}/rescale fc1|fc2"], rtol=1e-7, atol=1e-12
        )


def test_the_change_is_since_step_0_even_if_its_features_are_lost(own: Runs) -> None:
    flags = f"{BN} --optimizer adamw {OPTIMIZERS['adamw']}"
    whole, run = own(flags), own(flags)
    run.features(0).unlink()
    for each in (whole, run):
        cache_run(each, "--metrics budget")
    arrays, complete = cached(run, "budget"), cached(whole, "budget")
    assert arrays["steps"][0] == 1
    for layer in charges(run, 0):
        for curve in ("empirical", "exact", "closing", *PARTS):
            path = f"{curve}/{layer}"
            np.testing.assert_array_equal(arrays[path], complete[path][1:])


def test_parameters_updated_apart_have_no_budget(own: Runs) -> None:
    run = own("--model conv-bn --width 4")
    with h5py.File(run.features(12), "a") as file:
        file["conservation/apart"][:4] = True
    (path,) = cache_run(run, "--metrics budget")
    arrays = cached(run, "budget")
    assert arrays["gate/scale conv1"].tolist() == [0] * 4
    assert arrays["gate/scale conv2"].all()
    figure = draw(path, layers=("scale",))
    assert list(panels(figure)) == ["scaleconv1", "scaleconv2"]
    main, lower = panels(figure)["scaleconv1"]
    assert not main.collections
    assert "different learning rates" in " ".join(lower.texts[0].get_text().split())
    assert panels(figure)["scaleconv2"][0].collections


# ---------------------------------------------------------------- the command line


def test_a_run_under_adamw_from_the_command_line(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    train = "--model fc --width 4 --depth 3 --optimizer adamw --epochs 2 --train-batch-size 240"
    for stage, flags in (
        ("train", train),
        ("extract", "--probe none"),
        ("cache", "--metrics rescale,budget"),
        ("plot", "--metrics budget,rescale --format png"),
    ):
        code, output, errors = run_stage(stage, run, flags)
        assert code == 0, errors
        if stage == "cache":
            (closed,) = (line for line in output.splitlines() if "fc1|fc2" in line)
            why = "adamw breaks the symmetry, see the metric budget (and 1 more layer alike)"
            assert closed.endswith(why)
    layers = cached(run, "budget")
    closing = [array.max() for path, array in layers.items() if path.startswith("closing/")]
    assert len(closing) == 4  # two of rescale, two of translation
    assert max(closing) <= 1e-10  # though the run is in float32
    assert run.figure("budget", "", "png").exists()


# ---------------------------------------------------------------- without the paper's theory


def test_where_the_paper_has_no_theory_nothing_is_claimed_or_drawn(own: Runs) -> None:
    run = own("--model logistic --optimizer adam --lr 1e-6 --dtype float64")  # gates stay open
    (path,) = cache_run(run, "--metrics translation")
    summary = deviation(path, "classifier.weight")
    assert summary is not None
    assert summary.open == summary.laws == 64
    assert summary.worst[0] < 1e-12
    row = deviation_table([path], by_layer=True).splitlines()[2].split()
    assert row[5:7] == [f"{summary.worst[0]:.1e}", "–"]
    assert row[7] == f"{summary.worst[2]:.1e}"
    for layer_wise in (False, True):
        figure = draw(path, layers=("classifier.weight",), layer_wise=layer_wise)
        ((main, lower),) = panels(figure).values()
        assert lines(main, "--")
        assert not lines(main, ":")
        assert not lines(lower, ":")
        assert "exact law" in words(figure)
        assert "continuous theory" not in words(figure)


def test_closed_gates_of_sgd_do_not_point_to_the_budget(own: Runs) -> None:
    for optimizer, points in (("sgd", False), ("adam", True)):
        run = own(f"--model fc --width 4 --depth 3 --optimizer {optimizer}")
        with h5py.File(run.features(12), "a") as file:
            file["conservation/leak_peak"][:] = 1.0
        cache_run(run, "--metrics rescale")
        with h5py.File(run.cache("rescale")) as file:
            assert ("budget" in file["gate/fc1|fc2"].attrs["reason"]) == points


# ---------------------------------------------------------------- the figure


def heights(collection: PolyCollection, x: Floats) -> Floats:
    """The area's height over each of the positions x."""
    corners: Any = np.concatenate([path.vertices for path in collection.get_paths()])
    return np.array([np.ptp(corners[np.isclose(corners[:, 0], at), 1]) for at in x])


def test_areas_are_the_parts_and_the_measured_change_lies_on_their_sum(own: Runs) -> None:
    run = own(f"{BN} --optimizer adamw {OPTIMIZERS['adamw']}")
    (path,) = cache_run(run, "--metrics budget")
    arrays, figure = cached(run, "budget"), draw(path)
    assert set(panels(figure)) == {layer.replace(" ", "") for layer in charges(run, 0)}
    for layer in charges(run, 0):
        main, lower = panels(figure)[layer.replace(" ", "")]
        (drift,), (total,) = lines(main, "-"), lines(main, "--")
        np.testing.assert_array_equal(drift, arrays[f"dense/empirical/{layer}"])
        np.testing.assert_allclose(total, drift, rtol=0, atol=1e-12 * np.abs(drift).max())
        x = arrays["dense/steps"].astype(float)
        areas = [c for c in main.collections if isinstance(c, PolyCollection)]
        for part, up, down in zip(PARTS, areas[::2], areas[1::2], strict=True):
            values = arrays[f"dense/{part}/{layer}"]
            np.testing.assert_allclose(heights(up, x), np.maximum(values, 0), atol=1e-12)
            np.testing.assert_allclose(heights(down, x), -np.minimum(values, 0), atol=1e-12)
        closing, rounding = lines(lower, "-")
        assert closing.max() <= 1e-10
        moved = arrays["steps"] > 0
        np.testing.assert_array_equal(rounding, arrays[f"rounding/{layer}"][moved].max(1))
    check_page(figure)


def test_caches_without_roundings_are_drawn_without_them(own: Runs) -> None:
    run = own("--model fc --width 4 --depth 2 --save-freq 4")
    (path,) = cache_run(run, "--metrics budget")
    with h5py.File(path, "a") as file:
        del file["rounding"]
    _, lower = next(iter(panels(draw(path)).values()))
    closing, rounding = lines(lower, "-")
    assert np.isfinite(closing).all()
    assert np.isnan(rounding).all()


def test_text_of_any_selection_fits(own: Runs) -> None:
    run = own(f"{BN} --optimizer adamw {OPTIMIZERS['adamw']}")
    (path,) = cache_run(run, "--metrics budget")
    check_page(draw(path, layers=("conv1",), x="time"))
    check_page(draw(path, layers=("bn2",), legend=False))
