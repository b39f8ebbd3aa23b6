"""Metrics of experiments: their numbers against checkpoints by hand, exponents against theory."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from Metrics.width.alignment import alignments
from Metrics.width.caching import disagreement
from Metrics.width.edges import edge
from Metrics.width.exponents import MOST
from Metrics.width.norms import operator_norm
from tests.experiments import (
    FLAGS,
    SEEDS,
    STEPS,
    WIDTHS,
    cached,
    forward,
    make,
    rms,
    row_of,
    state,
    weights_and_pass,
)

LINEAR = (
    "--dataset gaussian-mixture --classes 10 --dimension 4 --train-size 500 --test-size 64 "
    "--train-batch-size 500 --epochs 1 --model fc --depth 4 --no-bias --loss linear "
    "--dtype float64 --no-balance"
)
"""One step of sharp exponents: a constant gradient in the outputs, and inputs whose squares are
small beside the widths."""


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


def test_norms_are_those_of_numpy(grid: Path) -> None:
    (found,) = cached(grid, "--metrics update-norms")
    before, after = (state(grid / "w64-s1", step)["fc2.weight"] for step in (0, STEPS))
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


def test_gradients_are_finite_differences(grid: Path) -> None:
    (found,) = cached(grid, "--metrics gradients")
    run, step = grid / "w16-s1", 1e-6
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
def test_exponents_are_those_of_theory(grid: Path, metric: str, share: float) -> None:
    """The learning rate 8/n is found to be a power of the width, so theory is that of lr/n."""
    (found,) = cached(grid, f"--metrics {metric}")
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


@pytest.mark.parametrize(("param", "other"), [("mup", "ntk"), ("ntk", "mup")])
def test_what_a_run_says_of_itself_is_confirmed_and_nothing_else(
    tmp_path: Path, param: str, other: str
) -> None:
    """Runs whose folders are made to tell of another parametrization contradict its theory."""
    path = make(tmp_path / "e", f"{LINEAR} --param {param}", "8", (32, 64, 128, 256), SEEDS)
    found = cached(path, "--metrics coordinates,update-norms,gradients")
    verdicts = [e.verdict for findings in found for e in findings.exponents if e.verdict]
    assert len(verdicts) == 92
    assert verdicts.count("agrees") >= MOST * len(verdicts)
    assert not disagreement(found)
    for run in path.glob("w*"):
        file = run / "hyperparameters.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"param": other}))
    found = cached(path, "--metrics coordinates,update-norms,gradients")
    for findings in found:
        assert any(e.verdict == "contradicts" for e in findings.exponents), findings.metric
    assert disagreement(found)


def test_alignment_contributions_and_ranks_are_those_of_numpy(tmp_path: Path) -> None:
    path = make(tmp_path / "e", FLAGS, widths=(32,))
    alignment, parts, ranks = cached(path, "--metrics update-alignment,contributions,ranks")
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
    assert alignments(w, torch.zeros_like(x), torch.zeros(200, 300)) == {}  # behind dead neurons


def test_biases_of_torch_are_a_part_of_the_beginning(tmp_path: Path) -> None:
    """Without --param deep layers are mostly biases, n^(−½), at any width that can be trained."""
    flags = FLAGS.replace("--depth 4", "--depth 7").replace("--epochs 1", "--epochs 0")
    path = make(tmp_path / "e", flags, "0.1", (64, 128, 256), (1, 2, 3))
    (found,) = cached(path, "--metrics coordinates")
    layers = {e.quantity.layer: e for e in found.exponents if e.quantity.name == "preactivation"}
    assert layers["fc1"].verdict == "agrees"
    assert layers["fc6"].fit.exponent == pytest.approx(-0.5, abs=0.15)
    assert layers["fc6"].verdict == "pre-asymptotic"
    assert not any(e.verdict == "contradicts" for e in found.exponents)


def test_outputs_at_initialisation(grid: Path) -> None:
    (found,) = cached(grid, "--metrics init-distribution")
    _, seen = weights_and_pass(grid, "w64-s2", 0)
    f = seen["classifier"][1]
    with h5py.File(found.path) as file:
        at = file["runs"][()].astype(str).tolist().index("w64-s2")
        assert file["fourth moment"]["example 3"][at, 0] == pytest.approx((f[3] ** 4).mean())
    fits = {e.quantity.name: e for e in found.exponents}
    assert fits["output size"].predicted == 0
    assert fits["excess kurtosis"].fit.widths == len(WIDTHS)
