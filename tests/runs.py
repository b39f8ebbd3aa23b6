"""Runs of the stages for tests: within this process, or as the processes that a user starts."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from Metrics import CacheConfig
from Metrics.caching import cache
from Training.config import ExtractConfig, TrainConfig
from Training.extraction import extract
from Training.run import train
from Utils.cli import parse
from Utils.rundir import RunFolder

ROOT = Path(__file__).parents[1]

Runs = Callable[[str], RunFolder]
"""Gives the run that was trained with certain flags."""

_ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}

TINY = "--epochs 2 --train-batch-size 240 --observe-freq 4"
"""Flags of a run of 12 steps on the digits, a tenth of a second."""


def flags_of(run: RunFolder) -> list[str]:
    """The flags that name a run folder."""
    save_dir, experiment, expid = run.path.parents[1], run.path.parent.name, run.path.name
    return ["--save-dir", str(save_dir), "--experiment", experiment, "--expid", expid]


def train_run(path: Path, arguments: str) -> RunFolder:
    """A tiny run, trained in the folder ``path``."""
    run = RunFolder(path)
    argv = [*TINY.split(), *arguments.split(), *flags_of(run)]
    assert train(parse(TrainConfig, argv), nullcontext(run)) == 0
    return run


def extract_run(run: RunFolder, arguments: str = "") -> int:
    """Run stage 2 on a run; returns how many checkpoints it extracted."""
    return extract(parse(ExtractConfig, [*arguments.split(), *flags_of(run)]), run)


def cache_run(run: RunFolder, arguments: str = "") -> list[Path]:
    """Run stage 3 on a run; returns the caches' files."""
    config = parse(CacheConfig, [*arguments.split(), *flags_of(run)])
    return [file.path for file in cache(config, run)]


def copy_run(run: RunFolder, path: Path) -> RunFolder:
    """A copy of a run, at ``path``; the files are new, and so are their times."""
    shutil.copytree(run.path, path, copy_function=shutil.copyfile)
    return RunFolder(path)


def run_code(code: str) -> int:
    """Run Python code in a process of its own; returns its exit code."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=_ENVIRONMENT, check=False, timeout=120
    ).returncode


def start_stage(stage: str, run: RunFolder, arguments: str = "") -> "subprocess.Popen[str]":
    """Start ``python <stage>.py`` on a run."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / f"{stage}.py"), *arguments.split(), *flags_of(run)],
        env=_ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_stage(
    stage: str, run: RunFolder, arguments: str = "", largest_file: int | None = None
) -> tuple[int, str, str]:
    """Run ``python <stage>.py`` on a run.

    Args:
        stage: its name.
        run: its run.
        arguments: more flags.
        largest_file: bytes that a file may have, as if the disk were full after them.

    Returns:
        the exit code, and what was written to stdout and stderr.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, limits[1]))
    try:
        process = start_stage(stage, run, arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def mistake(
    stage: str, run: RunFolder, arguments: str = "", largest_file: int | None = None
) -> str:
    """The one line with which a stage ends that the user has to mend something for."""
    code, output, errors = run_stage(stage, run, arguments, largest_file)
    assert (code, output) == (2, ""), (code, output, errors)
    (line,) = errors.splitlines()
    start = f"{stage}.py: error: "
    assert line.startswith(start)
    return line.removeprefix(start)
