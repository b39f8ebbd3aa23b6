"""``--no-evaluate``: the same training, without numbers of the test set."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.runs import cache_run, extract_run, run_stage, train_run
from Training import loop

FLAGS = "--epochs 2 --train-batch-size 480 --model fc --depth 3 --width 8 --dtype float64"


def test_training_is_the_same_and_no_test_set_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = train_run(tmp_path / "e" / "evaluated", FLAGS)
    monkeypatch.setattr(loop, "evaluate", None)  # a call would raise
    run = train_run(tmp_path / "e" / "run", f"{FLAGS} --no-evaluate")
    assert run.checkpoint_steps() == evaluated.checkpoint_steps() == [0, 3, 6]
    theirs, ours = (torch.load(r.checkpoint(6), weights_only=True) for r in (evaluated, run))
    assert all(
        map(torch.equal, ours["model_state_dict"].values(), theirs["model_state_dict"].values())
    )
    assert ours["train_loss"] == theirs["train_loss"]
    assert set(theirs) - set(ours) == {"test_loss", "accuracy1", "accuracy5"}
    lines = [json.loads(line) for line in (run.logs / "metrics.jsonl").read_text().splitlines()]
    assert not any("test_loss" in line for line in lines)


def test_later_stages_do_with_losses_of_training(tmp_path: Path) -> None:
    run = train_run(tmp_path / "e" / "run", f"{FLAGS} --no-evaluate")
    extract_run(run, "--probe none")
    (path,) = cache_run(run, "--metrics performance")
    with h5py.File(path) as file:
        losses = file["empirical/train_loss"][:, 0]
        assert np.isfinite(losses[1:]).all()
        assert np.isnan(file["empirical/test_loss"]).all()
    for flags in ("--metrics performance --format png", "--report"):
        code, _, errors = run_stage("plot", run, flags)
        assert code == 0, errors
    assert (run.path / "img" / "performance.png").exists()


def test_an_infinite_network_needs_no_kernel_of_the_test_set(tmp_path: Path) -> None:
    flags = "--dataset gaussian-mixture --train-size 24 --test-size 16 --probe-size 8 --epochs 3 "
    flags += "--train-batch-size 24 --model fc --param ntk --width inf --loss mse --lr 0.5"
    evaluated = train_run(tmp_path / "e" / "evaluated", flags)
    run = train_run(tmp_path / "e" / "run", f"{flags} --no-evaluate")
    with h5py.File(run.kernels) as ours, h5py.File(evaluated.kernels) as theirs:
        assert (len(theirs["ntk/test"]), len(ours["ntk/test"])) == (16, 0)
        assert np.array_equal(ours["ntk/probe"], theirs["ntk/probe"])
    for each in (run, evaluated):
        extract_run(each, "--probe logits")
    with h5py.File(run.features(3)) as ours, h5py.File(evaluated.features(3)) as theirs:
        assert np.array_equal(ours["probe/logits"], theirs["probe/logits"])
