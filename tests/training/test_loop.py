"""What a run computes, and what it leaves behind."""

import math
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from torch.nn import functional

import Data.digits
from Data import load_dataset
from Data.batches import Batches, probe_batch, training_batches
from Models import MODELS, build_model
from Models.symmetry import Laws
from tests.training.helpers import Train, journal_of
from Training import TrainConfig
from Training.checkpoints import load_checkpoint
from Utils.config import validate
from Utils.errors import Diverged, UserError
from Utils.rundir import RunFolder

STEPS_PER_EPOCH = 12

RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"wd": 1e-2},
    "heavy ball": {"optimizer": "momentum", "momentum": 0.9, "dampening": 0.3, "loss": "mse"},
    "nesterov": {"optimizer": "momentum", "momentum": 0.9, "nesterov": True, "clip_norm": 0.5},
    "float64": {"dtype": "float64", "model": "fc-bn", "lr_drops": "1"},
}


def by_hand(config: TrainConfig) -> dict[str, Any]:
    """The training loop as one would write it without this project."""
    dataset = load_dataset("digits")
    dtype = getattr(torch, config.dtype)
    batches = training_batches(dataset.train, config.train_batch_size, config.seed, dtype=dtype)
    model = build_model(config, (1, 8, 8), 10).train()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr or 0.0,
        momentum=config.momentum or 0.0,
        dampening=config.dampening or 0.0,
        weight_decay=config.wd or 0.0,
        nesterov=config.nesterov,
    )
    losses = []
    for epoch in range(config.epochs):
        if epoch in config.lr_drops:
            optimizer.param_groups[0]["lr"] *= config.lr_drop_rate
        for _ in range(STEPS_PER_EPOCH):
            inputs, targets = batches.next()
            logits = model(inputs)
            if config.loss == "ce":
                loss = functional.cross_entropy(logits, targets)
            else:
                loss = (logits - torch.eye(10, dtype=dtype)[targets]).square().mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            if config.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            losses.append(loss.item())
    return {"weights": model.state_dict(), "losses": losses}


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_is_exactly_the_loop_one_would_write(
    recipe: str, trains: Train, run: RunFolder
) -> None:
    flags: dict[str, Any] = {"model": "fc", "depth": 3, "width": 16, **RECIPES[recipe]}
    given = {f"--{flag.replace('_', '-')}": value for flag, value in flags.items()}
    trains(" ".join(flag if value is True else f"{flag} {value}" for flag, value in given.items()))
    config = validate(TrainConfig, {"epochs": 2, **flags}, "test")
    expected = by_hand(config)
    checkpoint = load_checkpoint(run.checkpoint(24))
    assert checkpoint["model_state_dict"].keys() == expected["weights"].keys()
    for name, tensor in expected["weights"].items():
        assert torch.equal(checkpoint["model_state_dict"][name], tensor), name
    mean = sum(expected["losses"][STEPS_PER_EPOCH:]) / STEPS_PER_EPOCH
    assert checkpoint["train_loss"] == pytest.approx(mean, rel=1e-15)
    lines = [line for line in journal_of(run) if "train_loss" in line]
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 24]
    for index, line in enumerate(lines):
        expected_mean = sum(expected["losses"][4 * index : 4 * index + 4]) / 4
        assert line["train_loss"] == pytest.approx(expected_mean, rel=1e-15)


def test_checkpoints_hold_plain_tensors_at_the_steps_asked_for(
    trains: Train, run: RunFolder
) -> None:
    trains("--save-freq 9 --save-at 2,13 --optimizer momentum --momentum 0.9")
    assert run.checkpoint_steps() == [0, 2, 9, 12, 13, 18, 24]
    for step in run.checkpoint_steps():
        checkpoint = torch.load(run.checkpoint(step), weights_only=True)
        assert checkpoint["step"] == step
        assert checkpoint["epoch"] == step // STEPS_PER_EPOCH
        evaluated = {"test_loss", "accuracy1", "accuracy5"} <= checkpoint.keys()
        assert evaluated == (step % STEPS_PER_EPOCH == 0)
        assert ("train_loss" in checkpoint) == (step in {12, 24})
        observed = checkpoint["observer_state_dict"]["record"]["step"].tolist()
        steps = {0, *range(4, 25, 4), *run.checkpoint_steps()}
        before = max((s for s in run.checkpoint_steps() if s < step), default=-1)
        assert observed == sorted(s for s in steps if before < s <= step)


