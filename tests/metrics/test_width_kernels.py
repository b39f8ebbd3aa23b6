"""The tangent kernel's change over widths: its numbers by hand, its exponent beside theory."""

from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.func import functional_call, jacrev, vmap

from Metrics.width.theory import ChainTheory
from Models import ModelConfig, build_model
from tests.experiments import cached, make, row_of, state
from Utils.rundir import RunFolder

DATA = "--dataset gaussian-mixture --train-size 64 --test-size 8 --probe-size 8 --classes 32"
FLAGS = (
    f"{DATA} --model fc --depth 3 --nonlinearity tanh --loss mse --dtype float64 --epochs 1 "
    "--train-batch-size 64 --no-bias --no-balance"
)


def kernels(path: Path, step: int) -> dict[str, np.ndarray]:
    """The traced kernels of a run's layers, by dense Jacobians."""
    said = RunFolder(path).read_hyperparameters()
    config = ModelConfig(**ModelConfig.saved_in(said))
    model = build_model(config, tuple(said["task"]["input_shape"]), said["task"]["num_classes"])
    with h5py.File(path / "feats" / "probe.h5") as file:
        inputs = torch.from_numpy(file["inputs"][()])

    def logits(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(model.double(), weights, (x[None],))[0]
        return found

    rows = vmap(jacrev(logits), (None, 0))(state(path, step), inputs)
    flat = {name.removesuffix(".weight"): j.flatten(2).numpy() for name, j in rows.items()}
    return {name: np.einsum("ncp,mcp->nm", j, j) / j.shape[1] for name, j in flat.items()}


def test_changes_are_those_of_kernels_weighted_by_learning_rates(tmp_path: Path) -> None:
    path = make(tmp_path / "e", f"{FLAGS} --param ntk", "1", (16,))
    (found,) = cached(path, "--metrics ntk-change")
    before, after = (kernels(path / "w16-s1", step) for step in (0, 1))
    said = RunFolder(path / "w16-s1").read_hyperparameters()["task"]["parametrization"]
    factors = {p["name"].removesuffix(".weight"): p["lr"] for p in said["parameters"]}
    assert len(set(factors.values())) > 1
    weighted = [sum(factors[n] * k for n, k in ks.items()) for ks in (before, after)]
    expected = {"": weighted} | {n: [before[n], after[n]] for n in before}
    with h5py.File(found.path) as file:
        names = {name: name or "" for name in file["kernel change"]}
    assert len(names) == 4
    for name, (start, end) in expected.items():
        shown = name if name in names else next(n for n in names if n not in before)
        row = row_of(found, "w16-s1", shown)
        change = np.linalg.norm(end - start) / np.linalg.norm(start)
        assert row["kernel change"][1] == pytest.approx(change, rel=1e-8)
        assert row["kernel"][0] == pytest.approx(np.trace(start) / 8, rel=1e-10)


def test_the_kernel_changes_by_one_over_the_width_in_the_kernel_regime(tmp_path: Path) -> None:
    path = make(tmp_path / "e", f"{FLAGS} --param ntk", "1", (32, 64, 128, 256), (1, 2, 3, 4))
    (found,) = cached(path, "--metrics ntk-change")
    (whole,) = (
        e for e in found.exponents if e.quantity.name == "kernel change" and not e.quantity.layer
    )
    assert whole.predicted == -1
    assert abs(whole.fit.exponent + 1) < 0.25
    assert whole.verdict == "agrees"


def test_nothing_is_predicted_of_rectifiers_and_biases_have_rates_of_their_own(
    tmp_path: Path,
) -> None:
    flags = FLAGS.replace("tanh", "relu").replace("--no-bias", "--param ntk --bias")
    (found,) = cached(make(tmp_path / "e", flags, "1", (16, 32)), "--metrics ntk-change")
    assert found.exponents
    assert all(e.predicted is None for e in found.exponents)
    assert not any(e.quantity.layer == "" for e in found.exponents)
    assert ChainTheory(None).smooth is False


def recursion(
    x: np.ndarray, variances: list[float], rates: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """K and Θ of a ReLU chain by arc-cosine kernels (Cho and Saul 2009; Jacot et al. 2018).

    Biases begin at zero, and have learning rate 1.

    Args:
        x: inputs [N, d].
        variances: of every layer's weights, times the fan-in.
        rates: of every layer's weights, times the fan-in.
    """
    q = x @ x.T / x.shape[1]
    t = np.zeros_like(q)
    for layer, (variance, rate) in enumerate(zip(variances, rates, strict=True)):
        if layer:
            size = np.sqrt(np.outer(np.diag(q), np.diag(q)))
            angle = np.arccos(np.clip(q / size, -1, 1))
            slope = (np.pi - angle) / (2 * np.pi)
            q, t = slope * q + size * np.sin(angle) / (2 * np.pi), slope * t
        q, t = variance * q, variance * t + rate * q + 1
    return q, t


UNTRAINED = FLAGS.replace("--epochs 1", "--epochs 0")


def test_deviations_are_those_from_arc_cosine_kernels(tmp_path: Path) -> None:
    flags = UNTRAINED.replace("tanh", "relu").replace("--no-bias", "--bias --param ntk")
    path = make(tmp_path / "e", flags, "1", (16,))
    (found,) = cached(path, "--metrics kernel-convergence")
    with h5py.File(path / "w16-s1" / "feats" / "probe.h5") as file:
        x = file["inputs"][()].reshape(8, -1).astype(float)
    own = kernels(path / "w16-s1", 0)
    # of n = 16: weights have variance 2/n (ReLU's gain), the readout's 1/n; the learning rate is
    # 1/n where n inputs are read, 1 of the first layer
    covariance, tangent = recursion(x, [2, 2, 1], [x.shape[1], 1, 1])
    measured = sum(k / 16 if n in ("fc2", "classifier") else k for n, k in own.items())
    assert len(own) == 6
    row = row_of(found, "w16-s1", "network")
    for name, finite, limit in (
        ("kernel deviation", measured, tangent),
        ("covariance deviation", own["classifier"] / 16, covariance),
    ):
        expected = np.linalg.norm(finite - limit) / np.linalg.norm(limit)
        assert row[name][0] == pytest.approx(expected, rel=1e-7)


def test_kernels_converge_as_one_over_the_root_of_the_width(tmp_path: Path) -> None:
    """With few degrees of freedom seeds scatter; a saturating nonlinearity has more of them."""
    flags = UNTRAINED.replace("--depth 3", "--depth 2 --param ntk")
    path = make(tmp_path / "e", flags, "1", (32, 128, 512), (1, 2, 3, 4))
    (found,) = cached(path, "--metrics kernel-convergence")
    assert [e.quantity.name for e in found.exponents] == [
        "kernel deviation",
        "covariance deviation",
    ]
    for exponent in found.exponents:
        assert exponent.predicted == Fraction(-1, 2)
        assert abs(exponent.fit.exponent + 0.5) < 0.1
        assert exponent.fit.interval < 0.2
        assert exponent.verdict == "agrees"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--param mean-field", "fc2.weight begins as width^-1"),
        ("", "without --param nothing says how the model grows"),
    ],
)
def test_where_there_is_no_kernel_at_infinite_width_it_says_why(
    flags: str, reason: str, tmp_path: Path
) -> None:
    path = make(tmp_path / "e", f"{UNTRAINED} {flags}", "1", (16, 32))
    (found,) = cached(path, "--metrics kernel-convergence")
    assert not found.exponents
    assert reason in found.text()
