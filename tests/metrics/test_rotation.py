"""Rotation: equilibria against simulated random walks, curves against raw weights."""

import math
from collections.abc import Mapping
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from Metrics.equilibrium import Equilibrium, equilibrium
from Metrics.figures import draw
from Models.parametrization.scales import Scale, Scales
from tests.metrics.test_budget import BN, OPTIMIZERS
from tests.metrics.test_figures import check_page, lines, words
from tests.metrics.test_values import cached, rows, weights
from tests.runs import Runs, cache_run
from Training.config import TrainConfig
from Training.registry import OPTIMIZERS as ENTRIES
from Utils.cli import parse
from Utils.rundir import RunFolder

Floats = NDArray[np.float64]


def config_of(flags: str) -> TrainConfig:
    return parse(TrainConfig, [*flags.split(), "--experiment", "e", "--expid", "x"])


# ---------------------------------------------------------------- equilibria, simulated

SIZE = 1000


def balanced_norm(config: TrainConfig, theory: Equilibrium) -> float:
    """The norm in equilibrium for gradients of squared norm SIZE / |θ|²."""
    assert config.lr is not None
    assert config.wd is not None
    if theory.walk is not None:
        return math.sqrt(config.lr * SIZE * theory.walk / (2 * config.wd))
    return float((config.lr * theory.gain * SIZE / (2 * config.wd)) ** 0.25)


def simulate(config: TrainConfig, steps: int) -> tuple[float, float]:
    """Mean angle per step and mean norm of weights with scale-invariant white noise as gradient.

    They start 20 % away from the equilibrium; the first half of the steps is not counted.
    """
    theory = equilibrium(config)
    assert isinstance(theory, Equilibrium)
    torch.manual_seed(0)
    theta = nn.Parameter(torch.randn(SIZE, dtype=torch.float64))
    theta.data *= 1.2 * balanced_norm(config, theory) / theta.detach().norm()
    entry = ENTRIES[config.optimizer]
    options = {name: getattr(config, name) for name in entry.options}
    optimizer = entry.load()([("theta", theta)], **options)
    angles, norms = [], []
    for noise in torch.randn(steps, SIZE, dtype=torch.float64):
        norm = theta.detach().norm()
        before = theta.detach() / norm
        theta.grad = (noise - (noise @ before) * before) / norm
        optimizer.step()
        after = theta.detach() / theta.detach().norm()
        angles.append(2 * math.asin(float((after - before).norm()) / 2))
        norms.append(float(norm))
    half = steps // 2
    return float(np.mean(angles[half:])), float(np.mean(norms[half:]))


NOISE = {
    "--optimizer sgd --lr 0.1 --wd 0.05": 1000,
    "--optimizer momentum --momentum 0.9 --lr 0.02 --wd 0.05": 1000,
    "--optimizer momentum --momentum 0.9 --dampening 0.5 --lr 0.04 --wd 0.05": 1000,
    "--optimizer momentum --momentum 0.5 --nesterov --lr 0.05 --wd 0.05": 1000,
    "--optimizer momentum --momentum 0.9 --nesterov --lr 0.02 --wd 0.05": 1000,
    "--optimizer adamw --lr 0.02 --wd 0.1 --beta2 0.99": 2000,
    "--optimizer adamw --beta1 0.5 --lr 0.02 --wd 0.1": 2000,
    "--optimizer lion --beta2 0.9 --lr 0.01 --wd 0.1": 4000,
    "--optimizer lion --beta1 0.5 --beta2 0.5 --lr 0.01 --wd 0.1": 3000,
    "--optimizer lion --beta1 0 --beta2 0 --lr 0.01 --wd 0.1": 3000,
}


@pytest.mark.parametrize("flags", NOISE)
def test_white_noise_turns_weights_by_the_predicted_angle(flags: str) -> None:
    config = config_of(flags)
    theory = equilibrium(config)
    assert isinstance(theory, Equilibrium)
    angle, norm = simulate(config, NOISE[flags])
    assert angle == pytest.approx(theory.angle(config.lr or 0.0, config.wd or 0.0), rel=0.03)
    assert norm == pytest.approx(balanced_norm(config, theory), rel=0.03)


