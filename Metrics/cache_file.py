"""One metric's cache.

``cache/{metric}{suffix}.h5`` holds, T being checkpoints, U units of a layer, D steps of the
dense record: ``steps`` [T], ``time`` [T], ``sources`` [T] (which checkpoints), the metric's
``<curve>/<layer>`` [T, U], ``dense/steps`` [D], ``dense/time`` [D], ``dense/<curve>/<layer>``
[D], and ``gate/<layer>`` [U] with the attribute ``reason``. Dimension scales name every axis;
units are counted by ``<layer> unit`` [U], what a metric calls otherwise by ``<layer> <axis>``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Derives, Describes, Metric, Verdict
from Metrics.registry import MetricEntry
from Utils.errors import UserError
from Utils.storage import datasets, open_hdf5, write_hdf5

_AGAIN = "run cache.py again with --overwrite"
_UNIT = ("unit",)
_HEAD = {"steps", "time", "sources"}

Array = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """What a step adds to a cache.

    Attributes:
        arrays: by path, of one checkpoint, or of the dense steps before it.
        verdicts: whether theory applies, by layer.
    """

    arrays: Arrays
    verdicts: Mapping[str, Verdict]

    @classmethod
    def of(cls, metric: Metric, features: StepFeatures) -> "Part":
        """A metric at a step; raises ``UserError`` if it cannot be computed."""
        rows = {"time": features.time, **metric.rows(features)}
        curves = list(dict.fromkeys(path.partition("/")[0] for path in rows))
        order = sorted(rows, key=lambda path: curves.index(path.partition("/")[0]))  # as in files
        arrays = {path: np.asarray(rows[path])[None] for path in order}
        return cls(arrays | dict(metric.dense(features)), metric.verdicts(features))


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
            if (path in _HEAD or "/" in path)
            and not path.startswith("gate/")
            and path not in derived
        }

    def _derived(self, curves: Arrays) -> Arrays:
        """What follows from the curves of all steps together."""
        return self._metric.derived(curves) if isinstance(self._metric, Derives) else {}

    def lacks(self, step: int) -> bool:
        """Whether a step is not here yet."""
        return step not in self._sources

    def has(self, step: int, source: str) -> bool:
        """Whether a step is here, from a checkpoint that ``source`` identifies."""
        return self._sources.get(step) == source

    def add(self, step: int, source: str, part: Part) -> None:
        """Add a step that is not here yet, from a checkpoint that ``source`` identifies."""
        for path, array in part.arrays.items():
            self._parts.setdefault(path, []).append(array)
        if step > max(self._sources, default=-1):
            self._verdicts = part.verdicts
        self._sources[step] = source
        self._changed = True

    def check(self, step: int, source: str) -> None:
        """Raise ``UserError`` if what is here of a step came from another checkpoint."""
        if not self.has(step, source):
            raise UserError(f"{self.path}: its step {step} is of another training; {_AGAIN}")

    def write(self) -> bool:
        """Save what was read and added, in the order of the steps; whether there was any."""
        if not self._changed:
            return False
        gates = {f"gate/{layer}": v.open.astype(np.uint8) for layer, v in self._verdicts.items()}
        reasons = {f"gate/{layer}": {"reason": v.reason} for layer, v in self._verdicts.items()}
        arrays = self._curves() | gates
        described = self._metric if isinstance(self._metric, Describes) else None
        axes = described.axes if described else {}
        scales = {path: _scales(path, array.ndim, axes) for path, array in arrays.items()}
        units = {
            scale: np.arange(size)
            for path, names in scales.items()
            for scale, size in zip(names, arrays[path].shape, strict=bool(names))
            if scale not in ("steps", "dense/steps")
        }
        steps = sorted(self._sources)
        sources = [self._sources[step] for step in steps]
        head = {"steps": np.array(steps, np.int64), "sources": np.array(sources, "S")}
        scales["sources"] = ("steps",)
        attributes = self._entry.attributes(sources)
        attributes |= described.attributes if described else {}
        attributes["settings"] = json.dumps(dict(self._metric.settings))
        write_hdf5(self.path, head | arrays | units, attributes, scales, reasons)
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


def _scales(path: str, count: int, axes: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The dimension scale of each of so many axes of a dataset."""
    group, _, layer = path.rpartition("/")
    own = tuple(f"{layer} {axis}" for axis in axes.get(group, _UNIT))
    if group == "gate":
        return own[:1]
    steps = "dense/steps" if path.startswith("dense/") else "steps"
    return () if path == steps else (steps, *own)[:count]
