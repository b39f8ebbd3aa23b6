"""What a sweep does for each of its runs, and for all of them together."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from Metrics import CacheConfig
from Metrics.figures import PlotConfig
from Metrics.registry import scope_of
from scripts.sweeps.attempts import Stages
from scripts.sweeps.manifest import Run
from Training.config import ExtractConfig, TrainConfig
from Utils.cli import parse
from Utils.config import RunConfig, validate
from Utils.errors import UserError
from Utils.rundir import RunFolder


class Stopped(Exception):
    """A signal, whose number is the argument, ended a stage, which can be continued."""


def experiment_path(name: str, save_dir: str) -> Path:
    """The folder of an experiment; raises :class:`UserError` if it can be none of a sweep."""
    if save_dir.startswith("gs://"):
        raise UserError(
            f"--save-dir {save_dir}: a sweep works in a folder, as its processes ask for the state "
            "of all runs several times a second; give one, and bring it into the bucket by "
            "scripts/sync_gcloud.sh FOLDER gs://…"
        )
    return validate(RunConfig, {"experiment": name, "save_dir": save_dir}, "sweep").experiment_path


@dataclass(frozen=True)
class Experiment:
    """What all runs of a sweep share.

    Attributes:
        name: the ``--experiment``.
        save_dir: the folder that holds it.
        stages: what is to be done for each run.
        retried: by expid, the attempt whose failure is no reason to leave the run alone.
        together: how many runs that differ in seeds and learning rate share their steps.
        whole: what is to be done for all runs together, once they are there.
    """

    name: str
    save_dir: str
    stages: Stages
    retried: Mapping[str, int] = field(default_factory=dict)
    together: int = 1
    whole: Stages = field(default_factory=dict)

    def config(self, run: Run, stage: str) -> RunConfig:
        """What a stage's script would be asked for; raises :class:`UserError` for wrong flags."""
        schema, given = SCHEMAS[stage], self.stages.get(stage, ())
        own = run.flags if stage == "train" else _flags_of(schema, given)
        place = {"experiment": self.name, "expid": run.expid, "save_dir": self.save_dir}
        return validate(schema, {**own, **place}, "sweep")

    def whole_config(self, stage: str) -> RunConfig:
        """The same of a stage for all runs together."""
        place = {"experiment": self.name, "save_dir": self.save_dir}
        return validate(
            SCHEMAS[stage], {**_flags_of(SCHEMAS[stage], self.whole[stage]), **place}, "sweep"
        )

    def folder(self, run: Run) -> RunFolder:
        """Where a run's files are."""
        return RunFolder(experiment_path(self.name, self.save_dir) / run.expid)

    def arguments(self, run: Run, stage: str) -> list[str]:
        """What one types behind the name of a stage's script."""
        own = run.arguments() if stage == "train" else list(self.stages[stage])
        place = ["--experiment", self.name, "--expid", run.expid, "--save-dir", self.save_dir]
        return [*own, *place]


def divided(stages: Stages) -> tuple[Stages, Stages]:
    """What is done for each run, and what for all together: metrics of whole experiments.

    Figures are of what is cached in the same sweep, or of the metrics that are named.

    Raises:
        UserError: wrong flags, or metrics of runs and of experiments in one command.
    """
    whole: set[str] = set()
    for stage in [name for name in ("cache", "plot") if name in stages]:
        names = validate(SCHEMAS[stage], _flags_of(SCHEMAS[stage], stages[stage]), "sweep")
        assert isinstance(names, CacheConfig | PlotConfig)
        asked = names.metric_names()
        if (scope_of(asked, "") == "experiment") if asked else ("cache" in whole):
            whole.add(stage)
    ordered = {name: stages[name] for name in SCHEMAS if name in stages}
    of_each = {name: flags for name, flags in ordered.items() if name not in whole}
    return of_each, {name: flags for name, flags in ordered.items() if name in whole}


@cache
def _flags_of(schema: type[RunConfig], given: tuple[str, ...]) -> dict[str, Any]:
    """By field name; once for all runs, as a small run takes hardly longer than parsing."""
    return parse(schema, list(given)).model_dump()


def _train(config: Any) -> None:
    from Training.run import train

    if code := train(config, nullcontext(RunFolder(config.run_path))):
        raise Stopped(code - 128)


def _extract(config: Any) -> None:
    from Training.extraction import extract

    extract(config, RunFolder(config.run_path))


def _cache(config: Any) -> None:
    from Metrics.caching import cache

    cache(config, RunFolder(config.run_path))


def _plot(config: Any) -> None:
    if config.report:
        from Metrics.figures.report import write_report as write
    else:
        from Metrics.figures.run import plot_run as write
    for line in write(config):
        print(line, flush=True)


SCHEMAS: Mapping[str, type[RunConfig]] = {
    "train": TrainConfig,
    "extract": ExtractConfig,
    "cache": CacheConfig,
    "plot": PlotConfig,
}
"""The flags of each stage."""

RUN_STAGE: Mapping[str, Callable[[Any], None]] = {
    "train": _train,
    "extract": _extract,
    "cache": _cache,
    "plot": _plot,
}
"""What does each stage, as its script would; called with its flags."""


def _cache_experiment(config: Any) -> int:
    from Metrics.width.command import cache_and_tell

    return cache_and_tell(config)


def _plot_experiment(config: Any) -> int:
    if config.report:
        from Metrics.figures.report import write_report as write
    else:
        from Metrics.figures.experiment import plot_experiment as write
    for line in write(config):
        print(line, flush=True)
    return 0


WHOLE_STAGE: Mapping[str, Callable[[Any], int]] = {
    "cache": _cache_experiment,
    "plot": _plot_experiment,
}
"""The same for all runs together; returns the exit code."""
