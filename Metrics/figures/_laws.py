"""Conservation laws: measured curves, the predictions on top of them, the residuals below."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from Metrics.figures import _style as style
from Metrics.figures._cache import Array, Cache
from Metrics.figures._frame import (
    add_header,
    add_note,
    add_title,
    header_height,
    label_axes,
    prediction_legend,
    write_across,
)
from Metrics.figures._layout import Cell, grid, wide
from Metrics.figures._options import Options
from Metrics.figures._panels import Curve, Panel, spread

_KEY_ROWS = 24  # beside the one panel that shows many layers
_KEY_WIDTH, _KEY_HANDLE = 1.8, 0.4  # inches: the widest key, its lines and margins

Precision = Literal["float32", "float64"]

_ROUNDING: dict[Precision, float] = {p: float(np.finfo(p).eps) for p in ("float32", "float64")}
_BETWEEN_PRECISIONS = 1e-11


def draw_laws(cache: Cache, panels: Sequence[Panel], options: Options) -> Figure:
    """One panel for each layer."""
    notes = any(panel.note and panel.predicted for panel in panels)
    figure, cells = grid(len(panels), True, header_height(len(panels), options), notes)
    precision, limits = _residual_range(panels)
    palettes = _palettes(panels)
    for cell, panel, colours in zip(cells, panels, palettes, strict=True):
        _draw_curves(cell, panel, colours, floor=1.5 * limits[0])
        style.linear_ticks(cell.main, _shown(panel.curves))
        _residual_axis(cell, panel.predicted, precision, limits)
        label_axes(cell, panel, _ylabel(cache, panel), options)
        add_title(cell, panel, notes, options)
    longest = max(palettes, key=len)
    colours = longest if len(longest) > 1 else [palette[0] for palette in palettes]
    legend = prediction_legend(colours, panels, precision)
    add_header(figure, cache.title, legend, options)
    return figure


def draw_many_laws(cache: Cache, panels: Sequence[Panel], options: Options) -> Figure:
    """All layers in one panel, each a curve; the colour tells the layer."""
    figure, cell = wide(header_height(len(panels), options), _key_width(panels))
    precision, limits = _residual_range(panels)
    colours = style.colours(len(panels))
    for panel, colour in zip(panels, colours, strict=True):
        _draw_curves(cell, panel, [colour], floor=1.5 * limits[0])
    style.value_ticks(cell.main, _shown([curve for panel in panels for curve in panel.curves]))
    predicted = any(panel.predicted for panel in panels)
    _residual_axis(cell, predicted, precision, limits)
    label_axes(cell, panels[0], _ylabel(cache, panels[0]), options)
    _add_key(cell.main, panels, colours, options)
    if predicted:
        add_note(cell, _note(panels), options)
    else:
        write_across(cell, _note(panels), options)
    legend = prediction_legend(colours, panels, precision)
    add_header(figure, cache.title, legend, options)
    return figure


def _note(panels: Sequence[Panel]) -> str:
    """Why theory is silent in some of many layers: in one alone, or the cause in the first."""
    closed = [panel for panel in panels if panel.note]
    if len(closed) < 2:
        return "".join(f"{panel.title}: {panel.note}" for panel in closed)
    reasons = [panel.note.partition(": ")[2] for panel in closed]
    causes = [reason.rpartition("; ")[2] for reason in reasons]  # the rest is about one layer
    first = "" if len(set(causes)) == 1 else f"{closed[0].title}: "
    return f"closed gates in {len(closed)} of {len(panels)} layers; {first}{causes[0]}"


def _draw_curves(cell: Cell, panel: Panel, colours: Sequence[Any], floor: float) -> None:
    """Draw a panel; residuals below the floor, exact zeros among them, lie on it."""
    assert cell.lower is not None
    for curve, colour in zip(panel.curves, colours, strict=True):
        cell.main.plot(curve.x, curve.measured, color=colour, **style.MEASURED)
        if curve.paper is not None:
            cell.main.plot(curve.x, curve.paper, **style.PAPER)
        if curve.exact is not None and curve.residual is not None:
            cell.main.plot(curve.x, curve.exact, **style.EXACT)
            residual = np.maximum(curve.residual, floor)
            cell.lower.plot(curve.x, residual, color=colour, **style.THIN)
    if len(panel.paper_x):
        cell.lower.plot(panel.paper_x, np.maximum(panel.paper_residual, floor), **style.PAPER)
    if panel.angular is not None:
        angular = np.maximum(panel.angular.measured, floor)
        cell.lower.plot(panel.angular.x, angular, **style.ANGULAR)


def _residual_axis(
    cell: Cell, predicted: bool, precision: Precision, limits: tuple[float, float]
) -> None:
    """The axis of the residuals, the same in all panels, with the rounding to compare with."""
    assert cell.lower is not None
    style.log_ticks(cell.lower, *limits)
    if predicted:
        cell.lower.axhline(_ROUNDING[precision], **style.ROUNDING)


def _residual_range(panels: Sequence[Panel]) -> tuple[Precision, tuple[float, float]]:
    """The precision the run computed in, as its residuals tell, and limits that show them."""
    exact = _positive([c.residual for p in panels for c in p.curves if c.residual is not None])
    paper = _positive([panel.paper_residual for panel in panels])
    angular = _positive([panel.angular.measured for panel in panels if panel.angular is not None])
    double = exact.size and np.median(exact) < _BETWEEN_PRECISIONS
    precision: Precision = "float64" if double else "float32"
    rounding = _ROUNDING[precision]
    # By chance some residuals are next to nothing; they shall not stretch the axis, nor shall
    # a theory that is wrong by more than the size of the quantity.
    low = min(float(np.quantile(exact, 0.02)) if exact.size else rounding, rounding)
    others = max(paper.max(initial=0.0), angular.max(initial=0.0))
    high = max(exact.max(initial=rounding), min(others, 1.0))
    return precision, (low / 3, high * 3)


def _positive(arrays: Sequence[Array]) -> Array:
    values: Array = np.concatenate([*arrays, np.empty(0)])
    return values[values > 0]


def _shown(curves: Sequence[Curve]) -> Array:
    """The values that the vertical limits must hold; the paper's may leave them."""
    exact = [curve.exact for curve in curves if curve.exact is not None]
    values: Array = np.concatenate([*(curve.measured for curve in curves), *exact])
    return values


