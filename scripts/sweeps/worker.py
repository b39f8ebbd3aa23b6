"""A process of a sweep: takes the runs that nobody works on, one after another.

Runs share the process, because starting Python and torch takes longer than a small run. One that
raises leaves its traceback in its folder, and the next one begins; one that takes its process
with it costs that process, and the sweep starts another.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from scripts.sweeps.attempts import Claim, State, claim, newest_step
from scripts.sweeps.manifest import Run
from scripts.sweeps.stages import RUN_STAGE, Experiment, Stopped
from Training.config import TrainConfig
from Utils.errors import Diverged, UserError
from Utils.rundir import RunFolder


def work(
    experiment: Experiment,
    runs: Sequence[Run],
    environment: Mapping[str, str | None],
    stop: Path | None = None,
) -> int:
    """Do what is missing, and end early if a signal says so; runs continue later.

    Args:
        experiment: what they share.
        runs: the runs, in the order in which they are looked at.
        environment: variables to set, or with ``None`` to remove, before torch is imported.
        stop: no further run is begun once there is this file, if one is named.

    Returns:
        0, or the number of the signal.

    Raises:
        UserError: a run's folder cannot be written to.
    """
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if "train" in experiment.stages:
        import_module("Training.run")  # brings torch; counts as no run's time
    signals = _Signals()
    try:
        for run in runs:
            if stop is not None and stop.exists():
                break
            with ExitStack() as held:
                _bring_on_all(experiment, _take(experiment, run, runs, held))
    except (Stopped, KeyboardInterrupt) as ended:
        signals.requeue_if_wanted()
        number: int = next(iter(ended.args), signal.SIGINT)
        return number
    return 0


def work_here(experiment: Experiment, runs: Sequence[Run]) -> int:
    """What :func:`work` does, in a process that goes on with something else."""
    argv, numbers = sys.argv, (signal.SIGTERM, signal.SIGUSR2)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        return work(experiment, runs, {})
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _take(
    experiment: Experiment, run: Run, runs: Sequence[Run], held: ExitStack
) -> list[tuple[Run, Claim]]:
    """A run that nobody works on, with others that can be trained together with it."""
    taken: list[tuple[Run, Claim]] = []
    for each in [run, *_mates(experiment, run, runs)]:
        if len(taken) == experiment.together:
            break
        retried = experiment.retried.get(each.expid, 0)
        got = claim(experiment.folder(each), experiment.stages, retried)
        if got is not None:
            taken.append((each, held.enter_context(got)))
        elif each is run:
            break
    return taken


def _mates(experiment: Experiment, run: Run, runs: Sequence[Run]) -> list[Run]:
    if experiment.together == 1 or "train" not in experiment.stages:
        return []
    from Training.ensemble import MAY_DIFFER, why_not

    def kind(flags: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in flags.items() if name not in MAY_DIFFER}

    found = [each for each in runs if each is not run and kind(each.flags) == kind(run.flags)]
    return [] if why_not(_train_configs(experiment, [run, *found])) else found


def _train_configs(experiment: Experiment, runs: Sequence[Run]) -> list[TrainConfig]:
    configs = (experiment.config(run, "train") for run in runs)
    return [config for config in configs if isinstance(config, TrainConfig)]


def _bring_on_all(experiment: Experiment, taken: Sequence[tuple[Run, Claim]]) -> None:
    try:
        untrained = [pair for pair in taken if "train" in pair[1].attempt.lacks(experiment.stages)]
        if len(untrained) > 1:
            _train_all(experiment, untrained)
        for run, held in taken:
            if held.attempt.state == "running":
                _bring_on(experiment, run, experiment.folder(run), held)
    except (Stopped, KeyboardInterrupt):
        for _, held in taken:
            if held.attempt.state == "running":
                held.note(state="stopped")
        raise


def _train_all(experiment: Experiment, taken: Sequence[tuple[Run, Claim]]) -> None:
    """Train runs together; what cannot be done for all is left to each alone."""
    from Training.ensemble import train_together

    begin = time.monotonic()
    for _, held in taken:
        held.note(stage="train")
    size = str(len(taken))
    sys.argv = ["scripts/sweep.py", "--experiment", experiment.name, "--together", size]
    first, last = taken[0][0].expid, taken[-1][0].expid
    print(f"\ntraining together: {size} runs, {first} to {last}; the first says:", flush=True)
    folders = [experiment.folder(run) for run, _ in taken]
    try:
        configs = _train_configs(experiment, [run for run, _ in taken])
        outcomes = train_together(configs, folders)
    except Exception:  # of all, such as an operation that vmap does not know
        traceback.print_exc()
        return
    seconds = (time.monotonic() - begin) / len(taken)
    for (_, held), folder, outcome in zip(taken, folders, outcomes, strict=True):
        ended: dict[str, Any] = {"ended_at": newest_step(folder)}
        if outcome == 0:
            done = {"train": list(experiment.stages["train"])}
            held.note(done=done, seconds={"train": seconds}, **ended)
        elif isinstance(outcome, UserError):
            held.note(state=_state_after(outcome), error=str(outcome), **ended)
        else:
            held.note(state="stopped", **ended)
    for outcome in outcomes:
        if isinstance(outcome, int) and outcome:
            raise Stopped(outcome - 128)


class _Signals:
    """SIGTERM ends the work, USR2 does so before a Slurm job's time is over.

    Training itself notes SIGTERM and saves a checkpoint. submitit's own handler of USR2 would
    leave in the midst of a step.
    """

    def __init__(self) -> None:
        self._requeue = False
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGUSR2, self._end_and_requeue)

    def _end(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    def _end_and_requeue(self, number: int, frame: FrameType | None) -> None:
        self._requeue = True
        os.kill(os.getpid(), signal.SIGTERM)

    def requeue_if_wanted(self) -> None:
        """Ask Slurm to start this job once more, as its time is over and its work is not."""
        if self._requeue and "SLURM_JOB_ID" in os.environ:
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)


def _bring_on(experiment: Experiment, run: Run, folder: RunFolder, held: Claim) -> None:
    """Do the missing stages of one run, and note how they end."""
    try:
        for stage in held.attempt.lacks(experiment.stages):
            done = _earlier(held.attempt.done, stage)
            held.note(stage=stage, done=done)
            begin = time.monotonic()
            # what files name as their origin
            sys.argv = [f"{stage}.py", *experiment.arguments(run, stage)]
            print(f"\n$ python {shlex.join(sys.argv)}", flush=True)
            RUN_STAGE[stage](experiment.config(run, stage))
            done = {**done, stage: list(experiment.stages[stage])}
            seconds = {**held.attempt.seconds, stage: time.monotonic() - begin}
            held.note(done=done, seconds=seconds, ended_at=newest_step(folder))
        held.note(state="done")
    except (Stopped, KeyboardInterrupt):
        held.note(state="stopped", ended_at=newest_step(folder))
        raise
    except UserError as error:
        held.note(state=_state_after(error), error=str(error))
    except Exception as error:
        reason = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        held.note(state="failed", error=reason, traceback=traceback.format_exc())


def _state_after(error: UserError) -> State:
    return "diverged" if isinstance(error, Diverged) else "failed"


def _earlier(done: Mapping[str, list[str]], stage: str) -> dict[str, list[str]]:
    """What remains done when a stage is done anew: the stages that do not read its files."""
    order = list(RUN_STAGE)
    return {name: done[name] for name in order[: order.index(stage)] if name in done}
