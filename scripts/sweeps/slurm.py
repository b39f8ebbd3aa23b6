"""The runs of a sweep as an array of Slurm jobs, each with several runs."""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit

from scripts.sweeps.execution import importable, new_folder
from scripts.sweeps.manifest import Run
from scripts.sweeps.stages import Experiment
from scripts.sweeps.status import standing
from scripts.sweeps.worker import work
from Utils.errors import UserError
from Utils.storage import read_json, write_json

_TIME = re.compile(r"(?:(\d+)-)?(\d+):(\d+)(?::(\d+))?")


def submit(
    experiment: Experiment,
    runs: Sequence[Run],
    options: Mapping[str, Any],
    pack: int,
    jobs: int | None,
    folder: Path,
) -> str:
    """Hand the missing runs that no job of the queue holds to Slurm, ``pack`` to a job.

    A job that is preempted, or whose time is over, saves its run, and goes on with it when Slurm
    starts it again.

    Args:
        experiment: what the runs share.
        runs: all of them.
        options: of sbatch, by submitit's names, as :func:`slurm_options` gives them.
        pack: runs per job.
        jobs: jobs at a time; as many as Slurm wants if ``None``.
        folder: for what the jobs are given, and print.

    Returns:
        what was submitted, for the user.

    Raises:
        UserError: there is no Slurm, or it refuses.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("--slurm: there is no sbatch here; submit from a machine of the cluster")
    waiting = _waiting(folder)
    held = {expid for expids in waiting.values() for expid in expids}
    left = [run for run in runs if run.expid not in held and standing(experiment, run).is_open]
    queued = sum(run.expid in held for run in runs)
    also = f"; {queued} are in the queue already" if queued else ""
    if not left:
        return f"nothing to submit{also}"
    chunks = [left[i : i + pack] for i in range(0, len(left), pack)]
    try:
        submitted = _submit(experiment, chunks, options, jobs, new_folder(folder))
    except ValueError as error:
        raise UserError(f"--slurm: {str(error).splitlines()[0]}") from None
    except submitit.core.utils.FailedJobError as error:
        raise UserError(f"--slurm: sbatch refused: {' '.join(str(error).split())}") from None
    names = {
        job.job_id: [run.expid for run in chunk]
        for job, chunk in zip(submitted, chunks, strict=True)
    }
    write_json(folder / "slurm.json", {**waiting, **names})
    first = submitted[0].job_id.partition("_")[0]
    return f"{len(left)} runs in {len(chunks)} jobs of Slurm's {first}{also}"


def _submit(
    experiment: Experiment,
    chunks: Sequence[Sequence[Run]],
    options: Mapping[str, Any],
    jobs: int | None,
    folder: Path,
) -> list[submitit.Job[Any]]:
    executor = submitit.SlurmExecutor(folder)
    more = {} if jobs is None else {"array_parallelism": jobs}
    executor.update_parameters(
        job_name=experiment.name,
        stderr_to_stdout=True,
        additional_parameters={"requeue": True},
        **more,
        **options,
    )
    with importable(), executor.batch():
        return [executor.submit(work, experiment, chunk, {}, folder / "stop") for chunk in chunks]


def _waiting(folder: Path) -> dict[str, list[str]]:
    """The jobs of earlier commands that are in the queue or at work, with their runs."""
    file = folder / "slurm.json"
    if not file.exists():
        return {}
    known: dict[str, list[str]] = read_json(file, "submit again", "delete it, and submit again")
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise UserError(f"--slurm: squeue failed: {' '.join(listed.stderr.split())}")
    present = set(listed.stdout.split())
    return {job: expids for job, expids in known.items() if job in present}


def slurm_options(text: str) -> dict[str, Any]:
    """The options in ``partition=gpu,time=2:00:00,gpus_per_node=1``, time in minutes.

    Raises:
        UserError: no such text, or no time.
    """
    options: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value):
            raise UserError(f"--slurm '{part}': give options as in partition=gpu,time=2:00:00")
        options[name.replace("-", "_")] = int(value) if value.isdecimal() else value
    if "time" not in options:
        raise UserError(
            f"--slurm {text}: how long may a job take? add time=MINUTES or time=H:MM:SS"
        )
    options["time"] = _minutes(str(options["time"]))
    return options


def _minutes(text: str) -> int:
    """Minutes, as sbatch reads ``MINUTES``, ``MINUTES:SECONDS``, ``H:MM:SS``, ``DAYS-H:MM``."""
    if text.isdecimal() and int(text):
        return int(text)
    match = _TIME.fullmatch(text)
    if match is None:
        raise UserError(f"--slurm time={text}: give minutes, H:MM:SS or DAYS-H:MM:SS")
    days, first, second, third = (int(number or 0) for number in match.groups())
    if match[1] is None and match[4] is None:  # minutes and seconds
        return max(1, first + (second > 0))
    return max(1, (days * 24 + first) * 60 + second + (third > 0))
