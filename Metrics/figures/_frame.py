"""The words around the curves: titles, notes, axis labels, the legend."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D

from Metrics.figures import _style as style
from Metrics.figures._layout import COLUMN_WIDTH, Cell
from Metrics.figures._options import Options
from Metrics.figures._panels import Panel

_LINE = 0.19  # inches, of the header
_LINE_POINTS = 9.5  # of a panel's small text
_ON_AXES = 3.5  # points between the axes and the text on them

Legend = tuple[list[Any], list[str]]
"""The handles of a legend, and their labels."""

_X_LABELS = {"step": "step", "time": "gradient-flow time"}


def header_height(panels: int, options: Options) -> float:
    """Room for the title and the legend of a figure of so many panels, in inches."""
    rows = 2 if panels == 1 else 1
    return _LINE * (1 + options.legend * rows)


def add_header(figure: Figure, title: str, legend: Legend | None, options: Options) -> None:
    """The figure's title and, below it, its legend, in two rows where the figure is narrow."""
    width, height = figure.get_size_inches()
    short = style.plain(style.shorten(title, width - 0.2, style.TITLE_SIZE), options.use_tex)
    figure.text(0.5, 1 - 0.06 / height, short, ha="center", va="top", fontsize=style.TITLE_SIZE)
    if legend and options.legend:
        rows = 2 if width <= COLUMN_WIDTH else 1
        figure.legend(
            *legend,
            loc="upper center",
            bbox_to_anchor=(0.5, 1 - 1.15 * _LINE / height),
            ncols=-(-len(legend[1]) // rows),
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=2.2,
            handletextpad=0.5,
            columnspacing=1.3,
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        )


def prediction_legend(colours: Sequence[Any], panels: Sequence[Panel], precision: str) -> Legend:
    """Handles and labels that say what the kinds of lines are.

    Args:
        colours: of the measured curves.
        panels: what the figure shows.
        precision: the line in the residuals' panels ("float32").
    """
    ends = dict.fromkeys((0, len(colours) // 2, len(colours) - 1))
    measured = tuple(Line2D([], [], color=colours[i], **style.MEASURED) for i in ends)
    kinds = dict.fromkeys(kind for panel in panels for kind in panel.kinds)
    entries: list[tuple[str, Any]] = [("measured", measured)]
    if kinds:
        colour_of = style.KINDS
        entries = [(k, Line2D([], [], color=colour_of[k], **style.MEASURED)) for k in kinds]
    lines = {
        "exact law": (style.EXACT, any(panel.predicted for panel in panels)),
        "continuous theory": (style.PAPER, any(len(panel.paper_x) for panel in panels)),
        "angular momentum": (style.ANGULAR, any(panel.angular for panel in panels)),
        f"{precision} rounding": (style.ROUNDING, any(panel.predicted for panel in panels)),
    }
    entries += [(label, Line2D([], [], **line)) for label, (line, there) in lines.items() if there]
    return [handle for _, handle in entries], [label for label, _ in entries]


def add_title(cell: Cell, panel: Panel, notes: bool, options: Options) -> None:
    """Above a panel: the layer's name, what is shown of it, and why theory is silent, if it is.

    Args:
        cell: the panel's axes.
        panel: what they show.
        notes: whether the layout left a line for notes.
        options: of the figure.
    """
    pad = _ON_AXES + _LINE_POINTS * (2 if notes else 1)
    name = style.layer_title(panel.title, cell.width, style.TITLE_SIZE, options.use_tex)
    cell.main.set_title(name, loc="left", y=1, pad=pad)
    _write_above(cell.main, panel.shown, 1, _ON_AXES)
    if panel.predicted:
        add_note(cell, panel.note, options)
    elif panel.note and cell.lower is not None:
        write_across(cell, panel.note, options)


def add_note(cell: Cell, note: str, options: Options, to_the_left: bool = False) -> None:
    """A line of small text between a panel and its title, from its left or to its right end."""
    text = style.plain(style.shorten(note, cell.width), options.use_tex)
    _write_above(cell.main, text, int(to_the_left), _ON_AXES + _LINE_POINTS)


def label_axes(
    cell: Cell, panel: Panel, ylabel: str, options: Options, lower: str = "residual"
) -> None:
    """Fit the horizontal axis to a panel, and name the axes that are on the figure's edge.

    Args:
        cell: the panel's axes.
        panel: what they show.
        ylabel: of the main axes, as markup.
        options: of the figure.
        lower: of the lower axes, where there are some.
    """
    x = np.concatenate([curve.x for curve in panel.curves])
    style.x_ticks(cell.bottom, x, whole=options.x == "step")
    if cell.at_bottom:
        cell.bottom.set_xlabel(_X_LABELS[options.x], labelpad=2)
    if cell.leftmost:
        cell.main.set_ylabel(ylabel)
        if cell.lower is not None:
            cell.lower.set_ylabel(lower)


def _write_above(axes: Axes, text: str, x: float, points: float) -> None:
    """Small text so many points above the left (x = 0) or right (x = 1) end of axes."""
    axes.annotate(
        text,
        (x, 1),
        xycoords="axes fraction",
        xytext=(0, points),
        textcoords="offset points",
        ha="right" if x else "left",
        fontsize=style.SMALL_SIZE,
        color=style.GREY,
    )


def write_across(cell: Cell, text: str, options: Options) -> None:
    """Fill lower axes that have nothing to show with the reason."""
    assert cell.lower is not None
    cell.lower.text(
        0.5,
        0.5,
        style.plain(style.wrap(text, cell.width - 0.1), options.use_tex),
        transform=cell.lower.transAxes,
        ha="center",
        va="center",
        fontsize=style.SMALL_SIZE,
        color=style.GREY,
    )
    cell.lower.tick_params(left=False, labelleft=False)
