"""Every dataset that needs no download, and image folders, through the stages as a user types."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest

from Data import DATASETS
from Metrics.figures import PlotConfig
from Metrics.figures.run import plot_run
from tests.data.files import write_imagenet
from tests.runs import ROOT, cache_run, extract_run, flags_of, mistake, run_stage
from tests.training.helpers import differences
from Training import TrainConfig
from Training.checkpoints import load_checkpoint
from Training.run import list_laws, train
from Utils.cli import parse
from Utils.errors import UserError
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


@pytest.mark.parametrize("name", sorted(PROCEDURAL.keys() - {"teacher-student"}))
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
    code, _, errors = run_stage("train", run, f"{data} {MODEL} --dtype float64 --probe-size 8")
    assert code == 0, errors
    extract_run(run)
    cache_run(run, "--metrics performance,rescale")
    plot = parse(PlotConfig, ["--metrics", "performance", *flags_of(run)])
    assert any("performance.pdf" in line for line in plot_run(plot))
    first, *_, checkpoint = (load_checkpoint(run.checkpoint(s)) for s in run.checkpoint_steps())
    assert checkpoint["test_loss"] < first["test_loss"]
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--dataset teacher-student --model fc",
            "--loss ce: not for the regression of --dataset teacher-student; use --loss mse",
        ),
        ("--dataset tiny-imagenet", "there is no .*tiny-imagenet-200/train; unzip http"),
    ],
)
def test_mistakes_end_in_one_line(arguments: str, message: str, run: RunFolder) -> None:
    line = mistake("train", run, f"{arguments} --data-dir {run.path.parents[1]}")
    assert re.search(message, line)


def test_models_for_images_refuse_other_data() -> None:
    config = parse(TrainConfig, ["--dataset", "sparse-parity", "--model", "conv-bn"])
    with pytest.raises(
        UserError, match="reads images of at least 1x1 pixels, not inputs of shape 40"
    ):
        list_laws(config)


def test_laws_are_listed_without_loading_data(tmp_path: Path) -> None:
    where = f"--model logistic --data-dir {tmp_path}"
    for data in ("modular-addition --modulus 5", "imagenet --classes 2"):
        config = parse(TrainConfig, f"--dataset {data} {where}".split())
        assert re.search(r"translation +classifier", list_laws(config))


STREAMED = (
    "--dataset imagenet --classes 3 --model logistic --epochs 3 --train-batch-size 2 --save-freq 1"
)


def stop_streamed_run(run: RunFolder, arguments: str, number: signal.Signals) -> None:
    """Start or continue a run, and send all its processes a signal when it has done a step."""
    before = run.checkpoint_steps()
    command = [sys.executable, str(ROOT / "train.py"), *arguments.split(), *flags_of(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(run.checkpoint_steps()) < len(before) + 2 and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors


def test_a_streamed_run_that_was_stopped_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "imagenet_raw")
    flags = f"{STREAMED} --data-dir {tmp_path}"
    whole, stopped = RunFolder(tmp_path / "e" / "whole"), RunFolder(tmp_path / "e" / "stopped")
    stop_streamed_run(stopped, f"{flags} --workers 2", signal.SIGTERM)
    stop_streamed_run(stopped, f"{flags} --workers 1", signal.SIGINT)
    assert 1 < stopped.checkpoint_steps()[-1] < 18
    for run in (whole, stopped):
        argv = [*flags.split(), *flags_of(run), "--workers", "0"]
        assert train(parse(TrainConfig, argv), nullcontext(run)) == 0
    for step in (1, 9, 18):
        one, other = (load_checkpoint(run.checkpoint(step)) for run in (whole, stopped))
        assert differences(one["model_state_dict"], other["model_state_dict"]) == []
        assert differences(one["data_state"], other["data_state"]) == []
        assert one.get("test_loss") == other.get("test_loss")


def test_workers_end_with_a_run_that_fails(run: RunFolder) -> None:
    folder = run.path.parents[1]
    write_imagenet(folder / "imagenet_raw")
    flags = f"{STREAMED} --data-dir {folder} --workers 1 --lr 1e38 --observe-freq 1"
    code, _, errors = run_stage("train", run, flags)
    assert (code, "Traceback" in errors) == (2, False), errors
    assert "; lower --lr" in errors.splitlines()[-1]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum --momentum 0.9 --nesterov"])
def test_laws_of_a_run_whose_vectors_do_not_decay_are_exact(run: RunFolder, optimizer: str) -> None:
    flags = f"--model conv-bn --width 4 --epochs 2 --lr 0.05 --optimizer {optimizer}"
    decay = "--wd 0.1 --wd-on matrices --dtype float64"
    code, _, errors = run_stage("train", run, f"{flags} {decay}")
    assert code == 0, errors
    assert run.read_hyperparameters()["wd_on"] == "matrices"
    extract_run(run)
    cache_run(run, "--metrics scale,rescale,translation,budget")
    for metric in ("scale", "rescale", "translation"):
        with h5py.File(run.cache(metric)) as cache:
            for layer, measured in cache["empirical"].items():
                apart = np.abs(cache[f"exact/{layer}"][()] - measured[()])
                assert (apart <= 1e-12 * cache[f"size/{layer}"][()]).all(), layer
                assert cache[f"gate/{layer}"][()].all()
    with h5py.File(run.cache("budget")) as cache:
        layer = next(name for name in cache["decay"] if name.startswith("rescale"))
        assert (np.abs(cache[f"decay/{layer}"][-1]) > 0.01 * cache[f"size/{layer}"][-1]).all()
