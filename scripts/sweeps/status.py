"""How far the runs of a sweep are, read from their folders."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from scripts.sweeps.attempts import Attempt, is_alive, newest
from scripts.sweeps.manifest import Run
from scripts.sweeps.stages import Experiment
from Utils.rundir import RunFolder

Condition = Literal["done", "diverged", "running", "failed", "stopped", "missing"]

_CONDITIONS: tuple[Condition, ...] = get_args(Condition)
_BYTES_OF_THE_LAST_LINE = 4096


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
        condition: "stopped" where a signal or a death left something to continue, "missing"
            where nothing was begun, or not the stage that is asked for now.
        detail: the stage and step, the seconds it took, or the last line of its error.
    """

    condition: Condition
    detail: str = ""

    @property
    def is_open(self) -> bool:
        """Whether there is something to do that nobody does."""
        return self.condition in {"stopped", "missing"}


def standing(experiment: Experiment, run: Run) -> Standing:
    """Where one run stands."""
    folder = experiment.folder(run)
    last = newest(folder)
    if last is None:
        return Standing("missing")
    if is_alive(folder, last):
        return Standing("running", f"{_where(folder, last)} on {last.host}")
    lacking = last.lacks(experiment.stages)
    if not lacking:
        return Standing("done", f"{sum(last.seconds.values()):.1f} s")
    if last.has_failed and last.number > experiment.retried.get(run.expid, 0):
        if last.state == "diverged":
            return Standing("diverged", last.error.partition(";")[0])
        return Standing("failed", f"{last.stage}: {last.error}" if last.stage else last.error)
    if last.state == "done" or last.has_failed:
        return Standing("missing", f"{lacking[0]} is to be done")
    return Standing("stopped", _where(folder, last))


def _where(folder: RunFolder, attempt: Attempt) -> str:
    """The stage of an attempt, with the step that training has reported last."""
    line: dict[str, Any] = {}
    path = folder.logs / "metrics.jsonl"
    with suppress(OSError, ValueError, IndexError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _BYTES_OF_THE_LAST_LINE))
        line = json.loads(file.read().splitlines()[-1])
    training = attempt.stage == "train" and "step" in line
    return f"{attempt.stage}, step {line['step']}" if training else attempt.stage


class Progress:
    """Follows runs while they are worked on, and prints those that have ended.

    Args:
        experiment: what the runs share.
        runs: all of them.
    """

    def __init__(self, experiment: Experiment, runs: Sequence[Run]):
        self._experiment, self._runs = experiment, runs
        self._left = list(runs)
        self.look(silently=True)

    def look(self, silently: bool = False) -> int:
        """Print what has ended since the last look; returns how many runs wait for a process."""
        left, waiting = [], 0
        for run in self._left:
            where = standing(self._experiment, run)
            waiting += where.is_open
            if where.is_open or where.condition == "running":
                left.append(run)
            elif not silently:
                print(f"{run.expid}: {where.condition}, {where.detail}", flush=True)
        self._left = left
        return waiting


def counts(standings: Sequence[Standing]) -> str:
    """How many runs stand where: ``5 done, 1 running, 6 missing``."""
    numbers: Mapping[Condition, int] = Counter(where.condition for where in standings)
    return ", ".join(f"{numbers[name]} {name}" for name in _CONDITIONS if name in numbers)


def table(runs: Sequence[Run], standings: Sequence[Standing]) -> str:
    """One line per run, and how many stand where."""
    width = max(len(run.expid) for run in runs)
    lines = [
        f"{run.expid:<{width}}  {where.condition:<8}  {where.detail}".rstrip()
        for run, where in zip(runs, standings, strict=True)
    ]
    return "\n".join([*lines, f"{len(runs)} runs: {counts(standings)}"])
