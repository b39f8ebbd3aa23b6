"""Pages of panels from the caches of many runs."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from Metrics.figures import parts
from scripts.paper.grids import Cell, Grid
from Utils.errors import UserError

_UNITS = 8  # curves in a panel
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP, _TITLE, _HEIGHT = 0.68, 0.12, 0.5, 0.42, 0.16, 0.34, 1.15

CacheOf = Callable[[Cell], Path]
"""Where the cache of a panel is."""


def draw_grid(grid: Grid, cache_of: CacheOf) -> Figure:
    """Measured curves with their predictions, a row sharing its vertical axis.

    Args:
        grid: what is in which panel.
        cache_of: finds its cache.

    Raises:
        UserError: a cache is missing or damaged, or lacks the layer.
    """
    rows, columns = len(grid.rows), len(grid.rows[0])
    height = _TOP + rows * (_TITLE + _HEIGHT) + _BOTTOM
    figure = Figure(figsize=(parts.PAGE_WIDTH, height))
    for i, row in enumerate(grid.rows):
        shared = len({cell.metric for cell in row}) == 1
        gap = _GAP if shared else _LEFT
        width = (parts.PAGE_WIDTH - _LEFT - _RIGHT - (columns - 1) * gap) / columns
        bottom = _BOTTOM + (rows - 1 - i) * (_TITLE + _HEIGHT)
        places = [
            ((_LEFT + j * (width + gap)) / parts.PAGE_WIDTH, bottom / height)
            for j in range(columns)
        ]
        size = (width / parts.PAGE_WIDTH, _HEIGHT / height)
        axes = [figure.add_axes((*place, *size)) for place in places]
        _draw_row(axes, row, [parts.read_cache(cache_of(cell)) for cell in row], shared)
        for axis in axes:
            axis.set_xlabel("gradient-flow time" if i == rows - 1 else "", labelpad=2)
    lines = [Line2D([], [], color=c, **parts.MEASURED) for c in parts.colours(1)]
    lines += [Line2D([], [], **kind) for kind in (parts.EXACT, parts.PAPER)]
    labels = ["measured", "exact law", "continuous theory"]
    figure.text(0.5, 1 - 0.06 / height, grid.title, ha="center", va="top")
    place = (0.5, 1 - 0.2 / height)
    figure.legend(lines, labels, loc="upper center", bbox_to_anchor=place, ncols=3, frameon=False)
    return figure


def _draw_row(
    axes: Sequence[Axes], row: Sequence[Cell], caches: Sequence[parts.Cache], shared: bool
) -> None:
    shown = []
    for axis, cell, cache in zip(axes, row, caches, strict=True):
        layer = _layer(cache, cell)
        shown.append(_draw_panel(axis, layer, cache.at.time))
        axis.set_title(cell.point.label, loc="left", fontsize=parts.TITLE_SIZE, pad=4)
        name = parts.plain(layer.name.replace("|", " | "), False)
        axis.set_title(name, loc="right", fontsize=parts.SMALL_SIZE, color=parts.GREY, pad=4)
        parts.x_ticks(axis, cache.at.time, whole=False)
    for i, axis in enumerate(axes):
        parts.linear_ticks(axis, np.concatenate(shown) if shared else shown[i])
        if i == 0 or not shared:
            axis.set_ylabel(caches[i].ylabel)
        else:
            axis.tick_params(labelleft=False)


def _draw_panel(axis: Axes, layer: parts.Layer, time: parts.Array) -> parts.Array:
    """Draw some units of a layer; returns the values that the axis has to hold."""
    units = parts.spread(layer.units, _UNITS)
    units = units[np.argsort(layer.measured[0, units], kind="stable")]
    law = layer.law
    for unit, colour in zip(units, parts.colours(len(units)), strict=True):
        kind = parts.MEASURED if law else parts.THIN
        axis.plot(time, layer.measured[:, unit], color=colour, **kind)
        if law and law.open[unit]:
            axis.plot(time, law.paper[:, unit], **parts.PAPER)
            axis.plot(time, law.exact[:, unit], **parts.EXACT)
    if law and law.open.any():
        deviations = (_worst(layer, law, p) for p in (law.exact, law.paper))
        text = "exact {:.0e}, paper {:.0e}".format(*deviations).replace("e-0", "e-")
        axis.text(1, 0.98, text, transform=axis.transAxes, ha="right", va="top", color=parts.GREY)
        axis.texts[-1].set_fontsize(parts.SMALL_SIZE)
    values: parts.Array = layer.measured[:, units].ravel()
    return values


def _worst(layer: parts.Layer, law: parts.Law, predicted: parts.Array) -> float:
    """The largest deviation of any unit at any time, relative to its size."""
    deviation = parts.relative(layer.measured, predicted, law.size)[:, law.open]
    return float(np.nanmax(deviation, initial=0.0))


def _layer(cache: parts.Cache, cell: Cell) -> parts.Layer:
    """The layer that a panel shows, by its position or its name."""
    named = {layer.name: layer for layer in cache.layers}
    if isinstance(cell.layer, str) and cell.layer in named:
        return named[cell.layer]
    if isinstance(cell.layer, int) and cell.layer < len(cache.layers):
        return cache.layers[cell.layer]
    raise UserError(
        f"{cell.point.expid}: its cache of {cell.metric} has no layer {cell.layer}, "
        f"only {', '.join(named) or 'none'}; run with --overwrite after deleting the run"
    )