@pytest.mark.parametrize(
    ("flags", "turn"),
    [
        ("--optimizer sgd", 1.0),
        ("--optimizer momentum --momentum 0.9", 1 / 1.9),
        ("--optimizer momentum --momentum 0.9 --dampening 0.5", 0.5 / 1.9),
        ("--optimizer adamw --beta1 0.8", 0.2 / 1.8),
        ("--optimizer lion --beta1 0 --beta2 0", 1.0),
        ("--optimizer lion --beta1 0.9 --beta2 0.99", math.pi / 2 * (0.01 + 0.81 * 0.01 / 1.99)),
    ],
)
def test_angles_are_those_of_the_literature(flags: str, turn: float) -> None:
    """φ² / (2ηλ); Lion's literature is of first order in the correlations of its signs."""
    theory = equilibrium(config_of(f"{flags} --wd 0.1"))
    assert isinstance(theory, Equilibrium)
    assert theory.turn == pytest.approx(turn, rel=0.02 if "0.99" in flags else 1e-12)
    assert theory.angle(0.02, 0.1) == pytest.approx(math.sqrt(0.004 * theory.turn), rel=1e-12)


@pytest.mark.parametrize("optimizer", ["adam", "rms", "lamb", "muon"])
def test_other_optimizers_have_no_prediction_and_say_why(optimizer: str) -> None:
    reason = equilibrium(config_of(f"--optimizer {optimizer} --wd 0.1"))
    assert isinstance(reason, str)
    assert reason.startswith(f"no prediction for {optimizer}, ")


# ---------------------------------------------------------------- curves


def flags_of(optimizer: str) -> str:
    return f"{BN} --optimizer {optimizer} {OPTIMIZERS[optimizer]}"


def groups(run: RunFolder, step: int, rates: Mapping[str, float] | None = None) -> Floats:
    """[filters, weights] of conv1, the biases included, over the roots of their rates."""
    names = ("conv1.weight", "conv1.bias")
    roots = [1.0 if rates is None else math.sqrt(rates[name]) for name in names]
    parts = [weights(run, step)[n].reshape(4, -1) / s for n, s in zip(names, roots, strict=True)]
    return np.concatenate(parts, axis=1)


def turned(run: RunFolder) -> Floats:
    """[T, filters] the angles between the weights of consecutive steps."""
    angles = []
    for a, b in pairwise(run.checkpoint_steps()):
        x, y = (
            v / np.linalg.norm(v, axis=1, keepdims=True) for v in (groups(run, a), groups(run, b))
        )
        angles.append(2 * np.arcsin(np.linalg.norm(x - y, axis=1) / 2))
    return np.array(angles)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw", "lamb"])
def test_angles_and_norms_are_those_of_the_raw_weights(own: Runs, optimizer: str) -> None:
    run = own(flags_of(optimizer))
    cache_run(run, "--metrics rotation")
    arrays, expected = cached(run, "rotation"), turned(run)
    assert np.isnan(arrays["empirical/conv1"][0]).all()
    np.testing.assert_allclose(arrays["empirical/conv1"][1:], expected, rtol=1e-6)
    norms = np.array([np.sqrt(rows(weights(run, step), "conv1")) for step in arrays["steps"]])
    np.testing.assert_allclose(arrays["norm/conv1"], norms, rtol=1e-12)
    at = np.isin(arrays["steps"], [4, 5, 8, 12])  # observed every 4 steps and at checkpoints
    dense = arrays["dense/empirical/conv1"][np.isin(arrays["dense/steps"], arrays["steps"][at])]
    np.testing.assert_allclose(dense, arrays["empirical/conv1"][at].mean(1), rtol=1e-10)


def test_a_row_is_the_mean_since_the_row_before(own: Runs) -> None:
    whole = own(flags_of("sgd"))
    cache_run(whole, "--metrics rotation")
    fine = cached(whole, "rotation")["empirical/conv1"]
    run = own(flags_of("sgd"))
    for step in (0, 1, 2, 4, 5, 6, 7, 8, 10):
        run.features(step).unlink()
    cache_run(run, "--metrics rotation")
    arrays = cached(run, "rotation")
    assert arrays["steps"].tolist() == [3, 9, 11, 12]
    expected = [fine[1:4].mean(0), fine[4:10].mean(0), fine[10:12].mean(0), fine[12]]
    np.testing.assert_allclose(arrays["empirical/conv1"], expected, rtol=1e-9)


SCHEDULE = "--optimizer momentum --momentum 0.9 --lr 0.02 --wd 0.1 --lr-drops 1 --lr-drop-rate 0.25"


