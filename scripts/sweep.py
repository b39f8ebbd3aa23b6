"""Many runs of train.py from one line or file: ``python -m scripts.sweep``; see docs/sweeps.md.

``python -m scripts.sweep status --experiment NAME`` says how far they are.
"""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from scripts.sweeps.arguments import read_arguments
from scripts.sweeps.attempts import newest
from scripts.sweeps.manifest import Grid, Run, load_manifest, manifest, save_manifest
from scripts.sweeps.stages import RUN_STAGE, WHOLE_STAGE, Experiment, divided, experiment_path
from scripts.sweeps.status import Standing, counts, standing, table
from Utils.cli import parse
from Utils.config import Config, Names, PathPart
from Utils.errors import UserError, run_stage
from Utils.registry import unknown
from Utils.rundir import ExperimentFolder

_HELP = """Every flag of train.py may follow, with several values, which are tried
in all combinations:
  --model fc vgg11    each of them; in a YAML file, model: [fc, vgg11]
  --seed 0..4         a range
  --width '2**(6..9)' each of 64, 128, 256, 512
  --lr '0.8 / width'  arithmetic over other flags

for instance:
  python -m scripts.sweep --experiment e --model fc --width '2**(6..9)'
      --lr 0.01 0.1 --seed 0..2 --stages train,extract --dry-run

and how far the runs are:
  python -m scripts.sweep status --experiment e

and then, for metrics of all runs together:
  python cache.py --experiment e --metrics transfer
  python plot.py --experiment e
  python plot.py --experiment e --report"""


class SweepConfig(Config):
    """Train many runs, several at a time. The same command again does what is missing."""

    experiment: PathPart = Field("", description="Name of the experiment, which is all the runs.")
    save_dir: str = Field(
        "results", description="Folder that holds the experiments; no bucket, see docs/sweeps.md."
    )
    stages: Names = Field(
        (), description="What to do for each run, as train,extract,cache,plot; train if not given."
    )
    extract: str = Field("", description="Flags of extract.py, as one word: '--probe none'.")
    cache: str = Field("", description="Flags of cache.py, likewise.")
    plot: str = Field("", description="Flags of plot.py, likewise.")
    jobs: int | None = Field(
        None,
        ge=0,
        description="Processes, or jobs of Slurm, at a time; here, one per core if not given, and "
        "with 0 none but this one.",
    )
    slurm: str = Field(
        "", description="Use Slurm, with these options: partition=gpu,time=2:00:00,gpus_per_node=1."
    )
    pack: int = Field(8, ge=1, description="Runs in one job of Slurm, one after another.")
    together: int = Field(
        1,
        ge=1,
        description="Runs that differ in seeds and --lr alone and share their steps, by SGD.",
    )
    retry_failed: bool = Field(
        False, description="Try runs that have failed or diverged once more."
    )
    dry_run: bool = Field(
        False, description="List the runs, and forecast their time and disk; start nothing."
    )

    @property
    def path(self) -> Path:
        """The experiment's folder; raises :class:`UserError` if it cannot be one of a sweep."""
        return experiment_path(self.experiment, self.save_dir)

    @property
    def own_folder(self) -> Path:
        """Where the sweep keeps what belongs to no run."""
        return self.path / ".sweep"

    @property
    def processes(self) -> int:
        """How many work at a time, if not on Slurm."""
        return max(self.jobs, 1) if self.jobs is not None else os.cpu_count() or 1

    def stage_flags(self) -> dict[str, tuple[str, ...]]:
        """The stages in their order, each with its flags; raises :class:`UserError` for others."""
        if self.slurm and self.jobs == 0:
            raise UserError("--jobs 0 with --slurm: this process does nothing then; leave one out")
        stages = self.stages or ("train",)
        for name in stages:
            if name not in RUN_STAGE:
                raise UserError(f"--stages: {unknown('stage', name, RUN_STAGE)}")
        given = {name: tuple(shlex.split(getattr(self, name, ""))) for name in RUN_STAGE}
        for name, flags in given.items():
            if flags and name not in stages:
                raise UserError(f"--{name} '{shlex.join(flags)}': add {name} to --stages")
        return {name: given[name] for name in RUN_STAGE if name in stages}


