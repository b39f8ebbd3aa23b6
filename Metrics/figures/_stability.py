"""Eigenvalues of the curvature, and the edge of stability that one of them may reach."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from Metrics.figures import _style as style
from Metrics.figures._cache import Array, Cache, Layer
from Metrics.figures._frame import (
    Legend,
    add_header,
    add_note,
    add_title,
    header_height,
    label_axes,
)
from Metrics.figures._layout import Cell, grid
from Metrics.figures._options import NothingToDraw, Options
from Metrics.figures._panels import Curve, Indices, Panel, spread, x_values

_MARGIN = 1.3  # of the logarithmic axis


def draw_stability(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """A panel for each matrix: its largest eigenvalues, within their errors, and the threshold."""
    shown = [layer for layer in layers if np.isfinite(layer.measured).any()]
    if not shown:
        raise NothingToDraw(f"{cache.metric}: not drawn, no eigenvalue was found")
    notes = any(layer.note for layer in shown)
    figure, cells = grid(len(shown), False, header_height(len(shown), options), notes)
    x = x_values(cache.at, options)
    ranks = spread(max(layer.units for layer in shown), options.max_units)
    colours = style.colours(len(ranks))
    for cell, layer in zip(cells, shown, strict=True):
        panel = _draw_matrix(cell, layer, list(zip(ranks, colours, strict=True)), x)
        label_axes(cell, panel, cache.ylabel, options)
        add_title(cell, panel, notes, options)
        add_note(cell, layer.note, options)
    add_header(figure, cache.title, _legend(ranks, colours, shown), options)
    return figure


def _draw_matrix(cell: Cell, layer: Layer, ranks: Sequence[tuple[int, Any]], x: Array) -> Panel:
    """Draw the eigenvalues of some ranks, each with its colour, at the [T] positions x."""
    errors, edge = layer.beside["error"], _edge(layer)
    curves = []
    for rank, colour in ranks:
        values, error = layer.measured[:, rank], errors[:, rank]
        cell.main.plot(x, values, color=colour, **style.MEASURED)
        cell.main.fill_between(x, values - error, values + error, color=colour, alpha=0.3, lw=0)
        curves.append(Curve(x, values))
    if edge is not None:
        cell.main.plot(x, edge, **style.EXACT)
    ends = np.empty(0) if edge is None else edge
    _value_axis(cell.main, np.concatenate([*(curve.measured for curve in curves), ends]))
    return Panel.without_theory(layer.name, "", curves)


def _edge(layer: Layer) -> Array | None:
    """[T] the threshold, where theory has one for the matrix and its gate is open."""
    return None if layer.note else layer.beside.get("theoretical")


def _value_axis(axes: Axes, values: Array) -> None:
    """Logarithmic, unless an eigenvalue is not positive."""
    finite = values[np.isfinite(values)]
    if finite.min() > 0:
        style.log_ticks(axes, finite.min() / _MARGIN, finite.max() * _MARGIN)
    else:
        style.linear_ticks(axes, finite)


def _legend(ranks: Indices, colours: Sequence[Any], layers: Sequence[Layer]) -> Legend:
    first = ("largest eigenvalue", "second", "third")
    labels = [first[rank] if rank < len(first) else f"no. {rank + 1}" for rank in ranks]
    handles = [Line2D([], [], color=colour, **style.MEASURED) for colour in colours]
    if any(_edge(layer) is not None for layer in layers):
        handles.append(Line2D([], [], **style.EXACT))
        labels.append("edge of stability")
    return handles, labels
