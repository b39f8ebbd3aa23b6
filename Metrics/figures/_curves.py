"""Curves without theory: losses and accuracies, raw parameters."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from Metrics.figures import _style as style
from Metrics.figures._cache import Cache, Layer
from Metrics.figures._frame import add_header, add_title, header_height, label_axes
from Metrics.figures._layout import grid
from Metrics.figures._options import NothingToDraw, Options
from Metrics.figures._panels import Curve, Panel, unit_panel, x_values

_LABELS = {
    "train_loss": "training",
    "test_loss": "test",
    "accuracy1": "top 1",
    "accuracy5": "top 5",
}


def draw_performance(cache: Cache, options: Options) -> Figure:
    """A panel of losses and a panel of accuracies, where they were evaluated.

    Losses that have fallen far are on a logarithmic axis: what is learned late is seen on it.
    """
    evaluated = [layer for layer in cache.layers if np.isfinite(layer.measured).any()]
    evaluated.sort(key=lambda layer: list(_LABELS).index(layer.name))
    losses = [layer for layer in evaluated if layer.name.endswith("loss")]
    accuracies = [layer for layer in evaluated if layer not in losses]
    groups = [(n, group) for n, group in (("loss", losses), ("accuracy", accuracies)) if group]
    if not groups:
        raise NothingToDraw(f"{cache.metric}: not drawn, no checkpoint was evaluated")
    without_key = replace(options, legend=False)
    figure, cells = grid(len(groups), False, header_height(len(groups), without_key))
    for cell, (name, group) in zip(cells, groups, strict=True):
        curves = [_evaluated(layer, cache, options) for layer in group]
        _draw_named(cell.main, curves, [layer.name for layer in group])
        values = np.concatenate([curve.measured for curve in curves])
        ticks = style.value_ticks if name == "loss" else style.linear_ticks
        ticks(cell.main, values)
        if options.legend:
            _add_key(cell.main)
        panel = Panel.without_theory(_with_unit(name, curves), "", curves)
        label_axes(cell, panel, "", options)
        add_title(cell, panel, False, options)
    add_header(figure, cache.title, None, options)
    return figure


def draw_network(cache: Cache, panels: Sequence[Panel], options: Options) -> Figure:
    """A panel for each parameter or layer, with the trajectories of some values or units."""
    without_key = replace(options, legend=False)
    figure, cells = grid(len(panels), False, header_height(len(panels), without_key))
    for cell, panel in zip(cells, panels, strict=True):
        colours = style.colours(len(panel.curves))
        for curve, colour in zip(panel.curves, colours, strict=True):
            cell.main.plot(curve.x, curve.measured, color=colour, **style.THIN)
        style.value_ticks(cell.main, np.concatenate([c.measured for c in panel.curves]))
        label_axes(cell, panel, cache.ylabel, options)
        shown = panel.shown if cache.kind == "units" else _values(panel)
        add_title(cell, replace(panel, shown=shown), False, options)
    add_header(figure, cache.title, None, options)
    return figure


def draw_gradients(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """A panel for each parameter: trajectories of some of its values, below their gradients."""
    without_key = replace(options, legend=False)
    figure, cells = grid(len(layers), True, header_height(len(layers), without_key))
    for cell, layer in zip(cells, layers, strict=True):
        assert cell.lower is not None
        panel = unit_panel(layer, cache, options)
        gradients = unit_panel(
            replace(layer, measured=layer.beside["gradient"]), cache, options, layer.measured
        )
        colours = style.colours(len(panel.curves))
        for weight, gradient, colour in zip(panel.curves, gradients.curves, colours, strict=True):
            cell.main.plot(weight.x, weight.measured, color=colour, **style.THIN)
            cell.lower.plot(gradient.x, gradient.measured, color=colour, **style.THIN)
        style.linear_ticks(cell.main, np.concatenate([c.measured for c in panel.curves]))
        style.linear_ticks(cell.lower, np.concatenate([c.measured for c in gradients.curves]), 3)
        _move_exponent_inside(cell.lower)
        label_axes(cell, panel, cache.ylabel, options, lower="gradient")
        add_title(cell, replace(panel, shown=_values(panel)), False, options)
    add_header(figure, cache.title, None, options)
    return figure


def _move_exponent_inside(axes: Axes) -> None:
    """Write the power of ten of an axis into its upper right corner: above, there is no room."""
    exponent = axes.yaxis.get_offset_text()
    exponent.set(x=1, horizontalalignment="right", verticalalignment="top")


def _values(panel: Panel) -> str:
    return "1 value" if len(panel.curves) == 1 else f"{len(panel.curves)} values"


def _evaluated(layer: Layer, cache: Cache, options: Options) -> Curve:
    """The points at which a quantity was evaluated."""
    values = layer.measured[:, 0]
    known = np.isfinite(values)
    return Curve(x_values(cache.at, options)[known], values[known])


def _draw_named(axes: Axes, curves: Sequence[Curve], names: Sequence[str]) -> None:
    for curve, name, colour in zip(curves, names, style.colours(len(curves)), strict=True):
        label = _LABELS.get(name, name)
        axes.plot(
            curve.x,
            curve.measured,
            color=colour,
            label=label,
            marker=".",
            markersize=4,
            **style.MEASURED,
        )


def _with_unit(name: str, curves: Sequence[Curve]) -> str:
    """Accuracies above 1 are percentages."""
    highest = max(curve.measured.max() for curve in curves)
    return f"{name} (%)" if name == "accuracy" and highest > 1 else name


def _add_key(axes: Axes) -> None:
    """The legend of a panel, in the line of its title."""
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=4,
        frameon=False,
        borderpad=0,
        borderaxespad=0.4,
        handlelength=1.5,
        handletextpad=0.5,
        columnspacing=1.2,
    )
