"""From features to caches: one pass over the steps, for all metrics together.

``cache/{metric}{suffix}.h5`` holds, T being checkpoints, U units of a layer, D steps of the
dense record: ``steps`` [T], ``time`` [T], ``sources`` [T] (which checkpoints), the metric's
``<curve>/<layer>`` [T, U], ``dense/steps`` [D], ``dense/time`` [D], ``dense/<curve>/<layer>``
[D], and ``gate/<layer>`` [U] with the attribute ``reason``. Dimension scales name every axis;
units are counted by ``<layer> unit`` [U].
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from Metrics.config import CacheConfig
from Metrics.features import NotRecorded, StepFeatures, step_features
from Metrics.metric import Arrays, Context, Derives, Metric, Verdict
from Metrics.model_at import ModelAt
from Metrics.predictions import recorded
from Metrics.registry import METRICS, MetricEntry
from Metrics.unobserved import Unobserved
from Models.symmetry import Laws
from Training.upstream import is_upstreams, read_hyperparameters, refuse_their_files
from Utils.errors import Unreadable, UserError, left_out
from Utils.logging import progress, stage_logger
from Utils.rundir import RunFolder
from Utils.storage import datasets, open_hdf5, write_hdf5

_AGAIN = "run cache.py again with --overwrite"
_UNIT = " unit"
_SECONDS_BETWEEN_WRITES = 60.0

Array = NDArray[Any]


class CacheFile:
    """One metric's cache, as far as it goes, and what a pass adds to it.

    Args:
        entry: the metric.
        path: the file; what it holds already is read.
        metric: computes the rest.
        overwrite: begin anew.

    Raises:
        UserError: the file is damaged, or was made with other flags.
    """

    def __init__(self, entry: MetricEntry, path: Path, metric: Metric, overwrite: bool):
        self.path, self._entry, self._metric = path, entry, metric
        self._sources: dict[int, str] = {}
        self._parts: dict[str, list[Array]] = {}
        self._verdicts: Mapping[str, Verdict] = {}
        self._changed = False
        if path.exists() and not overwrite:
            with open_hdf5(path, _AGAIN) as file:
                self._check_settings(json.loads(file.attrs["settings"]))
                self._read(file)

    @property
    def name(self) -> str:
        """The metric's."""
        return self._entry.name

    def _check_settings(self, settings: dict[str, Any]) -> None:
        for name, value in self._metric.settings.items():
            if settings[name] != value:
                raise UserError(
                    f"{self.path} was made with --{name} {settings[name]}, not {value}; use that, "
                    "choose another --suffix, or begin anew with --overwrite"
                )

    def _read(self, file: h5py.File) -> None:
        arrays = {path: dataset[()] for path, dataset in datasets(file)}
        derived = self._derived(arrays)
        sources = arrays.pop("sources").astype(str).tolist()
        self._sources = dict(zip(arrays.pop("steps").tolist(), sources, strict=True))
        gates = file.get("gate", {})
        self._verdicts = {
            layer: Verdict(gates[layer][()], gates[layer].attrs["reason"]) for layer in gates
        }
        self._parts = {
            path: [array]
            for path, array in arrays.items()
            if not path.startswith("gate/") and not path.endswith(_UNIT) and path not in derived
        }

    def _derived(self, curves: Arrays) -> Arrays:
        """What follows from the curves of all steps together."""
        return self._metric.derived(curves) if isinstance(self._metric, Derives) else {}

    def update(self, step: int, features: StepFeatures) -> bool:
        """Compute the metric at a step, unless it is here already.

        Returns:
            whether it was not.

        Raises:
            Unreadable: the features are damaged.
            UserError: what is here came from another checkpoint of that step.
        """
        source = features.source
        if step in self._sources:
            if self._sources[step] != source:
                raise UserError(f"{self.path}: its step {step} is of another training; {_AGAIN}")
            return False
        rows = {"time": features.time, **self._metric.rows(features)}
        parts = {path: np.asarray(row)[None] for path, row in rows.items()}
        parts |= self._metric.dense(features)
        if step > max(self._sources, default=-1):
            self._verdicts = self._metric.verdicts(features)
        for path, part in parts.items():
            self._parts.setdefault(path, []).append(part)
        self._sources[step] = source
        self._changed = True
        return True

    def has(self, step: int, source: str | None) -> bool:
        """Whether a step is here, from the features of a certain checkpoint."""
        return source is not None and self._sources.get(step) == source

    def write(self) -> bool:
        """Save what was read and added, in the order of the steps; whether there was any."""
        if not self._changed:
            return False
        gates = {f"gate/{layer}": v.open.astype(np.uint8) for layer, v in self._verdicts.items()}
        reasons = {f"gate/{layer}": {"reason": v.reason} for layer, v in self._verdicts.items()}
        arrays = self._curves() | gates
        scales = {path: _scales(path, array.ndim) for path, array in arrays.items()}
        units = {
            scale: np.arange(arrays[path].shape[-1])
            for path, names in scales.items()
            for scale in names
            if scale.endswith(_UNIT)
        }
        steps = sorted(self._sources)
        sources = [self._sources[step] for step in steps]
        head = {"steps": np.array(steps, np.int64), "sources": np.array(sources, "S")}
        scales["sources"] = ("steps",)
        write_hdf5(self.path, head | arrays | units, self._attributes(sources), scales, reasons)
        self._changed = False
        return True

    def _curves(self) -> dict[str, Array]:
        """The curves over ascending steps; a dense step that two checkpoints recorded, once."""
        arrays = {path: np.concatenate(parts) for path, parts in self._parts.items()}
        order = np.argsort(list(self._sources))
        dense_order = np.unique(arrays.get("dense/steps", []), return_index=True)[1]
        curves = {
            path: array[dense_order if path.startswith("dense/") else order]
            for path, array in arrays.items()
        }
        return curves | dict(self._derived({"steps": np.array(sorted(self._sources)), **curves}))

    def _attributes(self, sources: Sequence[str]) -> dict[str, str]:
        entry = self._entry
        versions = {name: metadata.version(name) for name in ("torch", "numpy", "h5py")}
        return {
            "metric": entry.name,
            "title": entry.title,
            "ylabel": entry.ylabel,
            "units": entry.units,
            "kind": entry.kind,
            "citation": entry.citation,
            "settings": json.dumps(dict(self._metric.settings)),
            "features_hash": hashlib.sha256("\n".join(sources).encode()).hexdigest(),
            "versions": json.dumps(versions),
        }


