"""Processes on this machine for the runs of a sweep, started by submitit."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import submitit

from scripts.sweeps.attempts import newest
from scripts.sweeps.manifest import Run
from scripts.sweeps.stages import Experiment
from scripts.sweeps.status import Progress
from scripts.sweeps.worker import work
from Utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

_SECONDS_BETWEEN_LOOKS = 0.2
_MINUTES_OF_A_YEAR = 60 * 24 * 365


def run_here(experiment: Experiment, runs: Sequence[Run], jobs: int, folder: Path) -> int:
    """Do what is missing with several processes; one that dies with its run is replaced.

    Args:
        experiment: what the runs share.
        runs: all of them.
        jobs: processes at a time.
        folder: for what they print.

    Returns:
        0, or the number of the signal that stopped it; then runs are saved and continue later.

    Raises:
        UserError: processes end before they have begun a run.
    """
    progress = Progress(experiment, runs)
    crew = _Crew(experiment, runs, jobs, folder)
    with _noted_signals() as received:
        while not received and crew.is_needed(progress.look()):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        crew.stop()
    progress.look()
    return received[0] if received else 0


class _Crew:
    """The processes that work on the runs; the arguments are those of :func:`run_here`."""

    def __init__(self, experiment: Experiment, runs: Sequence[Run], jobs: int, folder: Path):
        self._experiment, self._runs, self._jobs = experiment, runs, jobs
        self._folder = new_folder(folder)
        self._executor = submitit.LocalExecutor(self._folder)
        self._executor.update_parameters(timeout_min=_MINUTES_OF_A_YEAR, stderr_to_stdout=True)
        self._environments = _environments(jobs)
        self._working: list[submitit.Job[Any]] = []
        self._started, self._attempts_before = 0, self._attempts()

    def is_needed(self, waiting: int) -> bool:
        """Whether there is work; starts the processes that are missing for it.

        Args:
            waiting: runs that nobody works on.
        """
        self._working = [job for job in self._working if not job.done()]
        missing = min(self._jobs - len(self._working), waiting)
        if missing > 0:
            self._start(missing)
        return bool(self._working)

    def _start(self, number: int) -> None:
        # One that died took a run with it: more starts than that mean that none can begin.
        allowed = self._jobs + self._attempts() - self._attempts_before - self._started
        if allowed <= 0 and not self._working:
            raise UserError(f"processes end before they have begun a run: {self._last_words()}")
        for _ in range(min(number, allowed)):
            environment = self._environments[self._started % len(self._environments)]
            with importable(), _deaf_to_ctrl_c():
                job = self._executor.submit(
                    work, self._experiment, self._runs, environment, self._stop_file
                )
            self._working.append(job)
            self._started += 1

    def stop(self) -> None:
        """Have the runs at work saved, and wait until they are."""
        if self._working:
            self._stop_file.touch()  # for those that are too young to hear a signal
            for job in self._working:
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit passes it on
        while not all(job.done() for job in self._working):
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    @property
    def _stop_file(self) -> Path:
        return self._folder / "stop"

    def _attempts(self) -> int:
        found = (newest(self._experiment.folder(run)) for run in self._runs)
        return sum(attempt.number for attempt in found if attempt is not None)

    def _last_words(self) -> str:
        logs = sorted(self._folder.glob("*_log.out"), key=lambda path: path.stat().st_mtime)
        lines = logs[-1].read_text().strip().splitlines() if logs else []
        return f"{lines[-1] if lines else 'they print nothing'} (see {self._folder})"


def new_folder(parent: Path) -> Path:
    """A folder of its own for what this command's processes are given, and print."""
    return parent / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"


@contextmanager
def importable() -> Iterator[None]:
    """Let processes started meanwhile import the project, wherever they begin."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Have processes started meanwhile hear of Ctrl-C only by the signal that :class:`_Crew` sends.

    The terminal would tell them, too, and submitit would kill them a second later, perhaps
    while a large checkpoint is being written.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """The signals that came, of SIGINT and SIGTERM; a second Ctrl-C interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environments(jobs: int) -> list[Mapping[str, str | None]]:
    """For each process its share of the machine: a GPU in turn, and as many threads as fit.

    submitit hides all GPUs from its local processes, so that the variable has to be restored.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    devices: list[str | None] = [*given.split(",")] if given else [str(i) for i in range(found)]
    if len(devices) < 2 or given == "":
        devices = [given]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (cores or 1) // jobs)))
    return [{"CUDA_VISIBLE_DEVICES": d, "OMP_NUM_THREADS": threads} for d in devices]
