"""Predictions for runs in which parameters have learning rates of their own."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.autograd.functional import hessian
from torch.func import functional_call

from Metrics.figures import draw
from tests.metrics.test_kernels import DATA, TRAIN, network, probe
from tests.metrics.test_values import cached, load
from tests.runs import Runs, cache_run
from Utils.rundir import RunFolder

FC = (
    f"{DATA} --model fc --depth 2 --width 4 --dtype float64 --train-batch-size 40 --save-freq 3 "
    "--epochs 9 --no-laws"
)
HEAVY = "--optimizer momentum --momentum 0.8"
READOUT = (
    '--abc {"input":{"c":60},"vector":{"c":60},"hidden":{"a":"1/2"},"readout":{"a":"1/2","b":0}}'
)
"""The first layer's steps, 4⁻⁶⁰ times the readout's, are nothing: the network is linear."""


def factors(run: RunFolder) -> dict[str, float]:
    said = run.read_hyperparameters()["task"]["parametrization"]
    return {scale["name"]: scale["lr"] for scale in said["parameters"]}


def attributes(path: Path, gate: str) -> tuple[str, str, bool]:
    """Of a cache: by which kernel it predicts, its gate's reason, and whether that is open."""
    with h5py.File(path) as file:
        found = file[f"gate/{gate}"]
        return file.attrs["predicted by"], found.attrs["reason"], bool(found[()].all())


@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize("on", ["--examples 40", TRAIN])
def test_predictions_are_the_run_where_it_is_linear(own: Runs, loss: str, on: str) -> None:
    run = own(f"{FC} --loss {loss} {HEAVY} --lr 0.2 {READOUT}")
    found = factors(run)
    assert found["fc1.weight"] < 1e-30
    assert found["classifier.weight"] == pytest.approx(0.25 * found["classifier.bias"])
    cache_run(run, f"--metrics linearized,modes,ntk,lazy {on}")
    linear, modes, ntk = (cached(run, name) for name in ("linearized", "modes", "ntk"))
    for way in ("weights", "descent"):
        away = np.abs(linear[f"logits/{way}"] - linear["logits/measured"]).max()
        assert away < 1e-10, way
    assert linear["empirical/outputs"][-1, 0] > 0.03
    np.testing.assert_allclose(
        modes["theoretical/reference"], modes["empirical/reference"], rtol=1e-6, atol=1e-20
    )
    assert modes["eigenvalue/now"][0].sum() != pytest.approx(np.trace(ntk["kernel/network"][0]))
    for name, gate in (("modes", "reference"), ("linearized", "loss")):
        kernel, reason, is_open = attributes(run.cache(name), gate)
        assert kernel.startswith("sum of s_p J_p J_p^T")
        assert reason == "one kernel for all outputs"
        assert is_open
        draw(run.cache(name))


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_function_space_is_the_linear_model_in_weight_space(own: Runs, loss: str) -> None:
    """Under the run's optimizer with the parametrization's groups; η s_p λ_p is one for ntk."""
    run = own(f"{FC} --param ntk --loss {loss} {HEAVY} --lr 0.2 --wd 0.05")
    cache_run(run, "--metrics linearized --kernel full --examples 40")
    found = cached(run, "linearized")
    away = np.abs(found["logits/descent"] - found["logits/weights"]).max()
    assert away < 1e-10 < 1e-3 < found["weights/outputs"][-1]


def test_clipping_needs_norms_of_gradients(own: Runs) -> None:
    run = own(f"{FC} --param ntk --loss ce --lr 0.2 --clip-norm 1e9")
    cache_run(run, "--metrics linearized,spectrum --kernel full --examples 40")
    found = cached(run, "linearized")
    assert np.abs(found["logits/descent"] - found["logits/weights"]).max() < 1e-10
    assert attributes(run.cache("linearized"), "loss")[1] == "unclipped"
    assert np.isnan(cached(run, "spectrum")["largest lr/network"]).all()


def test_the_largest_stable_learning_rate(own: Runs) -> None:
    """By the dense Hessian in the coordinates θ_p/√s_p, in which all steps have one rate."""
    run = own(f"{FC} --loss mse {HEAVY} --lr 0.2 {READOUT}")
    cache_run(run, "--metrics spectrum,ntk --kernel full")
    found, (inputs, targets) = cached(run, "spectrum"), probe(run)
    state, model = load(run, 3)["model_state_dict"], network(run)
    roots = {name: factor**0.5 for name, factor in factors(run).items()}
    y = torch.nn.functional.one_hot(targets, 3).double()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = torch.split(flat, [value.numel() for value in state.values()])
        moved = {
            n: v + roots[n] * p.view_as(v) for (n, v), p in zip(state.items(), parts, strict=True)
        }
        logits: torch.Tensor = functional_call(model, moved, (inputs,))
        return (logits - y).square().mean()

    size = sum(value.numel() for value in state.values())
    curved = hessian(loss, torch.zeros(size, dtype=torch.float64))  # type: ignore[no-untyped-call]
    expected = 2 * 1.8 / float(torch.linalg.eigvalsh(curved)[-1])
    assert found["largest lr/network"][1] == pytest.approx(expected, rel=1e-8)
    plain = np.trace(cached(run, "ntk")["kernel/network"][1], axis1=2, axis2=3) / 3
    values = np.linalg.eigvalsh(plain)[::-1]
    np.testing.assert_allclose(found["empirical/network"][1], values, atol=1e-10)
    assert attributes(run.cache("spectrum"), "network")[2]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--param ntk --optimizer adam --lr 0.01", "--optimizer adam is not linear in the gradi"),
        ("--param ipllr --lr 0.1", "first steps have learning rates of their own"),
        (f"--wd 0.1 {READOUT}", "--wd 0.1 decays parameters differently under the paramet"),
    ],
)
def test_what_stays_unknown_is_said(own: Runs, flags: str, reason: str) -> None:
    run = own(f"{FC} {flags}")
    cache_run(run, "--metrics modes,linearized,spectrum,ntk")
    for name, gate in (("modes", "reference"), ("linearized", "loss"), ("spectrum", "network")):
        kernel, said, is_open = attributes(run.cache(name), gate)
        assert kernel == "sum of J_p J_p^T"
        assert reason in said
        assert not is_open
    assert np.isnan(cached(run, "modes")["theoretical/reference"]).all()
    assert np.isnan(cached(run, "spectrum")["largest lr/network"]).all()
    traces = cached(run, "modes")["eigenvalue/now"].sum(1)
    expected = np.trace(cached(run, "ntk")["kernel/network"], axis1=1, axis2=2)
    np.testing.assert_allclose(traces, expected, rtol=1e-10)
