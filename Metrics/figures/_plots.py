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
from Metrics.figures._layout import PAGE_WIDTH, Cell, grid
from Metrics.figures._options import Options
from Metrics.figures._panels import Curve, Panel, spread, x_values

WHOLE = "network"
"""The layer whose curves are of the whole network."""

_MARGIN = 1.4  # of logarithmic axes
_IN_A_ROW = 3  # of figures that have notes
_NAME_WIDTH = 0.8  # inches, of a layer's name in the legend
_KEY = 0.42  # inches, of its line and the space around


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
        over: what the horizontal axis counts, logarithmically from 1 on; the steps if empty.
        limits: of the vertical axis, if they are not those of the values.
        room: for the key above the curves, relative to their height.
        note: below the title, and towards the left where it is longer than the panel.
    """

    title: str
    lines: Sequence[Line]
    logarithmic: bool = False
    over: str = ""
    limits: tuple[float, float] | None = None
    room: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Image:
    """A panel that shows a matrix.

    Attributes:
        title: above it.
        values: [n, m].
        limits: of the colours; those of the values if not given.
        label: of both axes.
        ticks: names of rows and columns, and which these are.
    """

    title: str
    values: Array
    limits: tuple[float, float] | None = None
    label: str = ""
    ticks: Mapping[float, str] = field(default_factory=dict)


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
    above = _rows_with_notes(plots, bool(note))
    named = any(isinstance(plot, Plot) and plot.over for plot in plots[:-_IN_A_ROW])
    figure, cells = grid(len(plots), False, header_height(len(plots), keyed), bool(above), named)
    for i, (cell, plot) in enumerate(zip(cells, plots, strict=True)):
        draw: Callable[..., None] = _draw_image if isinstance(plot, Image) else _draw_lines
        draw(cell, plot, cache, options, i // _IN_A_ROW in above)
    if note:
        right = cells[min(_IN_A_ROW, len(cells)) - 1]
        add_note(replace(cells[0], width=_across(figure, cells[0], right)), note, options)
    for cell, plot in zip(cells, plots, strict=True):
        if isinstance(plot, Plot) and plot.note:
            is_long = style.width(plot.note) > cell.width
            wide = replace(cell, width=_across(figure, cells[0], cell)) if is_long else cell
            add_note(wide, plot.note, options, to_the_left=is_long)
    add_header(figure, cache.title, legend, options)
    return figure


def _rows_with_notes(plots: Sequence[Plot | Image], first: bool) -> set[int]:
    """Rows of panels above which something is noted, the first one in any case if asked for."""
    own = (i for i, plot in enumerate(plots) if isinstance(plot, Plot) and plot.note)
    return ({0} if first else set()) | {i // _IN_A_ROW for i in own}


def _across(figure: Figure, first: Cell, last: Cell) -> float:
    """From the left of one panel to the right of another, in inches."""
    parts = last.main.get_position().x1 - first.main.get_position().x0
    return float(parts * figure.get_figwidth())


def _draw_lines(cell: Cell, plot: Plot, cache: Cache, options: Options, note: bool) -> None:
    axes, curves, framed = cell.main, [], [np.empty(0)]
    colours = style.colours(max(len(plot.lines), 1))
    logarithmic = plot.logarithmic and any((line.values > 0).any() for line in plot.lines)
    for line, colour in zip(plot.lines, colours, strict=True):
        x = x_values(cache.at, options) if line.x is None else line.x
        hidden = ~np.isfinite(line.values) | (logarithmic & (line.values <= 0))
        values = np.where(hidden, np.nan, line.values)
        label = style.plain(line.label, options.use_tex) or None
        axes.plot(x, values, label=label, **{"color": colour, **line.look})
        curves.append(Curve(x, values))
        framed += [values] if line.frames else []
    panel = Panel.without_theory(plot.title, "", curves)
    label_axes(Cell(axes, None, cell.width, False, cell.at_bottom), panel, "", options)
    if plot.over:
        style.rank_ticks(axes, max(float(c.x.max()) for c in curves))
        axes.set_xlabel(plot.over, labelpad=2)
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
        known = known if known.size else np.zeros(1)
        highest = known.max() + plot.room * np.ptp(known)
        style.linear_ticks(axes, np.append(known, highest))


def _draw_image(cell: Cell, image: Image, cache: Cache, options: Options, note: bool) -> None:
    axes = cell.main
    known = image.values[np.isfinite(image.values)]
    own = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    low, high = image.limits or own
    picture = axes.imshow(
        image.values, cmap="viridis", vmin=low, vmax=high, interpolation="nearest"
    )
    axes.set_anchor("W")
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(picture, cax=axes.inset_axes((1.05, 0, 0.06, 1)))
    axes.set_xticks(list(image.ticks), list(image.ticks.values()))
    axes.set_yticks(list(image.ticks), list(image.ticks.values()))
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
    """The colours of the layers with their names, of as many as a line holds."""
    colours = colours_of(layers)
    short = {x.name: style.shorten(x.name, _NAME_WIDTH, style.SMALL_SIZE) for x in layers}
    for count in range(len(layers), 0, -1):
        chosen = [layers[i].name for i in spread(len(layers), count)]
        if sum(style.width(short[name]) + _KEY for name in chosen) <= PAGE_WIDTH:
            break
    handles = [Line2D([], [], color=colours[name], **style.MEASURED) for name in chosen]
    return handles, [style.plain(short[name], options.use_tex) for name in chosen]


def of_network(curves: Mapping[str, Array]) -> list[Line]:
    """Lines of the whole network by their labels, whose colours are not those of layers."""
    looks = ({**style.THIN, "color": shade} for shade in style.SHADES)
    return [Line(v, name, look) for (name, v), look in zip(curves.items(), looks, strict=False)]


def early_to_late(count: int) -> list[Any]:
    """Colours of checkpoints, dark at first."""
    return list(colormaps["viridis"](np.linspace(0.0, 0.9, count)))
