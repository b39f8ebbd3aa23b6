"""train.py as a process: what it prints, its exit codes, signals, other processes."""

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from Training.checkpoints import load_checkpoint
from Utils.errors import UserError
from Utils.rundir import RunFolder

ROOT = Path(__file__).parents[2]
LONG = "--model logistic --epochs 100000 --experiment e --expid x --save-freq 50"


def command(arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *arguments.split()]


def run_train(arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(arguments), cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def start_long_run(folder: Path) -> tuple["subprocess.Popen[str]", RunFolder]:
    """A run that goes on for minutes, once it has begun."""
    process = subprocess.Popen(command(LONG), cwd=folder, stderr=subprocess.PIPE, text=True)
    run = RunFolder(folder / "results" / "e" / "x")
    deadline = time.monotonic() + 60
    while not any(run.checkpoint_steps()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, run


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ("--help", 0, r"fc-bn +fc with batch normalisation"),
        ("--lr 0 --experiment e --expid x", 2, r"^train\.py: error: --lr 0\S*: input should be"),
        ("--experiment e", 2, r"^train\.py: error: --expid is missing"),
    ],
)
def test_help_and_usage_errors_do_not_wait_for_torch(
    arguments: str, code: int, text: str, tmp_path: Path
) -> None:
    program = (
        "import sys, runpy\n"
        f"sys.argv = {['train.py', *arguments.split()]}\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    assert not {'torch', 'torchvision', 'sklearn', 'scipy'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    output = done.stdout if code == 0 else done.stderr
    assert re.search(text, output)
    assert code == 0 or output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_laws_of_a_users_model_are_printed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(input_shape, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(),\n"
        "                         nn.Linear(7, num_classes))\n"
    )
    done = run_train("--list-laws --model mine.py:net", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"rescale +1\|3 +7 ", done.stdout)
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.py", "__pycache__"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_says_how_to_continue(
    number: signal.Signals, tmp_path: Path
) -> None:
    process, run = start_long_run(tmp_path)
    process.send_signal(number)
    messages = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    stopped = re.search(rf"stopped by {number.name} after step (\d+)", messages)
    assert stopped, messages
    step = int(stopped[1])
    assert run.checkpoint_steps()[-1] == step
    assert load_checkpoint(run.checkpoint(step))["step"] == step
    assert f"stopped by {number.name}" in (run.logs / "run.log").read_text()


def test_a_second_process_is_refused_with_the_firsts_pid_and_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, _ = start_long_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *LONG.split()])
    holder = re.escape(f"(pid {process.pid} on {socket.gethostname()})")
    try:
        with pytest.raises(UserError, match=f"train is already running {holder}"):
            train.main()
    finally:
        process.kill()
        process.communicate()


def test_a_file_that_cannot_grow_ends_the_run_in_one_line(tmp_path: Path) -> None:
    program = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        f"sys.argv = {['train.py', *LONG.replace('logistic', 'conv').split()]}\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.search(r"error: cannot access .*step0\.tar: the file-size limit was reached", last)
    assert "Traceback" not in done.stderr
