"""Runs for the figures, made by the stages' own commands, as a user types them."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.paper.grids import Grid, Point
from Training.config import TrainConfig
from Training.folder import check_unchanged
from Utils.cli import parse
from Utils.errors import UserError
from Utils.rundir import RunFolder
from Utils.storage import open_hdf5

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Experiment:
    """Where the runs are.

    Attributes:
        name: the ``--experiment``.
        save_dir: the folder that holds it.
        data_dir: where downloaded data are; the stage's own default if empty.
    """

    name: str
    save_dir: str
    data_dir: str = ""

    def run(self, point: Point) -> RunFolder:
        return RunFolder(Path(self.save_dir).expanduser() / self.name / point.expid)

    def commands(self, point: Point, metrics: Iterable[str]) -> list[list[str]]:
        """The stages of one run, each the script's name and its flags."""
        run = ["--experiment", self.name, "--expid", point.expid]
        if self.save_dir != "results":
            run += ["--save-dir", self.save_dir]
        data = ["--data-dir", self.data_dir] if self.data_dir else []
        return [
            ["train.py", *shlex.split(point.flags), *data, *run],
            ["extract.py", "--probe", "none", *run],
            [
                "cache.py",
                "--metrics",
                ",".join(sorted(metrics)),
                *shlex.split(point.cache_flags),
                *run,
            ],
        ]


def needed(grids: Iterable[Grid]) -> dict[Point, set[str]]:
    """Every run that some panel shows, with the metrics that are shown of it."""
    runs: dict[Point, set[str]] = {}
    for grid in grids:
        for cell in (cell for row in grid.rows for cell in row):
            runs.setdefault(cell.point, set()).add(cell.metric)
    return runs


def is_done(experiment: Experiment, point: Point, metrics: Iterable[str]) -> bool:
    """Whether a run has been trained with these flags to its end, and cached to there.

    Raises:
        UserError: it was trained with other flags, or a cache is damaged.
    """
    run = experiment.run(point)
    caches = [run.cache(metric) for metric in metrics]
    if not all(path.exists() for path in [run.hyperparameters, *caches]):
        return False
    config = parse(TrainConfig, experiment.commands(point, metrics)[0][1:])
    check_unchanged(run, config)
    newest = json.loads((run.logs / "metrics.jsonl").read_text().splitlines()[-1])
    trained = newest["epoch"] == config.epochs  # said at the end of the last one
    return trained and all(_last_step(path) == newest["step"] for path in caches)


def _last_step(cache: Path) -> int:
    with open_hdf5(cache, "run cache.py for this run again, with --overwrite") as file:
        return int(file["steps"][-1])


def train_all(
    experiment: Experiment, runs: Mapping[Point, set[str]], jobs: int
) -> Iterator[tuple[Point, float]]:
    """Bring runs to their caches, several at a time; yields each with the seconds it took.

    Raises:
        UserError: a stage failed; names its command, and what it said.
    """
    threads = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}
    pool = ThreadPoolExecutor(jobs)
    try:
        results = [
            (point, pool.submit(_run_stages, experiment.commands(point, metrics), threads))
            for point, metrics in runs.items()
        ]
        for point, result in results:
            yield point, result.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_stages(commands: Sequence[Sequence[str]], variables: Mapping[str, str]) -> float:
    begin = time.monotonic()
    for stage, *flags in commands:
        done = subprocess.run(
            [sys.executable, str(ROOT / stage), *flags],
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise UserError(f"'{shlex.join(['python', stage, *flags])}' failed: {said}")
    return time.monotonic() - begin