def main() -> int:
    """Do what the command line says; returns the exit code: 0, 1 if runs failed, 128 + n."""
    argv = sys.argv[1:]
    asks_status = argv[:1] == ["status"]
    own, grid = read_arguments(SweepConfig, argv[asks_status:])
    config = parse(SweepConfig, own, epilog=_HELP)
    experiment, runs = _plan(config, grid)
    if asks_status:
        print(table(runs, [standing(experiment, run) for run in runs]))
        if others := _others(config.path, runs):
            print(f"and {others} run folders that this sweep does not have")
        return 0
    if config.dry_run:
        from scripts.sweeps.forecast import forecast  # brings torch

        for line in forecast(experiment, runs, config.processes):
            print(line, flush=True)
        return 0
    save_manifest(config.own_folder, runs, {**experiment.stages, **experiment.whole})
    return _execute(config, experiment, runs)


def _others(path: Path, runs: list[Run]) -> int:
    """How many runs of the experiment are not of this sweep: of another grid, or made by hand."""
    mine = {run.expid for run in runs}
    return sum(folder.name not in mine for folder in ExperimentFolder(path).runs())


def _plan(config: SweepConfig, grid: Grid) -> tuple[Experiment, list[Run]]:
    """The runs, and what is to be done for each; everything is checked that can be.

    Raises:
        UserError: naming all runs that cannot be made, or flags of a stage that are wrong.
    """
    if grid:
        runs, stages = manifest(grid, config.path), config.stage_flags()
    else:
        runs, before = load_manifest(config.own_folder)
        stages = config.stage_flags() if config.stages else before
    of_each, whole = divided(stages)
    experiment = Experiment(
        config.experiment, config.save_dir, of_each, together=config.together, whole=whole
    )
    for stage in of_each:
        experiment.config(runs[0], stage)
    if config.retry_failed:
        found = {run.expid: newest(experiment.folder(run)) for run in runs}
        failed = {k: last.number for k, last in found.items() if last and last.has_failed}
        experiment = replace(experiment, retried=failed)
    return experiment, runs


def _execute(config: SweepConfig, experiment: Experiment, runs: list[Run]) -> int:
    before = [standing(experiment, run) for run in runs]
    print(f"{len(runs)} runs: {counts(before)}", flush=True)
    if config.slurm:
        from scripts.sweeps.slurm import slurm_options, submit

        options = slurm_options(config.slurm)
        print(submit(experiment, runs, options, config.pack, config.jobs, config.own_folder))
        return _do_whole(experiment, before)
    number = 0
    if experiment.stages and any(where.is_open for where in before):
        number = _work(config, experiment, runs)
    after = [standing(experiment, run) for run in runs]
    print(f"{len(runs)} runs: {counts(after)}", flush=True)
    if number:
        print("sweep: stopped; the same command continues", file=sys.stderr)
        return 128 + number
    failed = [run for run, where in zip(runs, after, strict=True) if where.condition == "failed"]
    if failed:
        folder = experiment.folder(failed[0]).logs
        print(f"sweep: tracebacks are in {folder}/attempt-*.json, …", file=sys.stderr)
    return max(int(bool(failed)), _do_whole(experiment, after))


def _work(config: SweepConfig, experiment: Experiment, runs: list[Run]) -> int:
    """Do what is missing, here or in other processes; returns the signal that stopped it, or 0."""
    if config.jobs == 0:
        from scripts.sweeps.worker import work_here

        return work_here(experiment, runs)
    from scripts.sweeps.execution import run_here

    return run_here(experiment, runs, config.processes, config.own_folder)


def _do_whole(experiment: Experiment, standings: list[Standing]) -> int:
    """What is done for all runs together, unless some are not there yet; returns the exit code."""
    waiting = sum(where.is_open or where.condition == "running" for where in standings)
    if waiting and experiment.whole:
        names = " and ".join(experiment.whole)
        print(f"{names} of the experiment waits for {waiting} runs; give the same command then")
        return 0
    return max((WHOLE_STAGE[n](experiment.whole_config(n)) for n in experiment.whole), default=0)


if __name__ == "__main__":
    run_stage(main)
