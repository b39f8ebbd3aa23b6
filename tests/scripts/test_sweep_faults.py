"""Sweeps whose runs raise, are killed, lose their machine: what is done is never done again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.runs import ROOT
from tests.scripts.sweeps import STEPS, Sweep, wait_for

NAMES = ["a", "raises", "b", "is_killed", "c", "d", "sees_the_machine_die", *"efghi"]


def test_twelve_runs_with_every_misfortune(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, NAMES)
    first = sweep.start()
    wait_for(tmp_path / "dying")
    os.killpg(first.pid, signal.SIGKILL)  # the sweep, submitit's controllers, the workers
    first.communicate()
    before = sweep.attempts()
    done = {name for name, tries in before.items() if tries[-1]["state"] == "done"}
    assert len(done) >= 2
    assert not done & {"raises", "sees_the_machine_die"}

    code, lines, errors = sweep.run()
    assert code == 1, errors
    assert lines[0].startswith(f"12 runs: {len(done)} done, 1 failed, ")
    assert lines[-1] == "12 runs: 11 done, 1 failed"
    attempts, steps = sweep.attempts(), sweep.steps()
    states = {name: tries[-1]["state"] for name, tries in attempts.items()}
    assert states == {name: "failed" if name == "raises" else "done" for name in NAMES}
    assert "in on_step" in attempts["raises"][0]["traceback"]
    for name in done:
        assert attempts[name] == before[name]

    # Every step is done once, but for the one at which a process died, and one whose checkpoint
    # was not written yet. Two died with the machine, and one alone.
    assert steps["raises"] == 3
    interrupted = {name for name, tries in attempts.items() if len(tries) > 1}
    assert {"is_killed", "sees_the_machine_die"} <= interrupted
    assert len(interrupted) <= 3
    for name in set(NAMES) - {"raises"}:
        assert STEPS <= steps[name] <= STEPS + 2 * (name in interrupted), name

    code, lines, _ = sweep.run("status")
    assert [line.split(None, 1)[1] for line in lines if "raises" in line] == [
        "failed    train: ArithmeticError: no such number"
    ]
    code, lines, _ = sweep.run()
    assert (code, lines) == (1, ["12 runs: 11 done, 1 failed"] * 2)
    assert sweep.attempts() == attempts


def test_ctrl_c_saves_what_is_at_work_and_failures_are_retried_on_demand(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["raises", "slow1", "slow2"])
    process = sweep.start("--jobs", "1")
    wait_for(tmp_path / "slow1")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "sweep: stopped; the same command continues\n")
    (attempt,), steps = sweep.attempts()["slow1"], sweep.steps()
    assert attempt["state"] == "stopped"
    assert 0 < attempt["ended_at"] == steps["slow1"] < STEPS
    assert "slow2" not in steps

    (tmp_path / "mended").touch()
    code, lines, errors = sweep.run("--jobs", "1", "--retry-failed")
    assert (code, lines[-1]) == (0, "3 runs: 3 done"), errors
    steps = sweep.steps()
    assert (steps["slow1"], steps["slow2"]) == (STEPS, STEPS)
    assert STEPS <= steps["raises"] <= STEPS + 2
    assert [len(sweep.attempts()[name]) for name in ("raises", "slow1", "slow2")] == [2, 2, 1]


def test_runs_that_share_their_steps_share_no_faults(tmp_path: Path) -> None:
    """Three seeds and a learning rate that diverges, together; networks that differ, alone."""
    flags = f"--save-dir {tmp_path} --experiment e --epochs 1 --train-batch-size 240 --model fc"
    grid = "--width 4 --seed 1..2 --lr 0.1 1e100 --jobs 1 --together 8 --stages train,extract"
    command = [sys.executable, "-m", "scripts.sweep", *flags.split(), *grid.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1]) == (0, "4 runs: 2 done, 2 diverged"), done.stderr
    ended = [line for line in lines if ": diverged, the loss of step " in line]
    assert all(line.startswith("seed=") and ",lr=1e+100-" in line for line in ended)
    assert len(ended) == 2
    runs = [*(tmp_path / "e").glob("seed=?,lr=0.1-*")]
    assert all((run / "feats" / "step6.h5").exists() for run in runs)
    (log,) = (tmp_path / "e" / ".sweep").glob("*/*_log.out")
    assert log.read_text().count("training together: ") == 1
