"""A sweep on a real Slurm: packed jobs, one of which is preempted, and one out of time."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.sweeps.slurm import slurm_options
from tests.scripts.slurm import Slurm, why_not
from tests.scripts.sweeps import STEPS, Sweep
from Utils.errors import UserError


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("90", 90), ("2:00:00", 120), ("1-12:00:00", 36 * 60), ("1-12:00", 36 * 60), ("0:00:10", 1)],
)
def test_times_are_those_of_sbatch(time: str, minutes: int) -> None:
    options = slurm_options(f"partition=gpu,time={time},gpus-per-node=2")
    assert options == {"partition": "gpu", "time": minutes, "gpus_per_node": 2}


@pytest.mark.parametrize("text", ["partition", "time=", "time=soon", "time=0", "partition=a"])
def test_options_that_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--slurm"):
        slurm_options(text)


def wait_until(condition: Callable[[], object], slurm: Slurm) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end, slurm.run("scontrol", "show", "jobs")
        # A requeued job has to wait for two minutes, unless it is told otherwise.
        for job in slurm.run("squeue", "--noheader", "--array", "--format=%A %r").splitlines():
            if job.endswith("BeginTime"):
                slurm.run("scontrol", "update", f"jobid={job.split()[0]}", "starttime=now")
        time.sleep(0.2)


@pytest.mark.slurm
def test_an_array_with_a_preempted_and_a_requeued_job(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    names = ["a", "slow1", "b", "slow2"]
    sweep = Sweep(tmp_path, names)
    options = ["--slurm", "partition=low,time=10", "--pack", "2"]
    with Slurm(tmp_path / "slurm") as slurm:
        sweep.environment = slurm.environment
        code, lines, errors = sweep.run(*options)
        assert (code, lines[0]) == (0, "4 runs: 4 missing"), errors
        assert lines[1].startswith("4 runs in 2 jobs of Slurm's ")
        code, lines, errors = sweep.run(*options)  # while they wait, or work
        assert lines[1] == "nothing to submit; 4 are in the queue already", errors
        held = json.loads((tmp_path / "e" / ".sweep" / "slurm.json").read_text())
        assert [len(expids) for expids in held.values()] == [2, 2]

        first, second = held
        wait_until((tmp_path / "slow1").exists, slurm)
        slurm.run("scancel", "--signal=USR2", first)  # as Slurm does before the time is over
        wait_until((tmp_path / "slow2").exists, slurm)
        slurm.run("sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=true")
        wait_until(lambda: not slurm.run("squeue", "--noheader"), slurm)
        assert "Requeue=1 Restarts=1" in slurm.run("scontrol", "show", "job", first)
        assert "Restarts=0" not in slurm.run("scontrol", "show", "job", second)

        code, lines, _ = sweep.run("status")
        assert (code, lines[-1]) == (0, "4 runs: 4 done")
        code, lines, errors = sweep.run(*options)
        assert (code, lines[-1]) == (0, "nothing to submit"), errors
    assert sweep.steps() == dict.fromkeys(names, STEPS)  # saved when told to end: none is lost
    attempts = sweep.attempts()
    assert [len(attempts[name]) for name in ("a", "b")] == [1, 1]
    for name in ("slow1", "slow2"):
        states = [attempt["state"] for attempt in attempts[name]]
        assert states == ["stopped"] * (len(states) - 1) + ["done"]
        assert len(states) in {2, 3}
