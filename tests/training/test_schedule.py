"""Learning rates follow their formulas; annealing keeps its invariants and goes on where it was."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runs import cache_run, extract_run, mistake, train_run
from Training import TrainConfig
from Training.schedule import Schedule
from Utils.config import validate
from Utils.errors import UserError
from Utils.rundir import RunFolder

EPOCHS, STEPS = 6, 5
ANNEALED = "--optimizer momentum --momentum 0.6 --lr 0.02 --wd 1e-3 --dtype float64"


def schedule(**flags: Any) -> Schedule:
    """Of a run of 6 epochs with 5 steps each."""
    defaults = {"lr": 0.5, "epochs": EPOCHS, "train_batch_size": 10}
    return Schedule(validate(TrainConfig, {**defaults, **flags}, "test"), 10 * STEPS)


def rates(**flags: Any) -> list[float]:
    """The learning rate of every step."""
    found = schedule(**flags)
    return [found.lr(step) for step in range(found.total)]


def test_constant() -> None:
    assert rates() == [0.5] * 30


def test_drops_begin_with_their_epoch() -> None:
    expected = [0.5] * 10 + [0.5 * 0.2] * 5 + [0.5 * 0.2**2] * 15
    assert rates(lr_drops="2,3", lr_drop_rate=0.2) == pytest.approx(expected, rel=1e-15)


def test_warm_up_is_linear_and_ends_at_the_full_rate() -> None:
    assert rates(warmup_steps=4) == [0.125, 0.25, 0.375] + [0.5] * 27


def test_cosine_after_the_warm_up() -> None:
    expected = [0.25 * (1 + math.cos(math.pi * k / 28)) for k in range(28)]
    assert rates(lr_schedule="cosine", warmup_steps=2) == pytest.approx([0.25, 0.5, *expected])


def test_a_warm_up_longer_than_the_run() -> None:
    assert rates(lr_schedule="cosine", warmup_steps=60)[-1] == pytest.approx(0.25)


def phases(rule: str, steps: int = 4) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[phases, (S, η, β)], beginning with 10, 0.5, 0.6."""
    config = validate(
        TrainConfig,
        {
            "optimizer": "momentum",
            "momentum": 0.6,
            "lr": 0.5,
            "train_batch_size": 10,
            "schedule": rule,
            "anneal_steps": steps,
        },
        "test",
    )
    found = Schedule(config, 1000).phases
    assert vars(found[0]) == {"batch_size": 10, "lr": 0.5, "momentum": 0.6}
    return np.array([(phase.batch_size, phase.lr, phase.momentum) for phase in found])


def test_doubled_batches_keep_temperature_and_friction() -> None:
    size, lr, beta = phases("batch-doubling").T
    assert size.tolist() == [10, 20, 40, 80]
    np.testing.assert_allclose(lr / (size * (1 - beta)), 0.5 / (10 * 0.4), rtol=1e-14)
    np.testing.assert_allclose(1 / (size * (1 - beta**2)), 1 / (10 * (1 - 0.36)), rtol=1e-14)


def test_a_halved_lr_keeps_the_effective_one() -> None:
    size, lr, beta = phases("lr-halving").T
    assert size.tolist() == [10] * 4
    assert lr.tolist() == [0.5, 0.25, 0.125, 0.0625]
    np.testing.assert_allclose(lr / (1 - beta), 0.5 / 0.4, rtol=1e-14)


def test_the_linear_rule_ends_where_upstreams_did() -> None:
    _, lr, beta = phases("linear").T
    np.testing.assert_allclose(lr, np.linspace(0.5, 1e-8, 4), rtol=1e-12)
    np.testing.assert_allclose(beta, np.linspace(0.6, 0.9999, 4), rtol=1e-12)


def test_batches_that_outgrow_the_data_are_refused() -> None:
    with pytest.raises(UserError, match="--anneal-steps 4: batches grow to 80 of 50 examples"):
        schedule(optimizer="momentum", momentum=0.5, schedule="batch-doubling", anneal_steps=4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--schedule linear --anneal-steps 2", "changes the momentum; use --optimizer momentum"),
        ("--anneal-steps 3", "phases need both, as in --schedule batch-doubling"),
        (f"{ANNEALED} --schedule linear", "--anneal-steps 1 with --schedule linear"),
        ("--schedule halving", "unknown schedule 'halving'; did you mean 'lr-halving'"),
    ],
)
def test_mistakes(flags: str, message: str, tmp_path: Path) -> None:
    assert message in mistake("train", RunFolder(tmp_path / "e" / "x"), flags)


@pytest.mark.parametrize("rule", ["batch-doubling", "linear", "lr-halving"])
def test_phases_continue_where_the_one_before_ended(rule: str, tmp_path: Path) -> None:
    """Steps count on, momentum and its buffers stay, and the laws hold through all phases."""
    flags = f"{ANNEALED} --model fc --depth 3 --width 8 --schedule {rule} --anneal-steps 3"
    run = train_run(tmp_path / "e" / "x", flags)
    described = json.loads(run.hyperparameters.read_text())["task"]["phases"]
    starts = [phase["step"] for phase in described]
    assert starts == ([0, 12, 18] if rule == "batch-doubling" else [0, 12, 24])
    for phase in described[1:]:
        saved = torch.load(run.checkpoint(phase["step"]), weights_only=True)
        (group,) = saved["optimizer_state_dict"]["param_groups"]
        assert group["lr"] == pytest.approx(phase["lr"], rel=1e-14)
        assert group["momentum"] == phase["momentum"]
        assert saved["data_state"]["batch_size"] == phase["batch_size"]
        assert all(
            s["momentum_buffer"].any() for s in saved["optimizer_state_dict"]["state"].values()
        )
    last = torch.load(run.checkpoint(run.checkpoint_steps()[-1]), weights_only=True)
    assert last["observer_state_dict"]["record"]["residual"].max() < 1e-12
    rates = [phase["lr"] / (1 - phase["momentum"]) for phase in described]
    epochs = np.diff([*starts, run.checkpoint_steps()[-1]])
    assert last["observer_state_dict"]["time"] == pytest.approx(float(np.dot(rates, epochs)))


def test_an_annealed_run_goes_through_all_stages_and_continues_exactly(tmp_path: Path) -> None:
    flags = f"{ANNEALED} --model fc --depth 3 --width 8 --schedule batch-doubling --anneal-steps 3"
    whole, again = (train_run(tmp_path / "e" / name, flags) for name in ("whole", "again"))
    steps = whole.checkpoint_steps()
    for step in steps[-3:]:
        again.checkpoint(step).unlink()
    train_run(again.path, flags)
    assert again.checkpoint_steps() == steps
    first, second = (torch.load(run.checkpoint(steps[-1])) for run in (whole, again))
    for name, weight in first["model_state_dict"].items():
        assert torch.equal(weight, second["model_state_dict"][name])
    assert extract_run(whole) == len(steps)
    assert len(cache_run(whole)) > 3
