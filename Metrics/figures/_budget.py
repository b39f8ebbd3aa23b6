"""Budgets: what has changed a conserved quantity, stacked, and the change that was measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from Metrics.figures import _style as style
from Metrics.figures._cache import Array, Cache, Layer
from Metrics.figures._frame import Legend, add_header, add_title, header_height, label_axes
from Metrics.figures._layout import Cell, grid
from Metrics.figures._options import Options
from Metrics.figures._panels import Curve, Panel, worst, x_values

_PARTS = {"decay": "#56B4E9", "kinetic": "#E69F00", "leak": "#CC79A7"}
_DRIFT = "#D55E00"
_FLOOR = 1e-17  # of closing errors, some of which are 0


def draw_budget(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """A panel for each layer: the sums over its units, and the largest closing error below."""
    figure, cells = grid(len(layers), True, header_height(len(layers), options))
    limits = _closing_range(layers, cache.at.step > 0)
    for cell, layer in zip(cells, layers, strict=True):
        _draw_layer(cell, layer, cache, limits, options)
    add_header(figure, cache.title, _legend(), options)
    return figure


def _draw_layer(
    cell: Cell, layer: Layer, cache: Cache, limits: tuple[float, float], options: Options
) -> None:
    assert cell.lower is not None
    x, sums = x_values(cache.between, options), layer.between
    drift = Curve(x, sums["empirical"], exact=None if layer.note else sums["exact"])
    if drift.exact is not None:
        edges = _stack(cell.main, x, [sums[part] for part in _PARTS])
        cell.main.plot(x, drift.exact, **style.EXACT)
        moved = cache.at.step > 0  # before, there is nothing to close
        at = x_values(cache.at, options)[moved]
        closing = np.maximum(worst(layer.beside["closing"])[moved], limits[0])
        cell.lower.plot(at, closing, color=_DRIFT, **style.THIN)
        cell.lower.plot(at, worst(layer.beside["rounding"])[moved], **style.ROUNDING)
    else:
        edges = drift.measured
    cell.main.plot(x, drift.measured, color=_DRIFT, **style.MEASURED)
    cell.main.axhline(0, color="k", linewidth=0.4, zorder=1)
    style.linear_ticks(cell.main, np.concatenate([edges, drift.measured]))
    style.log_ticks(cell.lower, limits[0] / 3, limits[1] * 3)
    count = "1 charge" if layer.units == 1 else f"sum of {layer.units} charges"
    panel = Panel.without_theory(layer.name, count, [drift], True, layer.note)
    label_axes(cell, panel, cache.ylabel, options)
    add_title(cell, panel, False, options)
    if cell.leftmost:
        cell.lower.set_ylabel("closing")


def _stack(axes: Axes, x: Array, parts: Sequence[Array]) -> Array:
    """Areas of the parts on each other, what is positive above zero; returns their edges."""
    above, below = np.zeros_like(x), np.zeros_like(x)
    for values, colour in zip(parts, _PARTS.values(), strict=True):
        up, down = above + np.maximum(values, 0), below + np.minimum(values, 0)
        for low, high in ((above, up), (down, below)):
            axes.fill_between(x, low, high, color=colour, alpha=0.6, linewidth=0, zorder=0)
        above, below = up, down
    edges: Array = np.concatenate([above, below])
    return edges


def _closing_range(layers: Sequence[Layer], moved: NDArray[np.bool_]) -> tuple[float, float]:
    """The smallest and largest closing errors of any panel, and their roundings at the end."""
    errors = [worst(layer.beside["closing"])[moved] for layer in layers]
    values = np.concatenate([*errors, *(worst(x.beside["rounding"])[-1:] for x in layers)])
    shown = values[values > _FLOOR]
    return (float(shown.min()), float(shown.max())) if shown.size else (_FLOOR, 1e-15)


def _legend() -> Legend:
    areas = [Patch(color=c, alpha=0.6, linewidth=0) for c in _PARTS.values()]
    looks: list[dict[str, Any]] = [{"color": _DRIFT} | style.MEASURED, style.EXACT, style.ROUNDING]
    lines = [Line2D([], [], **look) for look in looks]
    return [*areas, *lines], [*_PARTS, "measured change", "sum of the three", "one rounding"]