def test_the_prediction_follows_the_schedule(own: Runs) -> None:
    run = own(f"--model conv-bn --width 4 --save-freq 4 {SCHEDULE}")  # 6 steps an epoch
    cache_run(run, "--metrics rotation")
    arrays = cached(run, "rotation")
    assert arrays["steps"].tolist() == [0, 4, 6, 8, 12]
    high, low = (math.sqrt(2 * rate * 0.1 / 1.9) for rate in (0.02, 0.005))
    for row, value in zip(arrays["theoretical/conv1"][1:], [high, high, low, low], strict=True):
        np.testing.assert_allclose(row, value, rtol=1e-12)
    rates = np.array([0.02, 0.02, 0.02, 0.005, 0.005])[:, None] / (1 - 0.9)
    expected = rates / arrays["norm/conv1"] ** 2
    np.testing.assert_allclose(arrays["effective_lr/conv1"], expected, rtol=1e-12)
    assert arrays["gate/conv1"].all()


def test_a_row_across_a_drop_has_the_mean_of_the_angles(own: Runs) -> None:
    run = own(f"--model conv-bn --width 4 --save-freq 4 {SCHEDULE}")
    run.features(6).unlink()
    cache_run(run, "--metrics rotation")
    arrays = cached(run, "rotation")
    assert arrays["steps"].tolist() == [0, 4, 8, 12]
    mean = (math.sqrt(2 * 0.02 * 0.1 / 1.9) + math.sqrt(2 * 0.005 * 0.1 / 1.9)) / 2
    np.testing.assert_allclose(arrays["theoretical/conv1"][2], mean, rtol=1e-12)


def test_norms_in_equilibrium_under_adaptive_optimizers(own: Runs) -> None:
    run = own(flags_of("adamw"))  # --lr 0.01 --wd 0.5
    cache_run(run, "--metrics rotation")
    arrays = cached(run, "rotation")
    expected = math.sqrt(0.01 * groups(run, 0).shape[1] / (2 * 0.5))
    np.testing.assert_allclose(arrays["norm_equilibrium/conv1"][1:], expected, rtol=1e-12)
    np.testing.assert_allclose(
        arrays["effective_lr/conv1"], 0.01 / arrays["norm/conv1"], rtol=1e-12
    )


def test_norms_in_equilibrium_under_sgd_follow_from_the_gradients(own: Runs) -> None:
    """|θ|⁴ = η |g|² |θ|² / (2λ) for the gradient of the step and the norm around it."""
    eta, lam = 0.1, 0.05
    run = own(flags_of("sgd"))
    cache_run(run, "--metrics rotation")
    expected = []
    for a, b in pairwise(run.checkpoint_steps()):
        old, new = groups(run, a), groups(run, b)
        g2 = (((old - new) / eta - lam * old) ** 2).sum(1)
        between = ((old**2).sum(1) + (new**2).sum(1)) / 2
        expected.append((eta * g2 * between / (2 * lam)) ** 0.25)
    found = cached(run, "rotation")["norm_equilibrium/conv1"][1:]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_under_a_parametrization_it_is_that_of_weights_over_rates(own: Runs) -> None:
    """All as above for θ/√s: of norms |θ|²/s, and of steps along √s g."""
    eta, lam = 0.1, 0.05
    run = own(flags_of("sgd") + " --param mup")
    cache_run(run, "--metrics rotation")
    scales = run.read_hyperparameters()["task"]["parametrization"]["parameters"]
    s = {row["name"]: row["lr"] for row in scales}
    arrays, expected, norms = cached(run, "rotation"), [], []
    for a, b in pairwise(run.checkpoint_steps()):
        old, new = groups(run, a, s), groups(run, b, s)
        g2 = (((old - new) / eta - lam * old) ** 2).sum(1)
        between = ((old**2).sum(1) + (new**2).sum(1)) / 2
        expected.append((eta * g2 * between / (2 * lam)) ** 0.25)
        norms.append(np.sqrt((new**2).sum(1)))
    np.testing.assert_allclose(arrays["norm/conv1"][1:], norms, rtol=1e-6)
    np.testing.assert_allclose(arrays["norm_equilibrium/conv1"][1:], expected, rtol=1e-6)
    np.testing.assert_allclose(
        arrays["theoretical/conv1"][1:], math.sqrt(2 * eta * lam), rtol=1e-12
    )
    assert arrays["gate/conv1"].all()