def _add_key(axes: Axes, panels: Sequence[Panel], colours: Sequence[Any], options: Options) -> None:
    """Names of the layers on the right; of very many, some, evenly spaced."""
    chosen = spread(len(panels), _KEY_ROWS)
    room = _KEY_WIDTH - _KEY_HANDLE
    axes.legend(
        [Line2D([], [], color=colours[i], **style.MEASURED) for i in chosen],
        [
            style.layer_title(panels[i].title, room, style.SMALL_SIZE, options.use_tex)
            for i in chosen
        ],
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1,
        handletextpad=0.5,
        labelspacing=0.3,
    )


def _key_width(panels: Sequence[Panel]) -> float:
    """Room for the names of the layers, in inches."""
    longest = max(style.width(panel.title.replace("|", " | ")) for panel in panels)
    return min(_KEY_WIDTH, _KEY_HANDLE + longest)


def _palettes(panels: Sequence[Panel]) -> list[list[Any]]:
    """Colours for each panel: of its units or their kinds, or, of a single curve, of the layer."""
    if any(panel.kinds for panel in panels):
        return [[style.KINDS[kind] for kind in panel.kinds] for panel in panels]
    by_layer = style.colours(len(panels))
    return [
        style.colours(len(panel.curves)) if len(panel.curves) > 1 else [colour]
        for panel, colour in zip(panels, by_layer, strict=True)
    ]


def _ylabel(cache: Cache, panel: Panel) -> str:
    """The quantity, or its sum over units."""
    if panel.is_sum and cache.ylabel[:1] == cache.ylabel[-1:] == "$":
        terms = cache.ylabel[1:-1]
        return rf"$\sum\,({terms})$" if {"+", "-"} & set(terms) else rf"$\sum {terms}$"
    return cache.ylabel
