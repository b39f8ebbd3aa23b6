"""From features to caches: one pass over the steps, for all metrics together.

Each step is read once, by this process or by one of several workers, and all metrics are
computed from it; this process puts them together (:mod:`Metrics.cache_file`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from Metrics.cache_file import CacheFile, Part
from Metrics.config import CacheConfig
from Metrics.features import NotRecorded, step_features
from Metrics.kernels.at import KernelAt
from Metrics.kernels.empirical import EmpiricalKernelAt
from Metrics.kernels.infinite import InfiniteKernelAt, InfiniteLinear
from Metrics.kernels.linear import Linear
from Metrics.kernels.linear_network import LinearNetwork
from Metrics.metric import Context, Forecasts, Metric
from Metrics.model_at import ModelAt
from Metrics.predictions import recorded
from Metrics.registry import METRICS, MetricEntry
from Metrics.unobserved import Unobserved
from Models.config import INFINITE
from Models.symmetry import Laws
from Training.upstream import is_upstreams, read_hyperparameters, refuse_their_files
from Utils.errors import Unreachable, Unreadable, UserError, left_out
from Utils.logging import progress, stage_logger
from Utils.rundir import RunFolder
from Utils.workers import Failure, shared_out

_SECONDS_BETWEEN_WRITES = 60.0


def cache(config: CacheConfig, run: RunFolder) -> list[CacheFile]:
    """Bring the caches of a run up to its features.

    Args:
        config: which metrics.
        run: the run's folder.

    Returns:
        the caches, also those that were complete already.

    Raises:
        UserError: a stage is missing; no metric has the buffers or laws it needs; a file is
            damaged, after all others were cached; or a cache was made from the features of
            another run.
    """
    hyperparameters = read_hyperparameters(run)
    steps = run.feature_steps()
    if not steps:
        raise UserError(f"{run.path} has no features; run extract.py for this run first")
    entries, without = _possible(config, hyperparameters, Laws.load(run.symmetries))
    if is_upstreams(hyperparameters):
        refuse_their_files(run.fetch(run.cache(e.name, config.suffix)) for e in entries)
    with run.lock("cache"):
        log = stage_logger("cache", run.logs / "run.log")
        for line in config.without_effect():
            log.warning(line)
        make = partial(_Computation, config, run, [entry.name for entry in entries])
        metrics = (here := make()).metrics
        caches = [
            CacheFile(
                entry,
                run.fetch(run.cache(entry.name, config.suffix)),
                metrics[entry.name],
                config.overwrite,
            )
            for entry in entries
        ]
        for line in _forecasts(metrics, caches, steps):
            log.info(line)
        passed = _Pass(run, caches)
        passed.through(steps, make if config.workers else lambda: here, config.workers)
        new, unreadable, failed = passed.new, passed.unreadable, passed.failed
        if len(failed) < len(caches):
            folder = run.shown(caches[0].path.parent)
            log.info("%d new steps of %d cached to %s", new, len(steps), folder)
        for reason in without:
            log.info(reason)
        for name, error in failed.items():
            if isinstance(error, NotRecorded):
                log.info("%s is left out: %s", name, error)
    return _successful(caches, failed, unreadable, len(steps))


def _forecasts(
    metrics: Mapping[str, Metric], caches: Sequence[CacheFile], steps: Sequence[int]
) -> list[str]:
    """What the steps that are new to caches will take, each line once.

    Raises:
        UserError: more than there is.
    """
    new = {cache.name: sum(map(cache.lacks, steps)) for cache in caches}
    costly = [(m, new[name]) for name, m in metrics.items() if isinstance(m, Forecasts)]
    lines = (line for m, count in costly if count for line in m.forecast(count))
    return list(dict.fromkeys(lines))


def _successful(
    caches: Sequence[CacheFile],
    failed: Mapping[str, UserError],
    unreadable: Mapping[str, UserError],
    steps: int,
) -> list[CacheFile]:
    """The caches of a pass that ended well.

    Raises:
        UserError: a metric failed, unless the run lacks what it needs and others were cached;
            or feature files were unreadable.
    """
    if unreadable:
        raise left_out(unreadable, steps)
    mistakes = [error for error in failed.values() if not isinstance(error, NotRecorded)]
    if mistakes or len(failed) == len(caches):
        raise (mistakes or list(failed.values()))[0]
    return [cache for cache in caches if cache.name not in failed]


def _possible(
    config: CacheConfig, hyperparameters: Mapping[str, Any], laws: Laws
) -> tuple[list[MetricEntry], list[str]]:
    """The metrics that can be computed, and what to say of the others.

    Raises:
        UserError: nothing can be computed.
    """
    buffers = set(hyperparameters.get("save_buffers", ()))
    wanted = [METRICS[name] for name in config.metric_names()]
    infinite = hyperparameters.get("width") == INFINITE
    weightless = [entry for entry in wanted if entry.weights and infinite]
    others = [entry for entry in wanted if entry not in weightless]
    unkept = [entry for entry in others if entry.needs and not buffers & set(entry.needs)]
    lawless = [entry for entry in others if entry.needs_laws and laws.note]
    needed = ",".join(dict.fromkeys(entry.needs[0] for entry in unkept))
    reasons = {
        "--width inf has no weights, which these metrics are about": weightless,
        f"not cached without train.py --save-buffers {needed}": unkept,
        f"not cached, as there are no laws: {laws.note}": lawless,
    }
    told = [
        f"{reason}: {', '.join(entry.name for entry in entries)}"
        for reason, entries in reasons.items()
        if entries
    ]
    possible = [entry for entry in others if entry not in unkept and entry not in lawless]
    if not possible:
        raise UserError("; ".join(told) or "--metrics: none is named")
    return possible, told


_Job = tuple[int, Sequence[str]]
"""A step, and the metrics that are computed there."""

_Found = tuple[str, Mapping[str, Part | UserError]]
"""What identifies the step's checkpoint, and what came of each metric."""