@pytest.mark.parametrize(("wd", "first_steps"), [(1.0, 0), (0.5, 1)])
def test_there_is_none_where_decay_or_first_steps_differ(wd: float, first_steps: int) -> None:
    rows = (Scale("a", (2, 2), "hidden", "", lr=2.0, wd=wd), Scale("b", (2,), "vector", ""))
    found = equilibrium(config_of("--wd 0.1"), Scales(rows, first_steps, "1"))
    assert found == "the parametrization gives parameters different weight decay or first steps"


# ---------------------------------------------------------------- gates


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--lr 0.1", "no equilibrium without weight decay"),
        ("--optimizer adam --wd 0", "no equilibrium without weight decay"),
        (
            "--wd 0.1 --param ntk --optimizer adamw",
            "the parametrization gives parameters different learning rates",
        ),
        ("--optimizer lamb --wd 0.1", "no prediction for lamb, which turns each parameter by lr"),
    ],
)
def test_without_a_theory_there_is_no_prediction(own: Runs, flags: str, reason: str) -> None:
    run = own(f"--model conv-bn --width 4 {flags}")
    (path,) = cache_run(run, "--metrics rotation")
    arrays, figure = cached(run, "rotation"), draw(path)
    with h5py.File(path) as file:
        assert file["gate/conv1"].attrs["reason"].startswith(reason)
    assert not arrays["gate/conv1"].any()
    assert not [p for p in arrays if "theoretical" in p or "equilibrium" in p]
    assert not any(lines(axes, "--") for axes in figure.axes)
    assert reason in words(figure)
    assert "equilibrium" not in [t.get_text() for t in figure.legends[0].get_texts()]
    check_page(figure)


def test_a_broken_symmetry_closes_the_gate(own: Runs) -> None:
    run = own("--model conv-bn --width 4 --lr 0.1 --wd 0.1")
    with h5py.File(run.features(12), "a") as file:
        file["conservation/leak"][1] = 10.0
        file["conservation/apart"][4:8] = True
    cache_run(run, "--metrics rotation")
    with h5py.File(run.cache("rotation")) as file:
        assert file["gate/conv1"][()].tolist() == [1, 0, 1, 1]
        assert file["gate/conv1"].attrs["reason"] == "leaks move 1 of 4 norms"
        assert file["gate/conv2"][()].tolist() == [0] * 4


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_norms_of_which_a_part_does_not_decay_have_no_equilibrium(
    own: Runs, optimizer: str
) -> None:
    run = own(f"--model conv-bn --width 4 --optimizer {optimizer} --wd 0.1 --wd-on matrices")
    with h5py.File(run.features(12), "a") as file:
        bias, weight = file["params/conv1.bias"], file["params/conv1.weight"]
        squares = (weight[()].astype(float) ** 2).reshape(4, -1).sum(1)
        bias[...] = np.sqrt(np.array([0.008, 0.012, 0.0, 2.0]) * squares)
        file["conservation/leak"][...] = 0
    cache_run(run, "--metrics rotation")
    with h5py.File(run.cache("rotation")) as file:
        assert file["gate/conv1"][()].tolist() == [1, 0, 1, 0]
        reason = "weight decay spares a part of 2 of 4 norms"
        assert file["gate/conv1"].attrs["reason"] == reason


# ---------------------------------------------------------------- the figure


def test_means_of_the_layers_beside_the_equilibrium(own: Runs) -> None:
    run = own(f"--model conv-bn --width 4 --save-freq 4 {SCHEDULE}")
    (path,) = cache_run(run, "--metrics rotation")
    arrays, figure = cached(run, "rotation"), draw(path)
    angle, norm, rate = figure.axes
    for axes, curve, theory in (
        (angle, "empirical", "theoretical"),
        (norm, "norm", "norm_equilibrium"),
        (rate, "effective_lr", None),
    ):
        solid, dashed = lines(axes, "-"), lines(axes, "--")
        assert axes.get_yscale() == "log"
        assert len(dashed) == (2 if theory else 0)
        for layer, line in zip(("conv1", "conv2"), solid, strict=True):
            np.testing.assert_array_equal(line, arrays[f"dense/{curve}/{layer}"])
        for layer, line in zip(("conv1", "conv2"), dashed, strict=False):
            np.testing.assert_array_equal(line, arrays[f"dense/{theory}/{layer}"])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["conv1", "conv2", "equilibrium"]
    check_page(figure)
    check_page(draw(path, layers=("conv1",), x="time", legend=False))
