"""Panels that each have curves of their own, with their key inside: for metrics of many forms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib import colormaps
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

WHOLE = "network"
"""The layer whose curves are of the whole network."""

_MARGIN = 1.4  # of logarithmic axes
_NAMED = 5  # layers in the legend
_NAME_WIDTH = 0.8  # inches


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        values: [T] over the checkpoints, or [n] over ``x``.
        label: in the panel's key; none if empty.
        look: how it is drawn; colours that are not given follow the order of the lines.
        x: [n] where the points lie, if not at the checkpoints.
        frames: whether it has to fit into the panel; predictions may leave it.
    """

    values: Array
    label: str = ""
    look: Mapping[str, Any] = field(default_factory=lambda: style.THIN)
    x: Array | None = None
    frames: bool = True


@dataclass(frozen=True)
class Plot:
    """A panel of curves.

    Attributes:
        title: above it.
        lines: its curves.
        logarithmic: whether the vertical axis is, and hides what is not positive; not if nothing
            is.
        over_ranks: whether the horizontal axis is a rank, and logarithmic, instead of time.
        limits: of the vertical axis, if they are not those of the values.
        room: for the key above the curves, relative to their height.
    """

    title: str
    lines: Sequence[Line]
    logarithmic: bool = False
    over_ranks: bool = False
    limits: tuple[float, float] | None = None
    room: float = 0.0


@dataclass(frozen=True)
class Image:
    """A panel that shows a matrix.

    Attributes:
        title: above it.
        values: [n, m].
        limits: of the colours; those of the values if not given.
        label: of both axes.
        ticks: names of rows and columns; none if empty.
    """

    title: str
    values: Array
    limits: tuple[float, float] | None = None
    label: str = ""
    ticks: Sequence[str] = ()


def draw_plots(
    cache: Cache,
    plots: Sequence[Plot | Image],
    options: Options,
    note: str = "",
    legend: Legend | None = None,
) -> Figure:
    """A figure of panels, three in a row.

    Args:
        cache: what they are of.
        plots: the panels.
        options: of the figure.
        note: said once, above the first panels.
        legend: of what all panels share.
    """
    keyed = replace(options, legend=options.legend and legend is not None)
    figure, cells = grid(len(plots), False, header_height(len(plots), keyed), bool(note))
    for cell, plot in zip(cells, plots, strict=True):
        draw: Callable[..., None] = _draw_image if isinstance(plot, Image) else _draw_lines
        draw(cell, plot, cache, options, bool(note))
    if note:
        right = cells[min(3, len(cells)) - 1].main.get_position().x1
        across = (right - cells[0].main.get_position().x0) * figure.get_figwidth()
        add_note(replace(cells[0], width=across), note, options)
    add_header(figure, cache.title, legend, options)
    return figure


def _draw_lines(cell: Cell, plot: Plot, cache: Cache, options: Options, note: bool) -> None:
    axes, curves, framed = cell.main, [], [np.empty(0)]
    colours = style.colours(max(len(plot.lines), 1))
    logarithmic = plot.logarithmic and any((line.values > 0).any() for line in plot.lines)
    for line, colour in zip(plot.lines, colours, strict=True):
        x = x_values(cache.at, options) if line.x is None else line.x
        hidden = ~np.isfinite(line.values) | (logarithmic & (line.values <= 0))
        values = np.where(hidden, np.nan, line.values)
        axes.plot(x, values, label=line.label or None, **{"color": colour, **line.look})
        curves.append(Curve(x, values))
        framed += [values] if line.frames else []
    panel = Panel.without_theory(plot.title, "", curves)
    label_axes(Cell(axes, None, cell.width, False, cell.at_bottom), panel, "", options)
    if plot.over_ranks:
        axes.set_xscale("log")
        axes.set_xlim(min(c.x.min() for c in curves) / 1.1, max(c.x.max() for c in curves) * 1.1)
        axes.set_xlabel("")
    _value_axis(axes, np.concatenate(framed), plot)
    if options.legend and any(line.label for line in plot.lines):
        axes.legend(
            loc="best",
            framealpha=0.75,
            edgecolor="none",
            handlelength=1.4,
            labelspacing=0.25,
            borderpad=0.1,
        )
    add_title(cell, panel, note, options)


def _value_axis(axes: Axes, values: Array, plot: Plot) -> None:
    known = values[np.isfinite(values)]
    if plot.limits is not None:
        axes.set_ylim(*plot.limits)
    elif plot.logarithmic and (known > 0).any():
        positive = known[known > 0]
        low, high = positive.min() / _MARGIN, positive.max() * _MARGIN
        style.log_ticks(axes, low, high * (high / low) ** plot.room)
    else:
        style.linear_ticks(axes, known if known.size else np.zeros(1))


def _draw_image(cell: Cell, image: Image, cache: Cache, options: Options, note: bool) -> None:
    axes = cell.main
    low, high = image.limits or (float(np.nanmin(image.values)), float(np.nanmax(image.values)))
    picture = axes.imshow(
        image.values, cmap="viridis", vmin=low, vmax=high, interpolation="nearest"
    )
    axes.set_anchor("W")
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(picture, cax=axes.inset_axes((1.05, 0, 0.06, 1)))
    axes.set_xticks(range(len(image.ticks)), image.ticks)
    axes.set_yticks(range(len(image.ticks)), image.ticks)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if image.label:
        axes.set_ylabel(image.label)
    add_title(cell, Panel.without_theory(image.title, "", []), note, options)


def by_layer(layers: Sequence[Layer], curve: str, colours: Mapping[str, Any]) -> list[Line]:
    """A line for each layer that has a curve; "empirical" is what was measured."""
    lines = []
    for layer in layers:
        values = layer.measured[:, 0] if curve == "empirical" else layer.beside.get(curve)
        if values is not None:
            lines.append(Line(values, look={**style.THIN, "color": colours[layer.name]}))
    return lines


def colours_of(layers: Sequence[Layer]) -> dict[str, Any]:
    """A colour for each layer, and black for the whole network."""
    parts = [layer.name for layer in layers if layer.name != WHOLE]
    return {WHOLE: "k", **dict(zip(parts, style.colours(max(len(parts), 1)), strict=False))}


def layer_legend(layers: Sequence[Layer], options: Options) -> Legend:
    """The colours of some layers, with their names."""
    colours = colours_of(layers)
    chosen = [layers[i].name for i in spread(len(layers), _NAMED)]
    handles = [Line2D([], [], color=colours[name], **style.MEASURED) for name in chosen]
    labels = [
        style.layer_title(name, _NAME_WIDTH, style.SMALL_SIZE, options.use_tex) for name in chosen
    ]
    return handles, labels


def early_to_late(count: int) -> list[Any]:
    """Colours of checkpoints, dark at first."""
    return list(colormaps["viridis"](np.linspace(0.0, 0.9, count)))
