"""Stages killed at random moments: the same command finishes, and nothing tells of the kills.

    KILLS=20 python -m pytest tests/stages/test_kills.py

kills each kind of process that often; without the variable, once.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.clouds import Cloud
from tests.runs import ROOT, flags_of, train_run
from tests.training.helpers import differences, journal_of
from Training.checkpoints import load_checkpoint
from Utils.rundir import RunFolder

KILLS = int(os.environ.get("KILLS", "1"))

FLAGS = (
    "--model conv-bn --width 8 --epochs 10 --train-batch-size 120 --observe-freq 4 --save-freq 3 "
    "--optimizer momentum --momentum 0.9 --dtype float64"
)
"""A run of 120 steps with 47 checkpoints."""

LAST = 120

Progress = Callable[[], int]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run, its features and caches, as undisturbed commands make them."""
    run = train_run(tmp_path_factory.mktemp("whole") / "e" / "x", FLAGS)
    for stage in ("extract", "cache"):
        finish(command(stage, flags_of(run)))
    return run


def command(stage: str, flags: list[str], processes: int = 1) -> list[str]:
    launcher = f"-m torch.distributed.run --standalone --nproc-per-node={processes}".split()
    return [sys.executable, *(launcher if processes > 1 else []), str(ROOT / f"{stage}.py"), *flags]


def finish(arguments: list[str]) -> None:
    """Run a command to its end, which is a good one."""
    result = subprocess.run(
        arguments, env=_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def kill_and_finish(arguments: list[str], progress: Progress, most: int, seed: int) -> int:
    """Start a command again and again, killed after it got some way; returns how often it was.

    Args:
        arguments: the command.
        progress: how far it is.
        most: it is killed when it has got on by a random number up to this, and a moment later.
        seed: of the random numbers.
    """
    draw, kills = random.Random(seed), 0
    while kills < KILLS:
        process = subprocess.Popen(
            arguments,
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        target = progress() + draw.randint(1, most)
        while process.poll() is None and progress() < target:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)
        if process.poll() is not None:
            break
        for pid in family(process.pid):
            with suppress(ProcessLookupError):  # its parent's end may have been its own
                os.kill(pid, signal.SIGKILL)
        process.wait()
        kills += 1
    finish(arguments)
    print(f"{kills} kills")
    return kills


def family(pid: int) -> list[int]:
    """A process and all that it has started, the eldest first."""
    command = ["ps", "-o", "pid=", "--ppid", str(pid)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return [pid, *(member for child in listed for member in family(int(child)))]


def copy_files(source: RunFolder, target: RunFolder, *patterns: str) -> None:
    for path in (path for pattern in patterns for path in source.path.glob(pattern)):
        copied = target.path / path.relative_to(source.path)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())


def assert_same_files(run: RunFolder, whole: RunFolder, pattern: str) -> None:
    files = {path.relative_to(whole.path) for path in whole.path.glob(pattern)}
    assert {path.relative_to(run.path) for path in run.path.glob(pattern)} == files
    for name in files:
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def assert_same_training(run: RunFolder, whole: RunFolder) -> None:
    assert run.checkpoint_steps() == whole.checkpoint_steps()
    for step in whole.checkpoint_steps():
        found, expected = (load_checkpoint(r.checkpoint(step)) for r in (run, whole))
        assert differences(found, expected) == [], f"step {step}"
    assert journal_of(run) == journal_of(whole)


def test_training(whole: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    arguments = command("train", [*FLAGS.split(), *flags_of(run)])
    assert kill_and_finish(arguments, lambda: len(run.checkpoint_steps()), 47 // KILLS, 0)
    assert_same_training(run, whole)


def test_training_on_two_processes(whole: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    flags = FLAGS.replace("--train-batch-size 120", "--train-batch-size 60")
    arguments = command("train", [*flags.split(), *flags_of(run)], processes=2)
    assert kill_and_finish(arguments, lambda: len(run.checkpoint_steps()), 47 // KILLS, 1)
    assert run.checkpoint_steps() == whole.checkpoint_steps()
    states = [load_checkpoint(r.checkpoint(LAST))["model_state_dict"] for r in (run, whole)]
    for name, tensor in states[1].items():
        torch.testing.assert_close(states[0][name], tensor, rtol=0, atol=1e-9)
    steps = [line["step"] for line in journal_of(run)]
    assert steps == [line["step"] for line in journal_of(whole)]


def test_training_into_a_bucket(whole: RunFolder, cloud: Cloud, tmp_path: Path) -> None:
    where = ["--save-dir", cloud.save_dir, "--experiment", "e", "--expid", "x"]

    def objects() -> int:
        return len(cloud.names("some/prefix/e/x/ckpt"))

    arguments = command("train", [*FLAGS.split(), *where])
    assert kill_and_finish(arguments, objects, 47 // KILLS, 2)
    run = RunFolder(tmp_path / "downloaded")
    for name in cloud.names("some/prefix/e/x/"):
        path = run.path / name.removeprefix("some/prefix/e/x/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cloud.read(name))
    assert_same_training(run, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_extraction(workers: int, whole: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    copy_files(whole, run, "*.*", "ckpt/*", "feats/probe.h5")
    arguments = command("extract", [*flags_of(run), "--workers", str(workers)])
    assert kill_and_finish(arguments, lambda: len(run.feature_steps()), 47 // KILLS, 3 + workers)
    assert_same_files(run, whole, "feats/*")


@pytest.mark.parametrize("workers", [0, 2])
def test_caching(workers: int, whole: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    copy_files(whole, run, "*.*", "feats/*")
    arguments = command("cache", [*flags_of(run), "--workers", str(workers)])

    def files() -> int:  # they come all at once, at the end; temporary ones count
        return len(list((run.path / "cache").glob("*")))

    assert kill_and_finish(arguments, files, 2, 5 + workers)
    assert_same_files(run, whole, "cache/*")
