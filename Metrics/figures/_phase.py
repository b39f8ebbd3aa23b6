"""Phase portraits: velocity over position, the colour telling the time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from Metrics.figures import _style as style
from Metrics.figures._cache import Array, Cache, Layer
from Metrics.figures._frame import Legend, add_header, add_note, add_title, header_height
from Metrics.figures._layout import Cell, grid
from Metrics.figures._options import Options
from Metrics.figures._panels import spread, unit_panel, x_values

_X_LABEL = r"$|w|^2$"


def draw_phase(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """A panel for each layer, with the portraits of some units and the line of decay alone."""
    notes = any(layer.note for layer in layers)
    figure, cells = grid(len(layers), False, header_height(len(layers), options), notes)
    time = x_values(cache.at, options)
    for cell, layer in zip(cells, layers, strict=True):
        units = spread(layer.units, options.max_units)
        position, velocity = layer.beside["position"][:, units], layer.measured[:, units]
        _draw_trajectories(cell.main, position, velocity, time)
        decay = layer.beside["theoretical"][:, units]
        if not layer.note:
            _draw_line(cell.main, position, decay)
        _fit(cell, position, np.concatenate([velocity, decay]))
        if cell.at_bottom:
            cell.main.set_xlabel(_X_LABEL, labelpad=2)
        if cell.leftmost:
            cell.main.set_ylabel(cache.ylabel)
        panel = unit_panel(layer, cache, options)
        add_title(cell, panel, notes, options)
        if layer.note:
            add_note(cell, f"no prediction: {layer.note}", options)
    add_header(figure, cache.title, _legend(all(layer.note for layer in layers)), options)
    return figure


def _draw_trajectories(axes: Axes, position: Array, velocity: Array, time: Array) -> None:
    """Lines from checkpoint to checkpoint, [T, units] each, with a point at the last one."""
    scale = (time - time[0]) / ((time[-1] - time[0]) or 1.0)
    for x, y in zip(position.T, velocity.T, strict=True):
        points = np.stack([x, y], axis=1)
        segments = np.stack([points[:-1], points[1:]], axis=1)
        known = np.isfinite(segments).all(axis=(1, 2))
        colours = _colours(scale[1:][known])
        axes.add_collection(LineCollection(list(segments[known]), colors=colours, linewidths=0.9))
    axes.plot(position[-1], velocity[-1], ".", color=_colours(scale[-1:])[0], markersize=3)


def _draw_line(axes: Axes, position: Array, decay: Array) -> None:
    """The velocities that decay alone would give, over the positions that occurred."""
    known = np.isfinite(position) & np.isfinite(decay)
    order = np.argsort(position[known], kind="stable")
    axes.plot(position[known][order], decay[known][order], **style.EXACT)


def _fit(cell: Cell, position: Array, values: Array) -> None:
    known = position[np.isfinite(position)]
    style.x_ticks(cell.main, known if known.size else np.zeros(1), whole=False)
    style.linear_ticks(cell.main, values)


def _colours(scale: Array) -> Any:
    """Early dark, late light."""
    return colormaps["viridis"](0.9 * scale)


def _legend(without_prediction: bool) -> Legend:
    ends = _colours(np.array([0.0, 0.5, 1.0]))
    measured = tuple(Line2D([], [], color=colour, **style.MEASURED) for colour in ends)
    if without_prediction:
        return [measured], ["measured, early to late"]
    line = Line2D([], [], **style.EXACT)
    return [measured, line], ["measured, early to late", r"weight decay alone, $-2\lambda|w|^2$"]
