"""What each panel of a figure shows, as numbers: no drawing happens here."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from Metrics.figures._cache import Array, Axis, Cache, Dense, Law, Layer
from Metrics.figures._options import Options

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Curve:
    """One measured curve and its predictions, each [n]; ``None`` where theory says nothing.

    Attributes:
        x: steps or times.
        measured: what was measured.
        exact: prediction of the discrete law.
        paper: the paper's continuous prediction.
        residual: |measured − exact| / size.
    """

    x: Array
    measured: Array
    exact: Array | None = None
    paper: Array | None = None
    residual: Array | None = None


@dataclass(frozen=True)
class Panel:
    """One layer's curves.

    Attributes:
        title: the layer's name.
        shown: which of its units are shown.
        is_sum: whether the curve is a sum over units.
        curves: one per unit, or one for the layer.
        paper_x: [n] where ``paper_residual`` lies; empty without predictions.
        paper_residual: [n] largest |measured − paper| / size of the units.
        note: why some units, or all, have no prediction; empty if all have one.
    """

    title: str
    shown: str
    is_sum: bool
    curves: list[Curve]
    paper_x: Array
    paper_residual: Array
    note: str

    @staticmethod
    def without_theory(
        title: str, shown: str, curves: list[Curve], is_sum: bool = False, note: str = ""
    ) -> "Panel":
        """A panel of measurements alone."""
        return Panel(title, shown, is_sum, curves, np.empty(0), np.empty(0), note)

    @property
    def predicted(self) -> bool:
        """Whether any curve has a prediction."""
        return any(curve.exact is not None for curve in self.curves)


def unit_panel(
    layer: Layer, cache: Cache, options: Options, ordered_by: Array | None = None
) -> Panel:
    """A curve for each unit of a layer, or for ``max_units`` of them, evenly spaced.

    Args:
        layer: the layer.
        cache: that it is in.
        options: of the figure.
        ordered_by: [T, U] whose first values order the curves, if not the layer's own.
    """
    units = spread(layer.units, options.max_units)
    x = x_values(cache.at, options)
    order = _by_start(layer.measured if ordered_by is None else ordered_by, units)
    curves = [_unit_curve(layer, unit, x) for unit in order]
    return _with_theory(layer, _count(len(units), layer.units), False, curves, x, units)


def layer_panel(layer: Layer, cache: Cache, options: Options) -> Panel:
    """The sum over a layer's units, between the checkpoints too where that was recorded.

    A layer some of whose units have no prediction is summed over those that have one.
    """
    x = x_values(cache.at, options)
    law, units = layer.law, np.arange(layer.units)
    partial = law is not None and law.open.any() and not law.open.all()
    summed = units[law.open] if law and partial else units
    if law and law.dense and not partial:
        curve = _dense_curve(law, law.dense, options)
    else:
        curve = _sum_curve(layer, summed, x)
    shown = f"sum of {_count(len(summed), layer.units)}"
    return _with_theory(layer, shown, True, [curve], x, units)


def x_values(at: Axis, options: Options) -> Array:
    """[n] the horizontal positions that the options ask for."""
    return at.time if options.x == "time" else at.step


def relative(measured: Array, predicted: Array, size: Array) -> Array:
    """|measured − predicted| / size, all of one shape; NaN where the size is 0."""
    sized = np.where(size > 0, size, np.nan)
    deviation: Array = np.abs(measured - predicted) / sized
    return deviation


def worst(values: Array) -> Array:
    """[T, U] -> [T]: the largest of each row, NaN only where all of it is."""
    filled = np.where(np.isnan(values), -1.0, values).max(axis=1, initial=-1.0)
    return np.where(filled < 0, np.nan, filled)


def spread(count: int, limit: int) -> Indices:
    """At most ``limit`` of ``range(count)``, evenly spaced, ends included."""
    return np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64)


def _with_theory(
    layer: Layer, shown: str, is_sum: bool, curves: list[Curve], x: Array, units: Indices
) -> Panel:
    """The panel of some curves, with what the layer's law says of the given units."""
    law = layer.law
    if law is None or not law.open.any():
        note = f"no prediction: {law.reason}" if law else ""
        return Panel.without_theory(layer.name, shown, curves, is_sum, note)
    note = "" if law.open.all() else f"unpredicted: {law.reason}"
    drawn = units[law.open[units]]
    paper = relative(layer.measured[:, drawn], law.paper[:, drawn], law.size[:, drawn])
    return Panel(layer.name, shown, is_sum, curves, x, worst(paper), note)


def _unit_curve(layer: Layer, unit: int, x: Array) -> Curve:
    law, measured = layer.law, layer.measured[:, unit]
    if law is None or not law.open[unit]:
        return Curve(x, measured)
    exact = law.exact[:, unit]
    residual = relative(measured, exact, law.size[:, unit])
    return Curve(x, measured, exact, law.paper[:, unit], residual)


def _dense_curve(law: Law, dense: Dense, options: Options) -> Curve:
    x = x_values(dense.at, options)
    if not law.open.all():
        return Curve(x, dense.measured)
    return Curve(x, dense.measured, dense.exact, dense.paper, dense.residual)


def _sum_curve(layer: Layer, units: Indices, x: Array) -> Curve:
    law, measured = layer.law, layer.measured[:, units]
    if law is None or not law.open[units].all():
        return Curve(x, measured.sum(axis=1))
    exact, paper = law.exact[:, units], law.paper[:, units]
    residual = worst(relative(measured, exact, law.size[:, units]))
    return Curve(x, measured.sum(axis=1), exact.sum(axis=1), paper.sum(axis=1), residual)


def _by_start(measured: Array, units: Indices) -> Indices:
    """The units in the order of their first values, so that colours are ordered as curves."""
    return units[np.argsort(measured[0, units], kind="stable")]


def _count(shown: int, units: int) -> str:
    if units == 1:
        return "1 unit"
    return f"{units} units" if shown == units else f"{shown} of {units} units"
