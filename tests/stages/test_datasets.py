"""Every dataset that needs no download, and image folders, through the stages as a user types."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from Data import DATASETS
from tests.runs import mistake, run_stage
from Training.checkpoints import load_checkpoint
from Utils.rundir import RunFolder

MODEL = "--model fc --depth 2 --width 16 --epochs 2"
PROCEDURAL = {
    "modular-addition": "--modulus 7 --train-fraction 0.5",
    "sparse-parity": "--bits 6 --parity-bits 2",
    "teacher-student": "--dimension 3 --teacher-width 2 --noise 0.1 --loss mse",
    "gaussian-mixture": "--classes 3 --dimension 5 --separation 2 --train-size 300",
}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "e" / "x")


@pytest.mark.parametrize("name", PROCEDURAL)
def test_procedural_data_are_learned(name: str, run: RunFolder) -> None:
    arguments = f"--dataset {name} {PROCEDURAL[name]} {MODEL} --train-batch-size 16 --lr 0.1"
    code, _, errors = run_stage("train", run, arguments)
    assert code == 0, errors
    first, *_, last = (load_checkpoint(run.checkpoint(s)) for s in run.checkpoint_steps())
    assert last["train_loss"] < first["test_loss"]
    content = run.read_hyperparameters()
    entry = DATASETS[name].configured({o: content[o] for o in DATASETS[name].options})
    assert content["task"]["input_shape"] == list(entry.input_shape)
    assert content["task"]["num_classes"] == entry.num_classes
    if name == "gaussian-mixture":
        assert content["task"]["train_size"] == 300


def test_every_dataset_without_files_is_run() -> None:
    assert PROCEDURAL.keys() == {entry.name for entry in DATASETS if entry.procedural}


def test_a_regression_goes_through_all_stages_without_accuracies(run: RunFolder) -> None:
    data = f"--dataset teacher-student {PROCEDURAL['teacher-student']}"
    for stage, arguments in (
        ("train", f"{data} {MODEL} --dtype float64 --probe-size 8"),
        ("extract", ""),
        ("cache", "--metrics performance,rescale"),
        ("plot", "--metrics performance"),
    ):
        code, _, errors = run_stage(stage, run, arguments)
        assert code == 0, errors
    checkpoint = load_checkpoint(run.checkpoint(run.checkpoint_steps()[-1]))
    assert "test_loss" in checkpoint
    assert not {"accuracy1", "accuracy5"} & checkpoint.keys()
    with h5py.File(run.probe) as probe:
        assert probe["targets"].dtype == np.float64
        assert probe["targets"].shape == (8, 1)
    with h5py.File(run.cache("performance")) as cache:
        assert np.isfinite(cache["empirical/test_loss"][()]).all()
        assert np.isnan(cache["empirical/accuracy1"][()]).all()
    with h5py.File(run.cache("rescale")) as cache:
        apart = np.abs(cache["empirical/fc1|classifier"][()] - cache["exact/fc1|classifier"][()])
        assert apart.max() < 1e-10
    assert run.figure("performance", "", "pdf").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--dataset teacher-student --model fc",
            "--loss ce: not for the regression of --dataset teacher-student; use --loss mse",
        ),
        ("--dataset sparse-parity --model fc --modulus 3", "--modulus: not read by --dataset"),
        ("--dataset sparse-parity", r"needs images .* inputs of shape \(40,\); use another"),
        ("--dataset imagenet", r"imagenet_raw/train: it is not there; put class folders"),
        ("--dataset tiny-imagenet", r"there is no .*tiny-imagenet-200/train; unzip http"),
    ],
)
def test_mistakes_end_in_one_line(arguments: str, message: str, run: RunFolder) -> None:
    line = mistake("train", run, f"{arguments} --data-dir {run.path.parents[1]}")
    assert re.search(message, line)


def test_laws_are_listed_without_loading_data(run: RunFolder) -> None:
    arguments = "--dataset modular-addition --modulus 5 --model logistic --list-laws"
    code, output, errors = run_stage("train", run, arguments)
    assert code == 0, errors
    assert re.search(r"translation +classifier", output)
    code, output, errors = run_stage(
        "train", run, "--dataset imagenet --model logistic --list-laws"
    )
    assert (code, errors) == (0, "")
