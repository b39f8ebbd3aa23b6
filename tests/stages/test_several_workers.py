"""--workers of extract.py and cache.py: the same files, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import ROOT, Runs, cache_run, extract_run, flags_of, run_stage
from Utils.errors import UserError
from Utils.rundir import RunFolder

BN = "--model conv-bn --width 4 --save-freq 5"
STEPS = [0, 5, 6, 10, 12]


def files(run: RunFolder, room: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.path / room).iterdir()}


def without_features(run: RunFolder) -> dict[str, bytes]:
    """What was in the features of a run that has none any more."""
    whole = files(run, "feats")
    for step in STEPS:
        run.features(step).unlink()
    return whole


def children(pid: int) -> list[int]:
    """The worker processes of a process."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child) for child in found if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
    ]


def test_workers_make_the_same_files(own: Runs) -> None:
    run = own(BN)
    whole = without_features(run)
    code, _, errors = run_stage("extract", run, "--workers 2")
    assert (code, errors) == (0, f"extract: 5 new checkpoints of 5 extracted to {run.path}/feats\n")
    assert files(run, "feats") == whole
    metrics = "--metrics scale,rotation,network"
    cache_run(run, metrics)
    alone = files(run, "cache")
    cache_run(run, f"{metrics} --overwrite --workers 2")
    assert files(run, "cache") == alone


def test_damaged_files_are_named_as_without_workers(own: Runs) -> None:
    run = own(BN)
    run.checkpoint(5).write_bytes(b"no checkpoint")
    run.features(10).write_bytes(b"no features")
    messages = []
    for workers in (0, 1):
        with pytest.raises(UserError) as cached:
            cache_run(run, f"--metrics scale --workers {workers}")
        with pytest.raises(UserError) as extracted:
            extract_run(run, f"--probe none --overwrite --workers {workers}")
        messages.append((str(cached.value), str(extracted.value)))
        run.features(10).write_bytes(b"no features")
    assert messages[0] == messages[1]
    assert "step10.h5 is damaged" in messages[0][0]
    assert "step5.tar is truncated" in messages[0][1]


SLOW = """
import sys
import Training.extraction
from Utils import workers


def slow(function, item, outcome=workers._outcome):
    import os, signal, time
    if {dies} and item == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    if not {dies}:
        write = Training.extraction.write_hdf5
        def never_ending(path, arrays, attributes):
            def pausing():
                for number, pair in enumerate(arrays):
                    yield pair
                    if number == 3:
                        (path.parent / "begun").touch()
                        time.sleep(60)
            write(path, pausing(), attributes)
        Training.extraction.write_hdf5 = never_ending
    return outcome(function, item)


workers._outcome = slow
if __name__ == "__main__":
    import extract
    sys.argv = ["extract.py", *sys.argv[1:]]
    extract.run_stage(extract.main)
"""


def start_slow(run: RunFolder, dies: bool) -> "subprocess.Popen[str]":
    """Extraction with two workers, one of which dies at step 6, or which never end."""
    script = run.path / "slow.py"  # a file: workers import the main module, and it changes them
    script.write_text(SLOW.format(dies=dies))
    flags = ["--probe", "none", "--workers", "2", *flags_of(run)]
    return subprocess.Popen(
        [sys.executable, str(script), *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_worker_costs_one_step_which_is_named(own: Runs) -> None:
    run = own(f"{BN} --seed 1")
    extract_run(run, "--probe none --overwrite")
    whole = without_features(run)
    process = start_slow(run, dies=True)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    line = errors.splitlines()[-1]
    assert f"{run.checkpoint(6)}: the worker process that had it was killed by SIGKILL" in line
    assert line.endswith("; all 4 others are done")
    assert run.feature_steps() == [0, 5, 10, 12]
    assert extract_run(run, "--probe none") == 1
    assert files(run, "feats") == whole


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_processes(own: Runs, number: signal.Signals) -> None:
    run = own(BN)
    whole = without_features(run)
    process = start_slow(run, dies=False)
    begun, deadline = run.probe.with_name("begun"), time.monotonic() + 60
    while not begun.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = children(process.pid)
    assert len(workers) == 2
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert errors == "extract.py: interrupted; run the same command again to continue\n"
        assert set(files(run, "feats")) == {"probe.h5", "begun"}
    begun.unlink()
    assert extract_run(run) == 5
    assert files(run, "feats") == whole
