"""What acting out a symmetry changes: curves that should stay at rounding, below the gate."""

from collections.abc import Sequence

import numpy as np
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
from Metrics.figures._panels import Curve, Panel, relative, worst, x_values

_LABELS = ("logits", "loss", "first-order leak", "charge less its formula")


def draw_certificate(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """A panel for each family of laws: four deviations from zero, the worst of its units.

    What is below the floor of the panels lies on it.
    """
    deviations = [_deviations(layer) for layer in layers]
    rounding = float(np.nanmax(layers[0].beside["rounding"]))
    gate = float(np.nanmax(layers[0].beside["tolerance"]))
    floor = rounding / 30
    highest = max(float(np.nanmax(d, initial=gate)) for d in deviations)
    x = x_values(cache.at, options)
    notes = any(layer.note for layer in layers)
    figure, cells = grid(len(layers), False, header_height(len(layers), options), notes)
    for cell, layer, curves in zip(cells, layers, deviations, strict=True):
        cell.main.axhline(rounding, **style.ROUNDING)
        cell.main.axhline(gate, **style.EXACT)
        style.log_ticks(cell.main, floor / 1.5, 5 * highest)
        panel = _draw_family(cell, layer, np.maximum(curves, floor), x)
        label_axes(cell, panel, cache.ylabel, options)
        add_title(cell, panel, notes, options)
        add_note(cell, "not certified" if layer.note else "", options)
    add_header(figure, cache.title, _legend(rounding), options)
    return figure


def _draw_family(cell: Cell, layer: Layer, deviations: Array, x: Array) -> Panel:
    """Draw the [4, T] deviations of a family at the [T] positions x."""
    for values, colour in zip(deviations, style.colours(len(_LABELS)), strict=True):
        cell.main.plot(x, values, color=colour, **style.THIN)
    curves = [Curve(x, values) for values in deviations]
    count = f"{layer.units} law{'s' * (layer.units > 1)}"
    return Panel.without_theory(layer.name, count, curves)


def _deviations(layer: Layer) -> Array:
    """[4, T] in the order of the labels."""
    beside = layer.beside
    charge = worst(relative(layer.measured, beside["exact"], beside["size"]))
    deviations: Array = np.stack([beside["logits"], beside["loss"], worst(beside["leak"]), charge])
    return deviations


def _legend(rounding: float) -> Legend:
    precision = "float64" if rounding < 1e-10 else "float32"
    colours = style.colours(len(_LABELS))
    lines = [Line2D([], [], color=colour, **style.THIN) for colour in colours]
    lines += [Line2D([], [], **style.EXACT), Line2D([], [], **style.ROUNDING)]
    return lines, [*_LABELS, "gate", f"{precision} rounding"]
