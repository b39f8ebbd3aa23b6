"""The same training on one process, on several, and on the cores of an XLA device."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from Models.symmetry import Laws
from tests.runs import ROOT, flags_of, run_stage
from tests.training.helpers import (
    ALONE,
    Train,
    assert_same_training,
    checkpoint_of,
    journal_of,
    torchrun,
)
from Training.backends.normalization import GlobalBatchNorm, moments_of_batch
from Training.backends.processes import has_unused_parameters
from Utils.rundir import RunFolder

FLAGS = (
    "--model conv-bn --width 4 --epochs 3 --lr 0.1 --wd 1e-3 --lr-schedule cosine "
    "--optimizer momentum --momentum 0.9 --nesterov --clip-norm 1 --dtype float64 --observe-freq 6"
)
"""A run of 33 or 36 steps of 128 examples; the last batch of an epoch has 29."""


def _on_cores(run: RunFolder, arguments: str, cores: int) -> tuple[str, list[list[int]]]:
    """Run train.py --tpu on virtual cores; returns what it said, and what XLA did."""
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.training.watched",
            *arguments.split(),
            "--tpu",
            *flags_of(run),
        ],
        cwd=ROOT,
        env=ALONE | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(cores)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stderr, json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two processes with 64 examples each."""
    run = RunFolder(tmp_path_factory.mktemp("two") / "e" / "x")
    process = torchrun(run, f"{FLAGS} --train-batch-size 64", 2)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert errors.count("conv-bn on 2 processes on cpu") == 1, "one process talks"
    assert "36 steps of 128 examples" in errors
    return run


def test_two_processes_train_as_one(two: RunFolder, trains: Train, run: RunFolder) -> None:
    trains(f"{FLAGS} --train-batch-size 128")
    assert_same_training(run, two)
    content = two.read_hyperparameters()
    assert content["task"]["replicas"] == 2
    assert content["task"]["phases"][0]["batch_size"] == 128
    assert len(checkpoint_of(two, 36)["rng_state"]) == 2


def test_two_processes_have_the_scales_of_one(
    trains: Train, run: RunFolder, tmp_path: Path
) -> None:
    """Learning rates of IP-LLR's first step, of its later steps, and their calibration."""
    flags = "--model fc --depth 3 --width 16 --param ipllr --calibrate-width 32 --lr 0.01 "
    flags += "--dtype float64 --epochs 1 --drop-last --save-at 1"
    there = RunFolder(tmp_path / "two" / "x")
    process = torchrun(there, f"{flags} --train-batch-size 64", 2)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert errors.count("parametrization ipllr:") == 1
    trains(f"{flags} --train-batch-size 128")
    assert run.checkpoint_steps() == there.checkpoint_steps()
    for step in run.checkpoint_steps():
        a, b = (checkpoint_of(r, step)["model_state_dict"] for r in (run, there))
        for name, tensor in a.items():
            torch.testing.assert_close(b[name], tensor, rtol=0, atol=1e-11)
    rates = [r.read_hyperparameters()["task"]["parametrization"] for r in (run, there)]
    assert rates[0] == rates[1]


