"""From features to caches: one pass over the steps, for all metrics together."""

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from Metrics.config import CacheConfig
from Metrics.features import StepFeatures, step_features
from Metrics.metric import Context, Metric
from Metrics.registry import METRICS
from Models.symmetry import Laws
from Utils.errors import UserError
from Utils.logging import progress, stage_logger
from Utils.rundir import RunFolder
from Utils.storage import open_hdf5, read_arrays, write_hdf5

_AGAIN = "run cache.py again with --overwrite"


class CacheFile:
    """One metric's cache, as far as it goes, and what a pass adds to it.

    Args:
        name: the metric.
        path: the file; what it holds already is read.
        metric: computes the rest.
        overwrite: begin anew.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, name: str, path: Path, metric: Metric, overwrite: bool):
        self.name, self.path, self._metric = name, path, metric
        self._arrays: dict[str, list[Any]] = {}
        self._latest: dict[str, Any] = {}
        self._attributes: dict[str, Any] = {}
        self.steps: list[int] = []
        self.sources: list[str] = []
        if path.exists() and not overwrite:
            with open_hdf5(path, _AGAIN) as file:
                self._read(read_arrays(file))

    def _read(self, arrays: dict[str, Any]) -> None:
        self.steps = arrays.pop("steps").tolist()
        self.sources = [source.decode() for source in arrays.pop("sources")]
        for path, array in arrays.items():
            if not path.startswith("gate/"):
                self._arrays[path] = [array]

    def add(self, step: int, features: StepFeatures) -> None:
        """Compute the metric at one more step."""
        self.steps.append(step)
        self.sources.append(features.source)
        for path, row in {"time": features.time, **self._metric.rows(features)}.items():
            self._arrays.setdefault(path, []).append(np.asarray(row)[None])
        for path, part in self._metric.dense(features).items():
            self._arrays.setdefault(path, []).append(part)
        self._latest = dict(self._metric.latest(features))
        self._attributes = dict(self._metric.attributes(features))

    def write(self) -> None:
        """Save what was read and added."""
        entry = METRICS[self.name]
        arrays: dict[str, Any] = {k: np.concatenate(v) for k, v in self._arrays.items()}
        dimensions = {path: _scales(path, array.ndim) for path, array in arrays.items()}
        arrays |= {"steps": np.array(self.steps, np.int64), **self._latest}
        arrays["sources"] = np.array(self.sources, dtype="S")
        versions = {name: metadata.version(name) for name in ("torch", "numpy", "h5py")}
        root = {
            "metric": entry.name,
            "title": entry.title,
            "ylabel": entry.ylabel,
            "units": entry.units,
            "kind": entry.kind,
            "citation": entry.citation,
            "features_hash": hashlib.sha256("\n".join(self.sources).encode()).hexdigest(),
            "versions": json.dumps(versions),
        }
        write_hdf5(self.path, arrays, root, dimensions, self._attributes)


def cache(config: CacheConfig, run: RunFolder) -> list[CacheFile]:
    """Bring the caches of a run up to its features.

    Args:
        config: which metrics.
        run: the run's folder.

    Returns:
        the caches, also those that were complete already.

    Raises:
        UserError: a stage is missing, a file is damaged, or a cache was made from the features
            of another run.
    """
    hyperparameters = run.read_hyperparameters()
    steps = run.feature_steps()
    if not steps:
        raise UserError(f"{run.path} has no features; run extract.py for this run first")
    laws = Laws.load(run.symmetries)
    context = Context(laws, config, hyperparameters["seed"])
    with run.lock("cache"):
        log = stage_logger("cache", run.logs / "run.log")
        caches = [_cache_file(name, config, run, context, steps) for name in config.metric_names()]
        todo = [step for step in steps if any(step not in cache.steps for cache in caches)]
        for step in progress(todo, "caching"):
            with step_features(run.features(step), laws) as features:
                for cache in caches:
                    if step not in cache.steps:
                        cache.add(step, features)
        for cache in caches:
            if set(todo) & set(cache.steps):
                cache.write()
        log.info("%d of %d steps cached to %s", len(todo), len(steps), caches[0].path.parent)
    return caches


def _cache_file(
    name: str, config: CacheConfig, run: RunFolder, context: Context, steps: list[int]
) -> CacheFile:
    """A metric's cache as it is on disk, or an empty one if steps came in before its last."""
    path, build = run.cache(name, config.suffix), METRICS[name].load()
    cache = CacheFile(name, path, build(context), config.overwrite)
    for step, source in zip(cache.steps, cache.sources, strict=True):
        if step in steps:
            with step_features(run.features(step), context.laws) as features:
                if features.source != source:
                    raise UserError(f"{path}: its step {step} is of another training; {_AGAIN}")
    missing = set(steps) - set(cache.steps)
    if cache.steps and missing and min(missing) < cache.steps[-1]:
        return CacheFile(name, path, build(context), overwrite=True)
    return cache


def _scales(path: str, axes: int) -> tuple[str, ...]:
    """The dimension scales of a dataset's axes: the steps it runs along, then none."""
    steps = "dense/steps" if path.startswith("dense/") else "steps"
    return () if path == steps else (steps, *[""] * (axes - 1))
