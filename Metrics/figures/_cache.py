"""A metric's cache as arrays: everything a figure needs, and nothing else.

Shape letters: T checkpoints, D dense steps, U units of a layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from Utils.storage import open_hdf5

Array = NDArray[np.float64]

PERFORMANCE = "performance"
"""The metric whose curves are losses and accuracies instead of layers."""

ADVICE = "run cache.py for this run again, with --overwrite"


@dataclass(frozen=True)
class Axis:
    """Where the points of a curve lie.

    Attributes:
        step: [n] number of updates done.
        time: [n] sum of the effective learning rates, the time of the gradient flow.
    """

    step: Array
    time: Array


@dataclass(frozen=True)
class Dense:
    """A layer's record between the checkpoints, one value per layer.

    Attributes:
        at: where the D points lie.
        measured: [D] summed over the units; ``exact`` and ``paper`` are its predictions.
        exact: [D] by the discrete law.
        paper: [D] by the paper's continuous theory.
        residual: [D] largest |measured − exact| / size of the units with a prediction.
    """

    at: Axis
    measured: Array
    exact: Array
    paper: Array
    residual: Array


@dataclass(frozen=True)
class Law:
    """What theory says of a layer at the checkpoints.

    Attributes:
        exact: [T, U] prediction of the discrete law.
        paper: [T, U] the paper's continuous prediction.
        size: [T, U] the scale of the quantity, by which residuals are divided.
        open: [U] whether the law's preconditions hold for the unit.
        reason: why they do not, for the units that are not open.
        dense: the record between the checkpoints, where one was kept.
    """

    exact: Array
    paper: Array
    size: Array
    open: NDArray[np.bool_]
    reason: str
    dense: Dense | None


@dataclass(frozen=True)
class Layer:
    """One layer's measurements and what theory says of them, if anything.

    Attributes:
        name: the layer's.
        measured: [T, U].
        law: predictions, for metrics about conservation laws.
        beside: other curves, [T, U] or [T], by name.
        between: curves [D] of the record between the checkpoints, for metrics of other kinds.
        note: why a theory does not apply to the layer, for metrics of other kinds.
    """

    name: str
    measured: Array
    law: Law | None = None
    beside: Mapping[str, Array] = field(default_factory=dict)
    between: Mapping[str, Array] = field(default_factory=dict)
    note: str = ""

    @property
    def units(self) -> int:
        return int(self.measured.shape[1])


@dataclass(frozen=True)
class Cache:
    """One metric of one run.

    Attributes:
        metric: its name.
        kind: of :class:`Metrics.registry.MetricEntry`, which decides on the figure's form.
        title: what the metric is, in a few words, and of what if it is not of the weights.
        ylabel: label of the quantity, in mathtext.
        at: where the T checkpoints lie.
        layers: in the order of the file, which is the network's.
        between: where the D points of the record between the checkpoints lie.
    """

    metric: str
    kind: str
    title: str
    ylabel: str
    at: Axis
    layers: tuple[Layer, ...]
    between: Axis


def read_cache(path: Path) -> Cache:
    """Read a metric's cache.

    Raises:
        UserError: missing, damaged or incomplete.
    """
    with open_hdf5(path, ADVICE) as h5:
        kind = str(h5.attrs["kind"])
        read = _law_layer if kind == "law" else _layer
        return Cache(
            metric=str(h5.attrs["metric"]),
            kind=kind,
            title=" of ".join(str(h5.attrs[name]) for name in ("title", "of") if name in h5.attrs),
            ylabel=str(h5.attrs["ylabel"]),
            at=_axis(h5),
            layers=tuple(read(h5, name) for name in h5.get("empirical", ())),
            between=_axis(h5["dense"]) if "dense" in h5 else Axis(np.empty(0), np.empty(0)),
        )


@dataclass(frozen=True)
class Header:
    """What the name tags of a cache say.

    Attributes:
        path: the cache.
        metric: its metric.
        features_hash: of the features it was made from.
        layers: the names that can be chosen; those of losses and accuracies cannot.
    """

    path: Path
    metric: str
    features_hash: str
    layers: tuple[str, ...]


def read_header(path: Path) -> Header:
    """Read a cache's name tags; raises :class:`UserError` if it is missing or damaged."""
    with open_hdf5(path, ADVICE) as h5:
        metric = str(h5.attrs["metric"])
        names = h5.get("empirical", ()) if metric != PERFORMANCE else ()
        return Header(path, metric, str(h5.attrs["features_hash"]), tuple(names))


def _law(h5: h5py.File, name: str) -> Law:
    gate = h5["gate"][name]
    return Law(
        exact=_array(h5["exact"][name]),
        paper=_array(h5["theoretical"][name]),
        size=_array(h5["size"][name]),
        open=gate[()].astype(bool),
        reason=str(gate.attrs.get("reason", "")),
        dense=_dense(h5["dense"], name) if "dense" in h5 else None,
    )


def _dense(group: h5py.Group, name: str) -> Dense | None:
    if len(group["steps"]) == 0:
        return None
    return Dense(
        at=_axis(group),
        measured=_array(group["empirical"][name]),
        exact=_array(group["exact"][name]),
        paper=_array(group["theoretical"][name]),
        residual=_array(group["residual"][name]),
    )


def _axis(group: h5py.Group) -> Axis:
    return Axis(group["steps"][()].astype(float), group["time"][()].astype(float))


def _array(dataset: h5py.Dataset) -> Array:
    """The values as float64; those of a run that diverged become NaN, which is not drawn."""
    values: Array = dataset[()].astype(float)
    return np.where(np.isfinite(values), values, np.nan)


def _layer(h5: h5py.File, name: str) -> Layer:
    beside = _curves(h5, name)
    note = str(h5["gate"][name].attrs["reason"]) if name in h5.get("gate", ()) else ""
    between = _curves(h5["dense"], name) if "dense" in h5 else {}
    return Layer(name, beside.pop("empirical"), beside=beside, between=between, note=note)


def _law_layer(h5: h5py.File, name: str) -> Layer:
    beside = {"asymmetry": _array(h5["asymmetry"][name])} if "asymmetry" in h5 else {}
    return Layer(name, _array(h5["empirical"][name]), _law(h5, name), beside)


def _curves(group: h5py.Group, name: str) -> dict[str, Array]:
    """The curves of a layer in a group."""
    curves = [c for c in group if isinstance(group[c], h5py.Group) and c not in ("gate", "dense")]
    return {curve: _array(group[curve][name]) for curve in curves if name in group[curve]}