class _Computation:
    """Computes metrics at one step after another.

    Args:
        config: the command line.
        run: the run's folder.
        names: of the metrics.

    Attributes:
        metrics: by name.

    Raises:
        UserError: the laws cannot be read, or a metric refuses the run.
    """

    def __init__(self, config: CacheConfig, run: RunFolder, names: Sequence[str]):
        hyperparameters = read_hyperparameters(run)
        self._run, self._laws = run, Laws.load(run.symmetries)
        theirs = is_upstreams(hyperparameters)
        predict = Unobserved(run, self._laws, hyperparameters) if theirs else recorded
        model_at = ModelAt(run, hyperparameters, config)
        kernel_at, linear = _kernels_of(run, hyperparameters, config, self._laws, model_at)
        context = Context(self._laws, config, hyperparameters, model_at, predict, kernel_at, linear)
        self.metrics = {name: METRICS[name].load()(context) for name in names}

    def __call__(self, job: _Job) -> _Found:
        """Raises :class:`Unreadable` if the features are damaged."""
        step, names = job
        with step_features(self._run.fetch(self._run.features(step)), self._laws) as features:
            found: dict[str, Part | UserError] = {}
            for name in names:
                try:
                    found[name] = Part.of(self.metrics[name], features)
                except Unreadable:
                    raise
                except UserError as error:
                    found[name] = error
            return features.source, found


def _kernels_of(
    run: RunFolder,
    hyperparameters: dict[str, Any],
    config: CacheConfig,
    laws: Laws,
    model_at: ModelAt,
) -> tuple[KernelAt, Linear]:
    """The tangent kernel of a run and what it predicts: of its network, or of infinite width."""
    if hyperparameters.get("width") == INFINITE:
        fixed = InfiniteKernelAt(run, hyperparameters, config, laws, model_at)
        return fixed, InfiniteLinear(config, hyperparameters, model_at, fixed)
    found = EmpiricalKernelAt(run, hyperparameters, config, laws, model_at)
    return found, LinearNetwork(config, hyperparameters, model_at, found)


class _Pass:
    """Brings every step to every cache, once; a metric that fails stops no other.

    Args:
        run: the run's folder.
        caches: to be brought up to date.

    Attributes:
        new: how many steps were new to a cache.
        unreadable: what was wrong with feature files, by name.
        failed: what was wrong with metrics, by name.
    """

    def __init__(self, run: RunFolder, caches: Sequence[CacheFile]):
        self._run, self._caches = run, caches
        self.new = 0
        self.unreadable: dict[str, UserError] = {}
        self.failed: dict[str, UserError] = {}

    def through(self, steps: Sequence[int], make: Callable[[], _Computation], workers: int) -> None:
        """Compute what is missing, and save it now and then, and at the end."""
        written = time.monotonic()
        jobs = ((step, self._missing(step)) for step in steps if not self._knows(step))
        with closing(shared_out(make, jobs, workers, self._name)) as each:
            for (step, _), found in progress(each, "caching", len(steps)):
                if isinstance(found, Failure):
                    if isinstance(found.error, Unreachable):
                        raise found.error
                    self.unreadable[self._run.features(step).name] = found.error
                else:
                    self.new += self._add(step, *found)
                if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
                    self._write()
                    written = time.monotonic()
        self._write()

    def _knows(self, step: int) -> bool:
        """Whether all caches have a step, as can be seen without fetching its features."""
        source = self._run.tags(self._run.features(step)).get("source")
        return source is not None and all(cache.has(step, source) for cache in self._caches)

    def _missing(self, step: int) -> list[str]:
        working = (cache for cache in self._caches if cache.name not in self.failed)
        return [cache.name for cache in working if cache.lacks(step)]

    def _name(self, job: _Job) -> str:
        return str(self._run.features(job[0]))

    def _add(self, step: int, source: str, found: Mapping[str, Part | UserError]) -> bool:
        """Give a step to all caches that have not failed; returns whether it was new to any."""
        added = False
        for cache in self._caches:
            if cache.name in self.failed:
                continue
            try:
                if cache.lacks(step):
                    cache.add(step, source, _successful_part(found[cache.name]))
                    added = True
                else:
                    cache.check(step, source)
            except UserError as error:
                self.failed[cache.name] = error
        return added

    def _write(self) -> None:
        for cache in self._caches:
            if cache.write():
                self._run.publish(cache.path)


def _successful_part(part: Part | UserError) -> Part:
    if isinstance(part, UserError):
        raise part
    return part
