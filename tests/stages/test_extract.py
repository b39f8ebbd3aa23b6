"""extract.py as a process: other processes, kills, full disks, what it prints."""

import os
import socket
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.runs import (
    TINY,
    Runs,
    cache_run,
    extract_run,
    flags_of,
    mistake,
    run_code,
    run_stage,
    start_stage,
)
from Utils.errors import UserError
from Utils.rundir import RunFolder

BN = "--model conv-bn --width 4 --save-freq 5"
STEPS = [0, 5, 6, 10, 12]


def features(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.probe.parent.iterdir()}


def test_it_says_what_it_did(own: Runs) -> None:
    run = own(BN)
    run.features(6).unlink()
    code, output, errors = run_stage("extract", run)
    line = f"extract: 1 new checkpoints of 5 extracted to {run.path}/feats\n"
    assert (code, output, errors) == (0, "", line)
    assert line.removeprefix("extract: ") in (run.logs / "run.log").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--prob logits", "unknown flag '--prob'; did you mean '--probe'? "),
        ("--probe everything", "--probe"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path: Path, flags: str, message: str) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    assert message in mistake("extract", run, flags)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    message = f"{run.hyperparameters} does not exist; run train.py for this run first"
    assert mistake("extract", run) == message
    assert not list(tmp_path.iterdir())


def test_a_full_disk_loses_nothing(own: Runs) -> None:
    run = own(BN)
    whole = features(run)
    run.features(6).unlink()
    message = mistake("extract", run, largest_file=len(whole["step6.h5"]) - 1)
    assert message.startswith(f"cannot access {run.features(6)}: the file-size limit was reached; ")
    assert features(run) == {k: v for k, v in whole.items() if k != "step6.h5"}
    assert extract_run(run) == 1
    assert features(run) == whole


def test_a_disk_without_any_room(own: Runs) -> None:
    run = own(BN)
    assert "extract.lock: the file-size limit" in mistake("extract", run, largest_file=0)


def test_a_file_where_a_folder_should_be(own: Runs) -> None:
    run = own(BN)
    run.probe.parent.rename(run.path / "away")
    run.probe.parent.touch()
    with pytest.raises(UserError, match=r"step0\.h5: a part of this path is a file"):
        extract_run(run, "--probe none")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(own: Runs) -> None:
    run = own(BN)
    run.features(6).unlink()
    run.probe.parent.chmod(0o500)
    with pytest.raises(UserError, match=r"step6\.h5.*: permission denied"):
        extract_run(run)


def test_a_killed_extraction_is_continued(own: Runs) -> None:
    run = own(BN)
    whole = features(run)
    for step in STEPS:
        run.features(step).unlink()
    code = (
        "import os, signal, sys\n"
        "replace = os.replace\n"
        "def dying(source, target):\n"
        "    if str(target).endswith('step6.h5'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(source, target)\n"
        "os.replace = dying\n"
        f"sys.argv = {['extract.py', *flags_of(run)]}\n"
        "import extract\n"
        "extract.main()\n"
    )
    assert run_code(code) == -9
    assert run.feature_steps() == [0, 5]
    assert "step6.h5.tmp" in features(run)
    assert extract_run(run) == 3
    assert features(run) == whole


def test_a_second_process_is_refused_with_the_firsts_pid_and_host(own: Runs) -> None:
    run = own(BN)
    with run.lock("extract"):
        message = mistake("extract", run)
    holder = f"pid {os.getpid()} on {socket.gethostname()}"
    assert message == f"{run.path}: extract is already running ({holder}); wait for it or stop it"


def test_extracting_and_caching_while_training_goes_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    training = start_stage("train", run, f"{TINY} --model logistic --epochs 6 --save-freq 1")
    passes, deadline = 0, time.monotonic() + 60
    while training.poll() is None:
        assert time.monotonic() < deadline
        if run.checkpoint_steps():
            extract_run(run)
            cache_run(run)
            passes += 1
        time.sleep(0.02)
    _, errors = training.communicate()
    assert (training.returncode, passes > 1) == (0, True), errors
    extract_run(run)
    cache_run(run)
    assert run.feature_steps() == run.checkpoint_steps() == list(range(37))
    with h5py.File(run.cache("translation")) as cache:
        assert cache["steps"][()].tolist() == list(range(37))
        sums = cache["empirical/classifier.weight"][()]
    for step in (1, 19, 36):
        content = torch.load(run.checkpoint(step), weights_only=True)
        weight = content["model_state_dict"]["classifier.weight"]
        with h5py.File(run.features(step)) as file:
            assert np.array_equal(file["params/classifier.weight"][()], weight.numpy())
        np.testing.assert_allclose(sums[step], weight.double().sum(0), rtol=1e-12, atol=1e-14)
