"""The run folder: names of its files, and one process per stage."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import ROOT
from Utils.errors import UserError
from Utils.rundir import RunFolder


def test_files_are_where_the_contract_says(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    paths = {
        "hyperparameters.json": run.hyperparameters,
        "symmetries.h5": run.symmetries,
        "ckpt/step30.tar": run.checkpoint(30),
        "feats/step30.h5": run.features(30),
        "feats/probe.h5": run.probe,
        "cache/scale-x.h5": run.cache("scale", "-x"),
        "img/scale-x.pdf": run.figure("scale", "-x", "pdf"),
        "logs": run.logs,
    }
    assert {name: tmp_path / name for name in paths} == paths


def test_steps_are_those_of_whole_files_in_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.checkpoint_steps() == run.feature_steps() == []
    for folder, extension in (("ckpt", "tar"), ("feats", "h5")):
        (tmp_path / folder).mkdir()
        for name in ("step10", "step9", "step0", "step7.tar.tmp", "step-1", "step", "xstep1"):
            (tmp_path / folder / f"{name}.{extension}").touch()
        (tmp_path / folder / f"step8.{extension}.tmp").touch()
        (tmp_path / folder / "probe.h5").touch()
    assert run.checkpoint_steps() == run.feature_steps() == [0, 9, 10]


def test_an_expid_that_contains_step(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "onestep" / "step5.tar")
    run.checkpoint(3).parent.mkdir(parents=True)
    run.checkpoint(3).touch()
    assert run.checkpoint_steps() == [3]


def test_the_configuration_comes_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    with pytest.raises(UserError, match=r"hyperparameters\.json does not exist; run train\.py"):
        run.read_hyperparameters()
    run.write_hyperparameters({"seed": 1, "lr": 0.1})
    assert run.read_hyperparameters() == {"lr": 0.1, "seed": 1}


@pytest.mark.parametrize("text", ["[1]", "{}", "null", '{"seed"', "\xff"])
def test_a_damaged_configuration(tmp_path: Path, text: str) -> None:
    run = RunFolder(tmp_path)
    run.hyperparameters.write_text(text, encoding="latin1")
    with pytest.raises(UserError, match=r"hyperparameters\.json is .*--overwrite") as caught:
        run.read_hyperparameters()
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- locks

HOLD = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from Utils.rundir import RunFolder\n"
    "with RunFolder(Path(sys.argv[1])).lock('train'):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    command = [sys.executable, "-c", HOLD, str(run.path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError) as caught, run.lock("train"):
            pass
        holder = f"pid {process.pid} on {socket.gethostname()}"
        expected = f"{run.path}: train is already running ({holder}); wait for it or stop it"
        assert str(caught.value) == expected
        with run.lock("extract"):
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with run.lock("train"):
                return
        except UserError:
            time.sleep(0.01)
    pytest.fail("a killed process still holds its lock")


def test_a_lock_is_let_go_even_after_an_error(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(ZeroDivisionError), run.lock("cache"):
        raise ZeroDivisionError
    with run.lock("cache"):
        assert f"pid {os.getpid()} " in (run.logs / "cache.lock").read_text()


def test_errors_of_the_work_are_not_blamed_on_the_lock(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine") as caught, RunFolder(tmp_path).lock("cache"):
        raise OSError("mine")
    assert type(caught.value) is OSError


def test_a_lock_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    with pytest.raises(UserError, match=r"cannot access .*logs"), RunFolder(tmp_path).lock("cache"):
        pass