def test_a_killed_process_is_started_again_and_nothing_is_lost(
    two: RunFolder, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    process = torchrun(run, f"{FLAGS} --train-batch-size 64 --save-freq 1", 2, restarts=5)
    deadline = time.monotonic() + 200
    while len(run.checkpoint_steps()) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    workers = [int(line.split()[0]) for line in listed.stdout.splitlines() if "train.py" in line]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert re.search(r"continuing after step \d+/36", errors)
    last, undisturbed = (checkpoint_of(r, 36)["model_state_dict"] for r in (run, two))
    for name, tensor in undisturbed.items():
        torch.testing.assert_close(last[name], tensor, rtol=0, atol=1e-11)
    steps = [line["step"] for line in journal_of(run)]
    assert steps == [line["step"] for line in journal_of(two)] == sorted(set(steps))


def test_cores_train_as_one_process_without_recompiling(
    trains: Train, run: RunFolder, tmp_path: Path
) -> None:
    trains(f"{FLAGS} --train-batch-size 128 --drop-last")
    there = RunFolder(tmp_path / "cores" / "x")
    said, seen = _on_cores(there, f"{FLAGS} --train-batch-size 32", cores=4)
    assert "conv-bn on 4 CPU cores" in said
    assert "33 steps of 128 examples" in said
    assert_same_training(run, there)
    compilations = {step: count for step, count, _ in seen}
    transfers = {step: count for step, _, count in seen}
    assert compilations[3] == compilations[32] > 0, "an epoch's end and the lr change no shape"
    silent = [s for s in range(3, 32) if s % 6 and s % 11]  # no observation after these steps
    waits = {s for s in silent if transfers[s] != transfers[s - 1] and s - 1 in silent}
    assert not waits, f"the host waits for the device within steps {waits}"


def test_cores_in_bfloat16_and_fewer_of_them(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    flags = "--model fc --optimizer adamw --precision bf16 --epochs 3 --workers 2"
    said, seen = _on_cores(run, flags, cores=4)
    assert "fc on 2 CPU cores" in said
    assert seen[10][1] == seen[-1][1]
    last = checkpoint_of(run, run.checkpoint_steps()[-1])
    assert all(t.dtype == torch.float32 for t in last["model_state_dict"].values())
    assert last["accuracy1"] > 60
    laws = Laws.load(run.symmetries)
    measured, size = laws.measure_with_sizes(last["model_state_dict"].__getitem__)
    followed = last["observer_state_dict"]["charge"].numpy()
    assert (abs(followed - measured) <= 1e-5 * size).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tpu", "--tpu: there is no TPU in this machine; run it there with: "
         "scripts/run_on_tpu.sh NAME --zone ZONE -- python train.py --tpu "),
        ("--tpu my-tpu --model fc", "--tpu my-tpu: there is no TPU in this machine; run it there "
         "with: scripts/run_on_tpu.sh my-tpu --zone ZONE -- python train.py --tpu my-tpu "),
        ("--tpu --compile", "--tpu compiles every step already; leave out --compile"),
        ("--tpu --device cpu", "--tpu trains on TPU cores; leave out --device cpu"),
        ("--tpu --workers 0", "no core is left to train on; use at least 1"),
        ("--precision bf16 --dtype float64", "choose one of them"),
    ],
)  # fmt: skip
def test_mistakes(flags: str, message: str, tmp_path: Path) -> None:
    code, _, errors = run_stage("train", RunFolder(tmp_path / "e" / "x"), flags)
    assert code == 2
    assert message in errors
    assert len(errors.splitlines()) == 1


ON_A_TPU = """
import os
os.environ["PJRT_DEVICE"] = "TPU"
from torch_xla._internal import tpu
tpu.get_tpu_env = lambda: {"NODE_ID": "my-tpu"}
tpu.num_available_devices = lambda: 8
tpu.num_logical_cores_per_chip = lambda: 2
tpu.num_tpu_workers = lambda: 1
from Training.backends.cores import _check_place, _limit
from Utils.errors import UserError
for name in ("local", "my-tpu", "other"):
    try:
        print(_check_place(name))
    except UserError as error:
        print(error)
for most in (8, 4, 3):
    try:
        print(_limit(most), os.environ.get("TPU_VISIBLE_CHIPS"))
    except UserError as error:
        print(error)
"""
"""What the rules for names and cores say on a VM that torch_xla takes for a TPU's."""


def test_names_and_numbers_of_cores_on_a_tpu() -> None:
    result = subprocess.run(
        [sys.executable, "-c", ON_A_TPU], cwd=ROOT, env=ALONE, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    here, named, other, all_cores, half, odd = result.stdout.splitlines()
    assert here == named == "None"
    assert other.startswith("--tpu other: this is the TPU VM my-tpu; run it there with: scripts/")
    assert (all_cores, half) == ("None None", "None 0,1")
    assert odd.startswith("--workers 3: a training can have 1, 2 or 4 chips of one TPU host")


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}],
    ids=str,
)
def test_global_normalisation_is_torchs(kind: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    shape = {nn.BatchNorm1d: (6, 3), nn.BatchNorm2d: (6, 3, 4, 5), nn.BatchNorm3d: (2, 3, 4, 5, 2)}
    original = kind(3, **options).double()
    for tensor in original.parameters():
        nn.init.normal_(tensor)
    ours = GlobalBatchNorm(copy.deepcopy(original), moments_of_batch)
    assert ours.state_dict().keys() == original.state_dict().keys()
    for _ in range(3):
        x = torch.randn(shape[kind], dtype=torch.float64) * 3 + 100
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        weights = torch.randn_like(x)
        (original(a) * weights).sum().backward()
        (ours(b) * weights).sum().backward()
        torch.testing.assert_close(ours(b), original(a), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.state_dict(), original.state_dict())
    x = torch.randn(shape[kind], dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(x), original.eval()(x))


def test_parameters_that_no_loss_depends_on_are_seen() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    assert has_unused_parameters(Half(), torch.zeros(2, 3))
    assert not has_unused_parameters(nn.Linear(3, 2), torch.zeros(2, 3))
