"""Conservation laws where a parametrization gives parameters learning rates of their own."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from Metrics.summary import deviation
from Models.symmetry import Laws
from tests.runs import cache_run, extract_run, train_run
from Utils.rundir import RunFolder

LAST = 24
FLAGS = f"--epochs 4 --train-batch-size 240 --dtype float64 --save-freq {LAST} --observe-freq 1"
LINEAR = "--model fc --depth 4 --width 16 --nonlinearity identity"


def weights(run: RunFolder, step: int) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor]
    state = torch.load(run.checkpoint(step), weights_only=True)["model_state_dict"]
    return state


def factors(run: RunFolder) -> dict[str, float]:
    rows = run.read_hyperparameters()["task"]["parametrization"]["parameters"]
    return {row["name"]: row["lr"] for row in rows}


@pytest.mark.parametrize(
    ("flags", "metrics"),
    [
        ("--model fc --depth 4 --width 16 --param mup --lr 0.1", "rescale,translation"),
        (
            "--model fc --depth 4 --width 16 --param ntk --lr 0.5 --wd 1e-2 --optimizer momentum "
            "--momentum 0.9 --dampening 0.2",
            "rescale,translation",
        ),
        (
            "--model conv-bn --width 6 --param mup --lr 0.05 --wd 1e-2 --optimizer momentum "
            "--momentum 0.9 --nesterov",
            "scale,rescale",
        ),
        (
            "--model fc --depth 4 --width 16 --param mup --lr 0.1 --wd 1e-2 --wd-on matrices",
            "rescale",
        ),
        (f"{LINEAR} --no-bias --param mup --lr 0.1 --base-width 4", "rescale,balance"),
        (
            "--model transformer --dataset modular-addition --modulus 7 --width 16 --depth 1 "
            "--heads 2 --param mup --lr 0.1",
            "rescale,translation,balance",
        ),
    ],
)
def test_laws_are_exact(tmp_path: Path, flags: str, metrics: str) -> None:
    run = train_run(tmp_path / "e" / "x", f"{FLAGS} {flags}")
    assert len({*factors(run).values()}) > 1
    extract_run(run, "--probe none")
    moved = 0.0
    for path in cache_run(run, f"--metrics {metrics}"):
        found = deviation(path)
        assert found is not None
        assert found.worst[0] < 1e-12
        with h5py.File(path) as file:
            assert "θ/√s" in file.attrs["of"]
            for name, curve in file["empirical"].items():
                if (file["size"][name][0] > 0).all():  # biases may begin, and stay, at zero
                    assert file["gate"][name][()].all(), name
                moved = max(moved, float(np.abs(curve[-1] - curve[0]).max()))
    assert moved > 1e-4  # something was there to predict


def charges_of(run: RunFolder, step: int, s: dict[str, float]) -> torch.Tensor:
    """|w_out|²/s_2 − |w_in|²/s_1 − b²/s_b of every neuron of the first hidden layer, by hand."""
    square = {name: w.square() / s[name] for name, w in weights(run, step).items()}
    return square["fc2.weight"].sum(0) - square["fc1.weight"].sum(1) - square["fc1.bias"]


def test_charges_are_of_squares_over_learning_rates(tmp_path: Path) -> None:
    run = train_run(tmp_path / "e" / "x", f"{FLAGS} --model fc --depth 3 --width 16 --param mup")
    s = factors(run)
    found = Laws.load(run.symmetries).measure(weights(run, LAST).__getitem__)[:16]
    np.testing.assert_allclose(found, charges_of(run, LAST, s), rtol=1e-12)
    drift, without = (
        float((charges_of(run, LAST, rates) - charges_of(run, 0, rates)).abs().max())
        for rates in (s, dict.fromkeys(s, 1.0))
    )
    assert drift < 0.2 * without


def test_gradient_flow_conserves_them(tmp_path: Path) -> None:
    """The drift over a time is of first order in the learning rate: it halves with it."""
    drifts = []
    for lr, epochs in ((0.08, 2), (0.04, 4)):
        run = train_run(
            tmp_path / "e" / str(lr),
            f"--epochs {epochs} --train-batch-size 1437 --dtype float64 --model fc --depth 3 "
            f"--width 16 --param mup --lr {lr}",
        )
        laws = Laws.load(run.symmetries)
        begin, end = (laws.measure(weights(run, step).__getitem__) for step in (0, epochs))
        drifts.append(np.abs(end - begin).max())
    assert drifts[0] > 1e-8
    assert drifts[1] / drifts[0] == pytest.approx(0.5, abs=0.1)


def test_first_steps_of_their_own_close_the_gate(tmp_path: Path) -> None:
    run = train_run(tmp_path / "e" / "x", f"{FLAGS} --model fc --depth 4 --width 16 --param ipllr")
    extract_run(run, "--probe none")
    (path,) = cache_run(run, "--metrics rescale")
    with h5py.File(path) as file:
        assert not file["gate/fc1|fc2"][()].any()
        reason = file["gate/fc1|fc2"].attrs["reason"]
    assert reason == "its parameters have different learning rates or momenta"
