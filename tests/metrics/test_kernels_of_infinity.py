"""Kernel metrics of runs of infinite width, beside closed forms by numpy.

Shape letters: N examples, C outputs.
"""

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from Metrics.kernels.measures import centred_alignment
from tests.metrics.test_values import cached
from tests.runs import Runs, cache_run, run_stage
from Utils.errors import UserError
from Utils.rundir import RunFolder

Floats = NDArray[np.float64]

SHORT = (
    "--dataset gaussian-mixture --train-size 48 --test-size 24 --dimension 6 --classes 3 "
    "--probe-size 16 --model fc --param ntk --width inf --dtype float64 --no-bias"
)
TWO = f"{SHORT} --depth 2 --loss mse --train-batch-size 48 --epochs 5 --lr 0.3"
BATCHES = f"{SHORT} --depth 3 --train-batch-size 20 --epochs 3 --optimizer momentum --momentum 0.6"
DAMPED = f"{BATCHES} --dampening 0.2 --lr 0.15 --lr-drops 2 --loss mse"
SMOOTH = f"{BATCHES} --nesterov --lr 0.3 --warmup-steps 3"
FLOW = f"{SHORT} --depth 3 --train-batch-size 48 --epochs 3 --optimizer flow --lr 7"
ALL = "--metrics ntk,spectrum,alignment,modes"


def relu_kernels(x: Floats) -> tuple[Floats, Floats]:
    """NTK and NNGP [N, N] of one hidden ReLU layer (Cho and Saul 2009), h of variance 2|x|²/d."""
    inner = x @ x.T
    size = np.sqrt(np.outer(inner.diagonal(), inner.diagonal()))
    angle = np.arccos(np.clip(inner / size, -1, 1))
    covariance = (np.sin(angle) + (np.pi - angle) * np.cos(angle)) * size / np.pi / x.shape[1]
    return covariance + (np.pi - angle) / (2 * np.pi) * inner, covariance


def probe(run: RunFolder) -> tuple[Floats, Floats]:
    """Inputs and one-hot targets."""
    with h5py.File(run.probe) as file:
        x, classes = file["inputs"][()], file["targets"][()]
    return x.reshape(len(x), -1), np.eye(3)[classes]


@pytest.mark.parametrize("nngp", [False, True])
def test_kernels_of_one_hidden_layer_are_the_closed_form(own: Runs, nngp: bool) -> None:
    run = own(TWO + " --nngp" * nngp)
    cache_run(run, ALL)
    x, y = probe(run)
    expected = relu_kernels(x)[int(nngp)]
    found = cached(run, "ntk")
    np.testing.assert_allclose(found["kernel/network"], [expected] * 6, rtol=1e-6)
    assert found["empirical/network"][3, 0] == pytest.approx(np.trace(expected) / 16)
    spectrum, aligned = cached(run, "spectrum"), cached(run, "alignment")
    values = np.linalg.eigvalsh(expected)[::-1]
    np.testing.assert_allclose(spectrum["empirical/network"], [values] * 6, atol=1e-6)
    np.testing.assert_allclose(spectrum["largest lr/network"], 16 * 3 / values[0], rtol=1e-6)
    alignment = centred_alignment(expected, y)
    np.testing.assert_allclose(aligned["centred/network"], alignment, rtol=1e-6)
    with h5py.File(run.cache("ntk")) as file:
        assert file.attrs["formula"].startswith("limit of")
        assert "layers" not in file


def test_the_kernel_does_not_move(own: Runs) -> None:
    run = own(DAMPED)
    cache_run(run, ALL)
    found = cached(run, "ntk")
    for curve in ("distance", "change", "velocity"):
        assert (np.nan_to_num(found[f"{curve}/network"]) == 0).all()
    assert (found["cka/network"] == 1).all()
    np.testing.assert_allclose(found["angle/network"], 0, atol=1e-7)
    assert np.ptp(cached(run, "alignment")["loss/network"]) > 0  # while the run learns


