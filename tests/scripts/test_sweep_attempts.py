"""Of many processes that want a run one gets it; dead ones are replaced, and not for ever."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.sweeps import attempts
from scripts.sweeps.attempts import Attempt, Claim, claim, is_alive, newest, path_of
from Utils.rundir import RunFolder

TRAIN = {"train": ()}
BOTH = {"train": (), "extract": ("--probe", "none")}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def begin(run: RunFolder, stages: attempts.Stages = TRAIN, retried: int = 0) -> Claim:
    held = claim(run, stages, retried)
    assert held is not None
    return held


def last(run: RunFolder) -> Attempt:
    attempt = newest(run)
    assert attempt is not None
    return attempt


def test_one_of_many_gets_a_run(run: RunFolder) -> None:
    together = threading.Barrier(16)

    def want(_: int) -> Claim | None:
        together.wait()
        return claim(run, TRAIN)

    with ThreadPoolExecutor(16) as pool:
        held = [got for got in pool.map(want, range(16)) if got is not None]
    assert len(held) == 1
    assert [path.name for path in run.logs.iterdir()] == ["attempt-1.json"]
    assert claim(run, TRAIN) is None


def test_what_is_done_stays_done_until_more_is_wanted(run: RunFolder) -> None:
    begin(run).note(state="done", done={"train": []}, seconds={"train": 1.0})
    assert claim(run, TRAIN) is None
    held = begin(run, BOTH)
    assert held.attempt.lacks(BOTH) == ["extract"]
    held.note(state="done", done={"train": [], "extract": ["--probe", "none"]})
    assert claim(run, TRAIN) is claim(run, BOTH) is None
    other = {**BOTH, "extract": ("--probe", "logits"), "cache": ()}
    assert last(run).lacks(other) == ["extract", "cache"]


@pytest.mark.parametrize("state", ["failed", "diverged"])
def test_failures_are_left_alone_unless_they_are_retried(run: RunFolder, state: str) -> None:
    begin(run).note(state=state, error="no such number")
    assert claim(run, TRAIN) is None
    begin(run, retried=1).note(state="failed")
    assert claim(run, TRAIN, retried=1) is None  # tried again once, not for ever
    begin(run, retried=2).note(state="stopped")
    assert begin(run).attempt.number == 4


def dead_process() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_a_dead_process_of_this_machine_is_replaced_at_once(run: RunFolder) -> None:
    held = begin(run)
    born = held.attempt.process[1]
    assert is_alive(run, last(run))
    held.note(process=(os.getpid(), "long ago"))  # the number is in use again
    assert not is_alive(run, last(run))
    held.note(process=(dead_process(), born))
    assert not is_alive(run, last(run))
    assert begin(run).attempt.number == 2


def test_a_silent_process_of_another_machine_is_replaced_after_a_while(run: RunFolder) -> None:
    held = begin(run)
    held.note(place="elsewhere", process=(1, "1"))
    assert claim(run, TRAIN) is None
    silent = time.time() - attempts.SECONDS_UNTIL_STALE - 1
    os.utime(path_of(run, 1), (silent, silent))
    assert begin(run).attempt.number == 2


def test_hearts_beat(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "SECONDS_BETWEEN_BEATS", 0.01)
    with begin(run):
        os.utime(path_of(run, 1), (0, 0))
        for _ in range(500):
            time.sleep(0.01)
            if path_of(run, 1).stat().st_mtime > 0:
                break
        assert time.time() - path_of(run, 1).stat().st_mtime < 60


def test_a_process_that_was_replaced_ends(run: RunFolder) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom scripts.sweeps import attempts as a\n"
        "from Utils.rundir import RunFolder\na.SECONDS_BETWEEN_BEATS = 0.01\n"
        f"run = RunFolder(Path({str(run.path)!r}))\n"
        "with a.claim(run, {'train': ()}):\n    print(flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        path_of(run, 2).write_text("{}")
        assert process.wait(timeout=30) == 1


def test_a_run_that_kills_its_processes_fails(run: RunFolder) -> None:
    def die(step: int) -> Claim | None:
        run.checkpoint(step).parent.mkdir(parents=True, exist_ok=True)
        run.checkpoint(step).touch()
        held = claim(run, TRAIN)
        if held is not None:
            held.note(process=(dead_process(), "1"))
        return held

    claims = [die(step) for step in (0, 1, 2, 2, 2)]
    assert [held.attempt.deaths for held in claims if held] == [0, 0, 0, 1, 2]
    assert die(2) is None
    assert last(run).state == "failed"
    assert last(run).error.startswith("3 processes died on it, one after another")
    assert claim(run, TRAIN) is None
    assert begin(run, retried=last(run).number).attempt.deaths == 0


def test_a_finished_stage_is_progress_without_checkpoints(run: RunFolder) -> None:
    for _ in range(attempts.DEATHS + 1):
        begin(run).note(process=(dead_process(), "1"), seconds={"extract": 1.0})
    assert last(run).deaths == 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only /proc tells zombies")
def test_a_process_that_nobody_has_waited_for_is_dead(run: RunFolder) -> None:
    held = begin(run)
    with subprocess.Popen(["sleep", "60"]) as process:
        born = Path(f"/proc/{process.pid}/stat").read_text().split()[21]  # proc(5): starttime, 22
        held.note(process=(process.pid, born))
        assert is_alive(run, last(run))
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(run, last(run))