def test_what_the_later_stages_read(trains: Train, run: RunFolder) -> None:
    trains("--probe-size 5 --dtype float64")
    content = run.read_hyperparameters()
    assert content["width"] == 16
    assert content["task"] == {
        "input_shape": [1, 8, 8],
        "num_classes": 10,
        "train_size": 1437,
        "test_size": 360,
        "phases": [{"epoch": 0, "step": 0, "batch_size": 128, "lr": 0.05, "momentum": 0.0}],
        "replicas": 1,
    }
    assert content["provenance"]["versions"]["torch"] == metadata.version("torch")
    assert {"command", "device", "commit", "created"} <= content["provenance"].keys()
    assert len(Laws.load(run.symmetries)) > 0
    inputs, targets = probe_batch(load_dataset("digits"), 5, seed=1, dtype=torch.float64)
    with h5py.File(run.probe) as file:
        assert torch.equal(torch.from_numpy(file["inputs"][()]), inputs)
        assert torch.equal(torch.from_numpy(file["targets"][()]), targets)


@pytest.mark.parametrize("model", [n for n in MODELS["default"].names if n != "transformer"])
def test_every_model_learns(model: str, trains: Train, run: RunFolder) -> None:
    rate = "--lr 0.02" if model == "preact-resnet" else ""  # nothing normalises it
    trains(f"--model {model} --train-batch-size 16 {rate}")
    lines = [line for line in journal_of(run) if "test_loss" in line]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[2]["test_loss"] < lines[1]["test_loss"] < lines[0]["test_loss"]
    assert lines[0]["accuracy1"] < lines[2]["accuracy1"] <= lines[2]["accuracy5"] <= 100


def test_no_epochs_leave_the_untrained_model(trains: Train, run: RunFolder) -> None:
    assert trains("--epochs 0") == 0
    assert run.checkpoint_steps() == [0]


def test_a_diverging_run_stops_and_keeps_what_it_has(trains: Train, run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"the loss of step (\d+) is (nan|inf); all .* lower --lr"):
        trains("--lr 1e6 --loss mse --nonlinearity identity --save-freq 2 --observe-freq 50")
    assert 0 in run.checkpoint_steps()
    for step in run.checkpoint_steps():
        checkpoint = load_checkpoint(run.checkpoint(step))
        assert all(math.isfinite(checkpoint.get(k, 0)) for k in ("train_loss", "test_loss"))
    assert all(math.isfinite(line.get("train_loss", 0)) for line in journal_of(run))


def test_the_first_bad_step_is_named(
    trains: Train, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(self: Batches, original: Any = Batches.next) -> Any:
        inputs, targets = original(self)
        is_third_batch_of_second_epoch = (self.epoch, self.position) == (1, 3)
        return inputs * (math.nan if is_third_batch_of_second_epoch else 1), targets

    monkeypatch.setattr(Batches, "next", poisoned)
    with pytest.raises(UserError, match="the loss of step 15 is nan"):
        trains()
    assert run.checkpoint_steps() == [0, 12]
    *lines, last = journal_of(run)
    assert lines[-1]["step"] == 12
    assert (last["step"], last["diverged"]) == (15, True)


@pytest.mark.parametrize(
    "flags",
    [
        "--dtype float64 --lr 1e200",  # whose square is no number
        "--dtype float64 --lr 1e200 --optimizer momentum --momentum 0.9",
        "--dtype float32 --lr 1e60",  # which is none itself
    ],
)
def test_learning_rates_without_bounds_diverge(flags: str, trains: Train, run: RunFolder) -> None:
    with pytest.raises(Diverged, match=r"^the (loss|update) of step \d .* lower --lr"):
        trains(f"{flags} --wd 0.1")
    assert journal_of(run)[-1]["diverged"]


@pytest.mark.parametrize("batch_size", [1, 1436])
def test_a_batch_of_one_with_batch_normalisation_is_refused_at_once(
    batch_size: int, trains: Train, run: RunFolder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"--train-batch-size {batch_size}: a batch of one of the"):
        trains(f"--model fc-bn --train-batch-size {batch_size}")
    assert not run.path.exists()
    if batch_size > 1:
        assert trains(f"--model fc-bn --train-batch-size {batch_size} --drop-last") == 0


def test_a_full_disk_is_told_in_one_line_and_loses_nothing(
    trains: Train, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def full(content: Any, file: Any) -> None:
        if content["step"] == 24:
            file.write_bytes(b"half a check")
            raise OSError(28, "No space left on device", str(file))
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="disk is full; free some space and run the same command"):
        trains()
    assert run.checkpoint_steps() == [0, 12]
    assert list(run.path.glob("**/*.tmp")) == []
    monkeypatch.undo()


def test_a_folder_that_cannot_be_made(trains: Train, tmp_path: Path) -> None:
    (tmp_path / "e").touch()
    with pytest.raises(UserError, match="a part of this path is a file"):
        trains()


def test_data_that_cannot_be_had_leaves_no_run(
    trains: Train, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise UserError("no data")

    monkeypatch.setattr(Data.digits, "load", fail)
    with pytest.raises(UserError, match="no data"):
        trains()
    assert not run.path.exists()
