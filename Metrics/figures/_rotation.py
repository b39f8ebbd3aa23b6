"""Rotation: angles, norms and effective learning rates of layers, and their equilibrium."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from Metrics.figures._options import Options
from Metrics.figures._panels import Curve, Panel, spread, x_values

_MARGIN = 1.3  # of the logarithmic axes
_NAMED = 5  # layers in the legend
_NAME_WIDTH = 0.8  # inches


@dataclass(frozen=True)
class _Quantity:
    """What a panel shows of all layers."""

    title: str
    curve: str
    theory: str | None
    same: bool


_QUANTITIES = (
    _Quantity("angle per step (rad)", "empirical", "theoretical", True),
    _Quantity("norm", "norm", "norm_equilibrium", False),
    _Quantity("effective learning rate", "effective_lr", None, False),
)


def draw_rotation(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """Three panels, a colour for each layer: means over its units, between the checkpoints too."""
    note = _note(layers)
    header = header_height(len(_QUANTITIES), options)
    figure, cells = grid(len(_QUANTITIES), False, header, bool(note))
    colours = style.colours(len(layers))
    x = x_values(cache.between, options)
    for cell, quantity in zip(cells, _QUANTITIES, strict=True):
        panel = _draw_quantity(cell, quantity, list(zip(layers, colours, strict=True)), x)
        label_axes(cell, panel, "", options)
        add_title(cell, panel, bool(note), options)
    across = cells[-1].main.get_position().x1 - cells[0].main.get_position().x0
    add_note(replace(cells[0], width=across * figure.get_figwidth()), note, options)
    add_header(figure, cache.title, _legend(layers, colours, options), options)
    return figure


def _draw_quantity(
    cell: Cell, quantity: _Quantity, layers: Sequence[tuple[Layer, Any]], x: Array
) -> Panel:
    curves, theories = [], []
    for layer, colour in layers:
        curve = Curve(x, layer.between[quantity.curve])
        curves.append(curve)
        cell.main.plot(x, curve.measured, color=colour, **style.THIN)
        theory = layer.between.get(quantity.theory or "")
        if theory is not None and not layer.note:
            theories.append(theory)
            line = style.EXACT if quantity.same else style.EXACT | {"color": colour}
            cell.main.plot(x, theory, **line)
    _log_axis(cell.main, [*(curve.measured for curve in curves), *theories])
    return Panel.without_theory(quantity.title, "", curves)


def _note(layers: Sequence[Layer]) -> str:
    """Why layers have no equilibrium, said once where it is the same for all."""
    notes = [layer.note for layer in layers]
    if len(set(notes)) == 1:
        return notes[0]
    return "; ".join(f"{layer.name}: {layer.note}" for layer in layers if layer.note)


def _log_axis(axes: Axes, values: Sequence[Array]) -> None:
    joined = np.concatenate(values)
    positive = joined[joined > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    style.log_ticks(axes, low / _MARGIN, high * _MARGIN)


def _legend(layers: Sequence[Layer], colours: Sequence[Any], options: Options) -> Legend:
    chosen = spread(len(layers), _NAMED)
    handles = [Line2D([], [], color=colours[i], **style.MEASURED) for i in chosen]
    labels = [
        style.layer_title(layers[i].name, _NAME_WIDTH, style.SMALL_SIZE, options.use_tex)
        for i in chosen
    ]
    if any(not layer.note for layer in layers):
        return [*handles, Line2D([], [], **style.EXACT)], [*labels, "equilibrium"]
    return handles, labels
