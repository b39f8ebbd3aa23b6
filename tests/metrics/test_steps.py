"""Metrics of the last step, recomputed from the checkpoints before and after it."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from Metrics import METRICS, CacheConfig
from Metrics.figures import PlotConfig
from Metrics.figures.run import plot_run
from tests.metrics.test_values import Floats, cached, gradients, load, rows, weights
from tests.runs import Runs, cache_run, copy_run, extract_run, flags_of, mistake, run_stage
from Utils.cli import parse
from Utils.errors import UserError
from Utils.rundir import RunFolder

ETA, LAMBDA = 0.1, 0.05
STEPWISE = "--save-freq 1 --model conv-bn --width 4 --dtype float64"
SGD = f"{STEPWISE} --lr {ETA} --wd {LAMBDA}"
LAYERS = ("conv1", "bn1", "conv2", "bn2", "classifier")


def norms(run: RunFolder, layer: str) -> Floats:
    """[T, units] Σ over the weights and the bias of each unit."""
    return np.array([rows(weights(run, step), layer) for step in run.checkpoint_steps()])


# ---------------------------------------------------------------- gradient


@pytest.mark.parametrize("buffer", ["grad", "grad_norm"])
def test_gradients_norms_are_those_that_moved_the_weights(own: Runs, buffer: str) -> None:
    run = own(f"{SGD} --save-buffers {buffer}")
    cache_run(run, "--metrics gradient")
    arrays = cached(run, "gradient")
    assert {path for path in arrays if path.startswith("empirical/")} == {
        f"empirical/{layer}" for layer in LAYERS
    }
    for layer in LAYERS:
        w, b = (gradients(run, f"{layer}.{part}", ETA, LAMBDA) for part in ("weight", "bias"))
        expected = [(x.reshape(len(x), -1) ** 2).sum(1) + y**2 for x, y in zip(w, b, strict=True)]
        np.testing.assert_allclose(
            arrays[f"empirical/{layer}"][1:], expected, rtol=1e-8, atol=1e-20
        )
        assert np.isnan(arrays[f"empirical/{layer}"][0]).all()


# ---------------------------------------------------------------- phase

OPTIMIZERS: dict[str, tuple[str, float, float]] = {
    "sgd": (f"--lr {ETA} --wd {LAMBDA} --lr-drops 1", ETA, LAMBDA),
    "momentum": ("--momentum 0.9 --dampening 0.5 --lr 0.1 --wd 0.05", 0.1 * 0.5 / 0.1, 0.05),
    "nesterov": ("--momentum 0.9 --nesterov --lr 0.02 --wd 0.05", 0.02 / 0.1, 0.05),
    "adamw": ("--lr 1e-2 --wd 0.05", 1e-2, 0.05),
    "lion": ("--lr 1e-3 --wd 0.05", 1e-3, 0.05),
    "adam": ("--lr 1e-2 --wd 0.05", 1e-2, np.nan),
    "rms": ("--lr 1e-2", 1e-2, 0.0),
}
"""Flags, the gradient-flow time of a step, and the rate at which weights decay by themselves."""


def run_with(own: Runs, name: str) -> RunFolder:
    flags, optimizer = OPTIMIZERS[name][0], "momentum" if name == "nesterov" else name
    return own(f"{STEPWISE} --optimizer {optimizer} {flags} --save-buffers update")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_velocities_are_differences_of_the_norms(own: Runs, name: str) -> None:
    run = run_with(own, name)
    cache_run(run, "--metrics phase,scale")
    arrays, (_, time, wd) = cached(run, "phase"), OPTIMIZERS[name]
    times = np.where(np.arange(12) < 6, time, time * (0.1 if name == "sgd" else 1))[:, None]
    np.testing.assert_allclose(np.diff(arrays["time"])[:, None], times, rtol=1e-9)
    for layer in LAYERS:
        x = norms(run, layer)
        position, velocity = arrays[f"position/{layer}"], arrays[f"empirical/{layer}"]
        assert np.isnan(position[0]).all()
        assert np.isnan(velocity[0]).all()
        np.testing.assert_allclose(position[1:], x[:-1], rtol=1e-12, atol=1e-15)
        expected = np.diff(x, axis=0) / times
        np.testing.assert_allclose(velocity[1:], expected, rtol=1e-7, atol=1e-11)
        assert abs(velocity[1:]).max() > 1e-4
        decay = arrays[f"theoretical/{layer}"][1:]
        np.testing.assert_allclose(decay, -2 * wd * x[:-1], rtol=1e-12, atol=1e-15)
        gate = arrays[f"gate/{layer}"]
        assert gate.tolist() == [int(not np.isnan(wd))] * x.shape[1]
    q = cached(run, "scale")["empirical/conv1"]  # the law's charge moves with this velocity
    np.testing.assert_allclose(np.diff(q, axis=0), np.diff(norms(run, "conv1"), axis=0), atol=1e-12)


def test_velocities_of_scale_invariant_units_need_no_leak(own: Runs) -> None:
    """η|g|² − (2λ − ηλ²)|w|² at the weights before the step, up to the ε of the normalisation."""
    run = own(f"{SGD} --save-buffers grad,update")
    cache_run(run, "--metrics phase,gradient")
    phase, squares = cached(run, "phase"), cached(run, "gradient")
    for layer, rtol in (("conv1", 5e-3), ("conv2", 5e-3)):
        position = phase[f"position/{layer}"][1:]
        expected = ETA * squares[f"empirical/{layer}"][1:]
        expected -= (2 * LAMBDA - ETA * LAMBDA**2) * position
        velocity = phase[f"empirical/{layer}"][1:]
        assert abs(velocity - expected).max() < rtol * abs(velocity).max()
    # the classifier is not: there the gradient has a part along the weights
    expected = ETA * squares["empirical/classifier"] - 2 * LAMBDA * phase["position/classifier"]
    apart = abs(phase["empirical/classifier"] - expected)[1:]
    assert apart.max() > 0.5 * abs(phase["empirical/classifier"][1:]).max()


def test_velocities_are_exact_in_float32(own: Runs) -> None:
    """Weights are subtracted, not squares: Δ is exact where rounding of |w|² would be all."""
    run = own("--save-freq 1 --model conv-bn --width 4 --lr 1e-5 --wd 1e-2 --save-buffers update")
    cache_run(run, "--metrics phase")
    velocity = cached(run, "phase")["empirical/conv1"][1:]
    np.testing.assert_allclose(velocity, np.diff(norms(run, "conv1"), axis=0) / 1e-5, rtol=1e-7)


def test_muons_biases_move_in_their_own_time(own: Runs) -> None:
    run = own(f"{STEPWISE} --optimizer muon --save-buffers update")
    cache_run(run, "--metrics phase")
    w = [weights(run, step) for step in run.checkpoint_steps()]
    squares = np.array([(x["classifier.weight"] ** 2).sum(1) for x in w])
    bias = np.array([x["classifier.bias"] ** 2 for x in w])
    expected = np.diff(squares, axis=0) / 0.02 + np.diff(bias, axis=0) / 3e-4
    velocity = cached(run, "phase")["empirical/classifier"][1:]
    np.testing.assert_allclose(velocity, expected, rtol=1e-7, atol=1e-11)


def test_a_rate_of_decay_that_nobody_knows_closes_the_gate(own: Runs) -> None:
    run = run_with(own, "adam")
    cache_run(run, "--metrics phase")
    with h5py.File(run.cache("phase")) as file:
        assert file["gate/conv1"].attrs["reason"] == (
            "the optimizer rescales weight decay with the gradient"
        )


# ---------------------------------------------------------------- weights and gradients


def test_entries_stand_beside_their_gradients(own: Runs) -> None:
    run = own(f"{SGD} --save-buffers grad")
    cache_run(run, "--metrics weights_grads,weights_grads_full,network --subset 7")
    full, network = cached(run, "weights_grads_full"), cached(run, "network")
    names = [name for name in weights(run, 0) if name.endswith((".weight", ".bias"))]
    for name in names:
        theta = full[f"empirical/{name}"]
        assert np.array_equal(theta, network[f"empirical/{name}"])
        g = (theta[:-1] - theta[1:]) / ETA - LAMBDA * theta[:-1]
        assert theta.shape[1] == min(7, load(run, 0)["model_state_dict"][name].numel())
        np.testing.assert_allclose(full[f"gradient/{name}"][1:], g, rtol=1e-8, atol=1e-13)
        assert np.isnan(full[f"gradient/{name}"][0]).all()
    some = cached(run, "weights_grads")
    connecting = {name for name in names if not name.startswith("bn")}
    assert {path for path in some if path.startswith("empirical/")} == {
        f"empirical/{name}" for name in connecting
    }
    assert all(
        np.array_equal(some[path], full[path], equal_nan=True)
        for path in some
        if path.startswith(("empirical/", "gradient/"))
    )


def test_a_subset_of_0_is_everything(own: Runs) -> None:
    run = own(f"{SGD} --save-buffers grad")
    cache_run(run, "--metrics weights_grads_full,network --subset 0")
    last = load(run, 12)
    for name, held in last["buffer_state_dict"].items():
        for path, tensor in (("empirical", last["model_state_dict"][name]), ("gradient", None)):
            whole = (held["grad_buffer"] if tensor is None else tensor).reshape(-1).numpy()
            stored = cached(run, "weights_grads_full")[f"{path}/{name}"][-1]
            assert np.array_equal(stored, whole)


# ---------------------------------------------------------------- what was not saved


def test_metrics_without_their_buffers_do_not_stop_the_others(
    own: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    run = own("--model conv-bn --width 4")
    capsys.readouterr()
    cache_run(run, "--metrics gradient,performance,phase")
    assert capsys.readouterr().err.splitlines()[1:] == [
        "cache: not cached without train.py --save-buffers grad,update: gradient, phase"
    ]
    assert [path.name for path in (run.path / "cache").iterdir()] == ["performance.h5"]


def test_nothing_to_cache_is_a_mistake(own: Runs) -> None:
    run = own("--model conv-bn --width 4 --save-buffers grad_norm")
    message = mistake("cache", run, "--metrics weights_grads")
    assert message == "not cached without train.py --save-buffers grad: weights_grads"
    assert not (run.path / "cache").exists()
    with pytest.raises(UserError, match="--metrics: none is named"):
        cache_run(run, "--metrics ,")
    cache_run(copy_run(run, run.path.with_name("y")), "--metrics gradient")


UPSTREAM = (
    "gradient network performance phase rescale rescale-momentum scale scale-momentum "
    "translation translation-momentum weights_grads weights_grads_full"
)


def test_all_metrics_of_upstream_are_known_by_their_names() -> None:
    names: Any = parse(CacheConfig, ["--metrics", UPSTREAM.replace(" ", ",")]).metric_names()
    assert len(UPSTREAM.split()) == 12
    assert set(names) <= set(METRICS.names)


def test_from_the_command_line_to_the_figures(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    flags = "--model fc --depth 3 --width 8 --epochs 1 --optimizer adam --wd 1e-3"
    assert run_stage("train", run, f"{flags} --save-buffers grad,update,grad_norm")[0] == 0
    extract_run(run, "--probe none")
    metrics = "--metrics gradient,phase,weights_grads,weights_grads_full"
    assert run_stage("cache", run, metrics)[0] == 0
    config = parse(PlotConfig, [*f"{metrics} --format png".split(), *flags_of(run)])
    drawn = [run.figure(name, "", "png") for name in config.metric_names()]
    assert list(plot_run(config)) == [str(path) for path in drawn]
    assert all(path.exists() for path in drawn)