def cache(config: CacheConfig, run: RunFolder) -> list[CacheFile]:
    """Bring the caches of a run up to its features.

    Args:
        config: which metrics.
        run: the run's folder.

    Returns:
        the caches, also those that were complete already.

    Raises:
        UserError: a stage is missing; no metric has the buffers it needs; a file is damaged,
            after all others were cached; or a cache was made from the features of another run.
    """
    hyperparameters = read_hyperparameters(run)
    steps = run.feature_steps()
    if not steps:
        raise UserError(f"{run.path} has no features; run extract.py for this run first")
    laws, model_at = Laws.load(run.symmetries), ModelAt(run, hyperparameters, config)
    theirs = is_upstreams(hyperparameters)
    predict = Unobserved(run, laws, hyperparameters) if theirs else recorded
    context = Context(laws, config, hyperparameters, model_at, predict)
    entries, without = _with_and_without_buffers(config, context.buffers)
    if theirs:
        refuse_their_files(run.fetch(run.cache(e.name, config.suffix)) for e in entries)
    with run.lock("cache"):
        log = stage_logger("cache", run.logs / "run.log")
        caches = [
            CacheFile(
                entry,
                run.fetch(run.cache(entry.name, config.suffix)),
                entry.load()(context),
                config.overwrite,
            )
            for entry in entries
        ]
        new, unreadable, failed = _pass(run, laws, steps, caches)
        if len(failed) < len(caches):
            folder = run.shown(caches[0].path.parent)
            log.info("%d new steps of %d cached to %s", new, len(steps), folder)
        if without:
            log.info(without)
        for name, error in failed.items():
            if isinstance(error, NotRecorded):
                log.info("%s is left out: %s", name, error)
    return _successful(caches, failed, unreadable, len(steps))


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


def _with_and_without_buffers(
    config: CacheConfig, buffers: frozenset[str]
) -> tuple[list[MetricEntry], str]:
    """The metrics that can be computed, and what to say of the others, empty if there are none.

    Raises:
        UserError: nothing can be computed.
    """
    wanted = [METRICS[name] for name in config.metric_names()]
    lacking = [entry for entry in wanted if entry.needs and not buffers & set(entry.needs)]
    needs = [f"{entry.name} needs --save-buffers {' or '.join(entry.needs)}" for entry in lacking]
    message = f"not cached: {'; '.join(needs)}" if needs else ""
    if len(lacking) == len(wanted):
        raise UserError(f"{message}; train a run with it" if wanted else "--metrics: none is named")
    return [entry for entry in wanted if entry not in lacking], message


def _pass(
    run: RunFolder, laws: Laws, steps: Sequence[int], caches: Sequence[CacheFile]
) -> tuple[int, dict[str, UserError], dict[str, UserError]]:
    """Show every step's features to every cache, once; a metric that fails stops no other.

    Returns:
        how many steps were new to a cache, what was wrong with unreadable feature files, and
        with metrics, by their name.
    """
    new, written = 0, time.monotonic()
    unreadable, failed = dict[str, UserError](), dict[str, UserError]()
    for step in progress(steps, "caching"):
        path = run.features(step)
        source = run.tags(path).get("source")
        if all(cache.has(step, source) for cache in caches):
            continue  # without fetching it
        try:
            with step_features(run.fetch(path), laws) as features:
                new += _update(caches, step, features, failed)
        except Unreadable as error:
            unreadable[path.name] = error
        if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
            _write(run, caches)
            written = time.monotonic()
    _write(run, caches)
    return new, unreadable, failed


def _update(
    caches: Sequence[CacheFile], step: int, features: StepFeatures, failed: dict[str, UserError]
) -> bool:
    """Show a step to all caches that have not failed; returns whether it was new to any."""
    added = False
    for cache in caches:
        if cache.name not in failed:
            try:
                added |= cache.update(step, features)
            except Unreadable:
                raise
            except UserError as error:
                failed[cache.name] = error
    return added


def _write(run: RunFolder, caches: Sequence[CacheFile]) -> None:
    for cache in caches:
        if cache.write():
            run.publish(cache.path)


def _scales(path: str, axes: int) -> tuple[str, ...]:
    """The dimension scale of each axis of a dataset."""
    group, _, layer = path.rpartition("/")
    units = f"{layer}{_UNIT}"
    if group == "gate":
        return (units,)
    steps = "dense/steps" if path.startswith("dense/") else "steps"
    return () if path == steps else (steps, units)[:axes]
