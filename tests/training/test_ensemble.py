"""Runs that are trained together are what they are alone: weights, laws, files."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from Metrics.summary import deviation
from tests.runs import cache_run, extract_run, flags_of
from Training.config import TrainConfig
from Training.ensemble import train_together, why_not
from Training.run import train
from Utils.cli import parse
from Utils.errors import UserError
from Utils.rundir import RunFolder

FLAGS = (
    "--model fc --width 6 --depth 3 --epochs 2 --train-batch-size 400 --dtype float64 --save-at 3"
)
STEPS = 2 * 4
MEMBERS = ["--seed 1", "--seed 2 --lr 0.02", "--seed 3"]


def config_of(run: RunFolder, flags: str) -> TrainConfig:
    return parse(TrainConfig, [*FLAGS.split(), *flags.split(), *flags_of(run)])


def folders(path: Path) -> list[RunFolder]:
    return [RunFolder(path / "e" / str(index)) for index in range(len(MEMBERS))]


def together(path: Path, flags: str, members: list[str] = MEMBERS) -> list[int | UserError]:
    runs = folders(path)
    pairs = zip(runs, members, strict=True)
    return train_together([config_of(run, f"{flags} {own}") for run, own in pairs], runs)


def checkpoint(run: RunFolder, step: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run.checkpoint(step), weights_only=True)
    return content


def assert_close(one: Any, other: Any, where: str = "") -> None:
    """Equal structure; numbers equal within 1e-9 of the largest of their array."""
    if isinstance(other, dict):
        assert one.keys() == other.keys(), where
        for name in other:
            assert_close(one[name], other[name], f"{where}/{name}")
    elif isinstance(other, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where}/{index}")
    elif isinstance(other, (torch.Tensor, float)):
        left, right = np.asarray(one), np.asarray(other)
        assert left.dtype == right.dtype, where
        size = np.abs(right[np.isfinite(right)]).max(initial=1e-6) if right.dtype.kind == "f" else 0
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-9 * size, err_msg=where)
    else:
        assert one == other, where


@pytest.mark.parametrize(
    "flags",
    [
        "--wd 1e-3",
        "--optimizer momentum --momentum 0.9 --dampening 0.1 --wd 1e-3 --warmup-steps 3",
        "--loss mse --lr-drops 1 --drop-last --no-balance",
        "--param mup --wd 1e-3 --optimizer momentum --momentum 0.9",
        "--param ntk --loss mse --warmup-steps 3",
    ],
)
def test_checkpoints_are_those_of_separate_runs(tmp_path: Path, flags: str) -> None:
    assert together(tmp_path / "together", flags) == [0, 0, 0]
    for index, (run, own) in enumerate(zip(folders(tmp_path / "alone"), MEMBERS, strict=True)):
        assert train(config_of(run, f"{flags} {own}"), nullcontext(run)) == 0
        other = folders(tmp_path / "together")[index]
        assert other.checkpoint_steps() == run.checkpoint_steps()
        for step in run.checkpoint_steps():
            one, two = checkpoint(other, step), checkpoint(run, step)
            for content in (one, two):  # ratios to what rounding leaves: compared by its size
                observer = content["observer_state_dict"]
                assert float(observer["record"].pop("residual").max()) < 1e-11
                observer.pop("leak_peak")
                leaks = observer.pop("leak"), observer["record"].pop("leak")
                assert all(float(leak.abs().max()) < 1e-11 for leak in leaks if leak.numel())
                observer.pop("leak_velocity", None)
            assert_close(one, two)
        lines = [(r.logs / "metrics.jsonl").read_text().count("\n") for r in (run, other)]
        assert lines[0] == lines[1]


def test_init_seeds_are_of_initial_weights_alone(tmp_path: Path) -> None:
    """--init-seed 3 begins with the weights of --seed 3, and sees the data of its own seed."""
    flags = "--param ntk --no-laws --lr 1e-3"
    members = ["--seed 1", "--seed 1 --init-seed 3", "--seed 3"]
    assert together(tmp_path, flags, members) == [0, 0, 0]
    runs = folders(tmp_path)
    first, mixed, other = (checkpoint(run, 0)["model_state_dict"] for run in runs)
    assert all(torch.equal(mixed[name], other[name]) for name in mixed)
    assert not torch.equal(mixed["fc2.weight"], first["fc2.weight"])
    probes = [run.probe.read_bytes() for run in runs]
    assert probes[0] == probes[1] != probes[2]


def test_every_member_has_a_log_of_its_own_and_the_first_is_heard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert together(tmp_path, "--param ntk --no-laws") == [0, 0, 0]
    heard = capsys.readouterr().err
    for index, run in enumerate(folders(tmp_path)):
        said = (run.logs / "run.log").read_text()
        assert said.count("parametrization ntk:") == 1
        loss = f"train_loss {checkpoint(run, STEPS)['train_loss']:.4g}"
        assert said.count(f"step {STEPS}/{STEPS} ") == said.count(loss) == 1
        assert (loss in heard) is (index == 0)


def test_a_member_that_diverges_ends_alone(tmp_path: Path) -> None:
    members = ["--seed 1", "--seed 1 --lr 1e100", "--seed 2"]
    outcomes = together(tmp_path, "--observe-freq 1", members)
    assert (outcomes[0], outcomes[2]) == (0, 0)
    assert "lower --lr" in str(outcomes[1])
    runs = folders(tmp_path)
    assert math.isfinite(checkpoint(runs[2], STEPS)["test_loss"])
    assert runs[1].checkpoint_steps() == [0]


def test_runs_continue_together_or_alone(tmp_path: Path) -> None:
    flags = "--optimizer momentum --momentum 0.9"
    assert together(tmp_path / "whole", flags) == [0, 0, 0]
    assert together(tmp_path / "parts", flags) == [0, 0, 0]
    whole, runs = folders(tmp_path / "whole"), folders(tmp_path / "parts")
    for run in runs:
        for step in (4, STEPS):
            run.checkpoint(step).unlink()
    assert together(tmp_path / "parts", flags) == [0, 0, 0]
    for one, other in zip(runs, whole, strict=True):
        two = (checkpoint(one, STEPS), checkpoint(other, STEPS))
        assert_close(*(content["model_state_dict"] for content in two))
    for run in runs:
        run.checkpoint(STEPS).unlink()
    assert train(config_of(runs[0], f"{flags} {MEMBERS[0]}"), nullcontext(runs[0])) == 0
    two = (checkpoint(runs[0], STEPS), checkpoint(whole[0], STEPS))
    assert_close(*(content["model_state_dict"] for content in two))
    with pytest.raises(UserError, match="stand at different steps"):
        together(tmp_path / "parts", flags)


def test_later_stages_read_them(tmp_path: Path) -> None:
    assert together(tmp_path, "") == [0, 0, 0]
    run = folders(tmp_path)[2]
    assert extract_run(run) == 4
    paths = cache_run(run, "--metrics rescale,translation")
    for path in paths:
        found = deviation(path)
        assert found is not None
        assert found.open == found.laws > 0
        assert found.worst[0] < 1e-9


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--width 6", "--width 7"], "--width differs; only --seed, --init-seed and --lr may"),
        (["--optimizer adam"] * 2, "--optimizer is not for several at once"),
        (["--clip-norm 1"] * 2, "--clip-norm is not for several at once"),
    ],
)
def test_what_cannot_be_trained_together(tmp_path: Path, flags: list[str], reason: str) -> None:
    runs = folders(tmp_path)[:2]
    configs = [config_of(run, own) for run, own in zip(runs, flags, strict=True)]
    assert why_not(configs) == reason
    with pytest.raises(UserError, match=reason):
        train_together(configs, runs)


@pytest.mark.parametrize(
    "flags", ["--param ipllr --depth 4", "--param sp --wd 0.1 --wd-on matrices"]
)
def test_steps_that_differ_by_more_than_a_factor_are_refused(tmp_path: Path, flags: str) -> None:
    outcome = "--wd-on is not" if "wd-on" in flags else "first steps have factors of their own"
    with pytest.raises(UserError, match=outcome):
        together(tmp_path, flags)


def test_networks_with_running_statistics_are_refused(tmp_path: Path) -> None:
    runs = folders(tmp_path)[:2]
    flags = [*FLAGS.replace("--model fc", "--model fc-bn").split()]
    configs = [parse(TrainConfig, [*flags, *flags_of(run)]) for run in runs]
    with pytest.raises(UserError, match="cannot be trained together"):
        train_together(configs, runs)
