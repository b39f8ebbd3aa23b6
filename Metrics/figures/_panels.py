"""What each panel of a figure shows, as numbers: no drawing happens here."""

import math
from dataclasses import dataclass, replace

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
        paper: the paper's continuous prediction; ``None`` also for optimizers it knows nothing of.
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
        kinds: what each curve is, where that is what colours tell.
        angular: the angular momentum of a matrix law, relative to its size, where it has one.
    """

    title: str
    shown: str
    is_sum: bool
    curves: list[Curve]
    paper_x: Array
    paper_residual: Array
    note: str
    kinds: tuple[str, ...] = ()
    angular: Curve | None = None

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


def matrix_panel(layer: Layer, cache: Cache, options: Options) -> Panel:
    """Entries of a symmetric matrix whose upper triangle the units are, row by row.

    Half of the curves are on the diagonal, if it is so long.
    """
    rows, columns = np.triu_indices((math.isqrt(8 * layer.units + 1) - 1) // 2)
    diagonal, others = np.flatnonzero(rows == columns), np.flatnonzero(rows < columns)
    some = diagonal[spread(len(diagonal), max(options.max_units - len(others), _half(options)))]
    rest = others[spread(len(others), options.max_units - len(some))]
    units, x = np.concatenate([some, rest]), x_values(cache.at, options)
    shown = f"{len(units)} of {layer.units} entries" if len(units) < layer.units else "all entries"
    curves = [_unit_curve(layer, unit, x) for unit in units]
    panel = _with_theory(layer, shown, False, curves, x, units)
    kinds = ("diagonal",) * len(some) + ("off-diagonal",) * len(rest)
    asymmetry = layer.beside.get("asymmetry")
    angular = None if asymmetry is None or not panel.predicted else Curve(x, asymmetry)
    return replace(panel, kinds=kinds, angular=angular)


def _half(options: Options) -> int:
    return -(-options.max_units // 2)


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
    if _known(law.paper[:, drawn]) is None:
        return Panel.without_theory(layer.name, shown, curves, is_sum, note)
    paper = relative(layer.measured[:, drawn], law.paper[:, drawn], law.size[:, drawn])
    return Panel(layer.name, shown, is_sum, curves, x, worst(paper), note)


def _known(paper: Array) -> Array | None:
    """The paper's prediction, if it has one: it is NaN from the first update on if not."""
    return paper if np.isfinite(paper[1:]).any() else None


def _unit_curve(layer: Layer, unit: int, x: Array) -> Curve:
    law, measured = layer.law, layer.measured[:, unit]
    if law is None or not law.open[unit]:
        return Curve(x, measured)
    exact = law.exact[:, unit]
    residual = relative(measured, exact, law.size[:, unit])
    return Curve(x, measured, exact, _known(law.paper[:, unit]), residual)


def _dense_curve(law: Law, dense: Dense, options: Options) -> Curve:
    x = x_values(dense.at, options)
    if not law.open.all():
        return Curve(x, dense.measured)
    return Curve(x, dense.measured, dense.exact, _known(dense.paper), dense.residual)


def _sum_curve(layer: Layer, units: Indices, x: Array) -> Curve:
    law, measured = layer.law, layer.measured[:, units]
    if law is None or not law.open[units].all():
        return Curve(x, measured.sum(axis=1))
    exact, paper = law.exact[:, units], _known(law.paper[:, units].sum(axis=1))
    residual = worst(relative(measured, exact, law.size[:, units]))
    return Curve(x, measured.sum(axis=1), exact.sum(axis=1), paper, residual)


def _by_start(measured: Array, units: Indices) -> Indices:
    """The units in the order of their first values, so that colours are ordered as curves."""
    return units[np.argsort(measured[0, units], kind="stable")]


def _count(shown: int, units: int) -> str:
    if units == 1:
        return "1 unit"
    return f"{units} units" if shown == units else f"{shown} of {units} units"
