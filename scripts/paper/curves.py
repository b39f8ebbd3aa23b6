"""Pages of panels from the caches of many runs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from Metrics.figures import parts
from scripts.paper.grids import Cell, Grid
from Utils.errors import UserError

_UNITS = 8  # curves in a panel
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP, _TITLE, _HEIGHT = 0.68, 0.12, 0.36, 0.42, 0.16, 0.52, 1.15
_FAR_APART = 8.0  # spans of values in a row, beyond which its panels have their own axes

_X_LABELS = {"time": "gradient-flow time", "step": "step"}

CacheOf = Callable[[Cell], Path]
"""Where the cache of a panel is."""


def draw_grid(grid: Grid, cache_of: CacheOf) -> Figure:
    """Measured curves with their predictions, a row sharing its vertical axis where it can.

    Args:
        grid: what is in which panel.
        cache_of: finds its cache.

    Raises:
        UserError: a cache is missing or damaged, or lacks the layer.
    """
    rows = len(grid.rows)
    height = _TOP + rows * (_TITLE + _HEIGHT) + _BOTTOM
    figure = Figure(figsize=(parts.PAGE_WIDTH, height))
    for i, row in enumerate(grid.rows):
        caches = [parts.read_cache(cache_of(cell)) for cell in row]
        layers = [_layer(cache, cell) for cache, cell in zip(caches, row, strict=True)]
        shared = _can_share(row, layers)
        bottom = _BOTTOM + (rows - 1 - i) * (_TITLE + _HEIGHT)
        axes = _axes_of_row(figure, len(row), bottom, _GAP if shared else _LEFT)
        for axis, cell, cache, layer in zip(axes, row, caches, layers, strict=True):
            _draw_panel(axis, cell, layer, getattr(cache.at, grid.x))
            axis.set_xlabel(_X_LABELS[grid.x] if i == rows - 1 else "", labelpad=2)
        _value_axes(axes, layers, [cache.ylabel for cache in caches], shared)
    _add_header(figure, grid.title)
    return figure


def _axes_of_row(figure: Figure, columns: int, bottom: float, gap: float) -> list[Axes]:
    """Axes side by side, so many inches above the figure's lower edge and from one another."""
    page, height = figure.get_size_inches()
    width = (page - _LEFT - _RIGHT - (columns - 1) * gap) / columns
    lefts = [_LEFT + j * (width + gap) for j in range(columns)]
    size = (width / page, _HEIGHT / height)
    return [figure.add_axes((left / page, bottom / height, *size)) for left in lefts]


def _add_header(figure: Figure, title: str) -> None:
    height = figure.get_size_inches()[1]
    lines = [Line2D([], [], color=c, **parts.MEASURED) for c in parts.colours(1)]
    lines += [Line2D([], [], **kind) for kind in (parts.EXACT, parts.PAPER)]
    labels = ["measured", "exact law", "continuous theory"]
    figure.text(0.5, 1 - 0.06 / height, title, ha="center", va="top")
    place = (0.5, 1 - 0.2 / height)
    figure.legend(lines, labels, loc="upper center", bbox_to_anchor=place, ncols=3, frameon=False)


def _can_share(row: Sequence[Cell], layers: Sequence[parts.Layer]) -> bool:
    """Whether the panels of a row show one quantity, of similar spans."""
    spans = [float(np.ptp(_shown(layer))) for layer in layers]
    return len({cell.metric for cell in row}) == 1 and max(spans) <= _FAR_APART * min(spans)


def _value_axes(
    axes: Sequence[Axes], layers: Sequence[parts.Layer], labels: Sequence[str], shared: bool
) -> None:
    shown = [_shown(layer) for layer in layers]
    for i, axis in enumerate(axes):
        parts.linear_ticks(axis, np.concatenate(shown) if shared else shown[i])
        if shared and i:
            axis.tick_params(labelleft=False)
        elif i == 0 or labels[i] != labels[0]:
            axis.set_ylabel(labels[i])


def _shown(layer: parts.Layer) -> parts.Array:
    """The values that the axis has to hold."""
    values: parts.Array = layer.measured[:, parts.spread(layer.units, _UNITS)].ravel()
    return values[np.isfinite(values)]


def _draw_panel(axis: Axes, cell: Cell, layer: parts.Layer, x: parts.Array) -> None:
    """Draw some units of a layer over x [T], with predictions where their gates are open."""
    units = parts.spread(layer.units, _UNITS)
    units = units[np.argsort(layer.measured[0, units], kind="stable")]
    law = layer.law
    for unit, colour in zip(units, parts.colours(len(units)), strict=True):
        kind = parts.MEASURED if law else parts.THIN
        axis.plot(x, layer.measured[:, unit], color=colour, **kind)
        if law and law.open[unit]:
            axis.plot(x, law.paper[:, unit], **parts.PAPER)
            axis.plot(x, law.exact[:, unit], **parts.EXACT)
    parts.x_ticks(axis, x, whole=False)
    small: dict[str, Any] = {"fontsize": parts.SMALL_SIZE, "color": parts.GREY}
    axis.set_title(cell.point.label, loc="left", fontsize=parts.TITLE_SIZE, pad=13)
    name = parts.plain(layer.name.replace("|", " | "), False)
    axis.set_title(name, loc="right", pad=13, **small)
    axis.annotate(
        _words(layer),
        (1, 1),
        xycoords="axes fraction",
        xytext=(0, 3.5),
        textcoords="offset points",
        ha="right",
        **small,
    )


def _words(layer: parts.Layer) -> str:
    """How large the deviations are, and in how many units nothing was predicted."""
    law = layer.law
    if law is None:
        return ""
    if not law.open.any():
        return f"no prediction: {law.reason}"
    deviations = (_worst(layer, law, predicted) for predicted in (law.exact, law.paper))
    text = "exact {:.0e}, paper {:.0e}".format(*deviations).replace("e-0", "e-")
    closed = int((~law.open).sum())
    return f"{text}, {closed} of {layer.units} closed" if closed else text


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
        f"only {', '.join(named) or 'none'}; delete the run and run this again"
    )