def test_errors_along_modes_decay_by_the_formula(own: Runs) -> None:
    """Π (1 − 2 η λ_i / (NC)) of each mode of the training examples, from E = −Y."""
    run = own(TWO)
    cache_run(run, "--metrics modes --kernel-on train --examples 48")
    found = cached(run, "modes")
    rates = 1 - 2 * 0.3 * found["eigenvalue/reference"][0] / (48 * 3)
    powers = found["empirical/reference"]
    for step in range(6):
        np.testing.assert_allclose(powers[step], rates ** (2 * step) * powers[0], atol=1e-10)
    assert powers[5, 0] < 0.1 * powers[0, 0]


@pytest.mark.parametrize("flags", [TWO, DAMPED, SMOOTH, f"{FLOW} --loss mse", FLOW])
@pytest.mark.parametrize("kernel_on", ["probe", "train --examples 20"])
def test_predictions_are_the_trajectory(own: Runs, flags: str, kernel_on: str) -> None:
    """Full batches, mini-batches and flows, from the beginning."""
    run = own(flags)
    cache_run(run, f"--metrics modes --kernel-on {kernel_on}")
    found = cached(run, "modes")
    measured, predicted = found["empirical/reference"], found["theoretical/reference"]
    np.testing.assert_allclose(predicted, measured, rtol=0, atol=1e-7 * measured.max())
    assert np.abs(measured[-1] - measured[0]).max() > 1e-3
    with h5py.File(run.cache("modes")) as file:
        assert not file["gate/reference"].attrs["reason"]
        assert (file["gate/reference"][()] == 1).all()


def test_predictions_from_a_later_step(own: Runs) -> None:
    run = own(TWO)
    cache_run(run, "--metrics modes --reference 2")
    found = cached(run, "modes")
    measured, predicted = found["empirical/reference"], found["theoretical/reference"]
    assert np.isnan(predicted[:2]).all()
    np.testing.assert_allclose(predicted[2:], measured[2:], atol=1e-12)
    late = own(DAMPED)
    cache_run(late, "--metrics modes --reference 3")
    with h5py.File(late.cache("modes")) as file:
        assert "velocity is not zero" in file["gate/reference"].attrs["reason"]


def test_full_kernels_have_nothing_between_outputs(own: Runs) -> None:
    run = own(TWO)
    cache_run(run, f"{ALL} --kernel full")
    full = cached(run, "ntk")["kernel/network"][0]
    expected = relu_kernels(probe(run)[0])[0]
    np.testing.assert_allclose(full, expected[..., None, None] * np.eye(3), atol=1e-6)


def test_flows_have_no_largest_learning_rate(own: Runs) -> None:
    run = own(FLOW)
    cache_run(run, "--metrics spectrum")
    assert np.isnan(cached(run, "spectrum")["largest lr/network"]).all()
    with h5py.File(run.cache("spectrum")) as file:
        assert file["gate/network"].attrs["reason"] == "gradient flow has no steps"


def test_metrics_of_weights_are_still_refused(own: Runs) -> None:
    with pytest.raises(UserError, match="which these metrics are about: linearized, lazy"):
        cache_run(own(TWO), "--metrics linearized,lazy")


def test_by_the_commands(own: Runs, tmp_path: Path) -> None:
    run = own(TWO)
    assert run_stage("cache", run, ALL)[0] == 0
    code, output, errors = run_stage("plot", run, "--format png")
    assert code == 0, errors
    drawn = {Path(line).name for line in output.splitlines()}
    assert drawn == {"ntk.png", "spectrum.png", "alignment.png", "modes.png"}
    with h5py.File(run.kernels, "a") as file:
        del file["ntk/probe_own"]  # of a run that is older than it
    code, _, errors = run_stage("cache", run, f"{ALL} --overwrite")
    assert code == 2
    assert "start anew with train.py --overwrite" in errors
