"""Exponents of the width beside their predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from Metrics.figures import _style as style
from Metrics.figures._experiment import ExperimentCache
from Metrics.figures._exponents import MOST_GROUPS, groups_of, quantities_of, selected
from Metrics.figures._frame import add_header, header_height
from Metrics.figures._layout import charts
from Metrics.figures._options import NothingToDraw, Options
from Metrics.fits import MARGIN
from Metrics.width.layout import AT

_ROW = 0.15  # inches of a line of the table of exponents
_NAMES = 1.75  # inches beside it
_BESIDE = 3
"""The most groups side by side."""

_COLOURS = {
    "agrees": "#0072B2",
    "contradicts": "#D55E00",
    "pre-asymptotic": "#E69F00",
    "undecided": "#CC79A7",
    "": "0.55",
}
_WORDS = {"": "no prediction", "pre-asymptotic": "not yet asymptotic"}
_TOLERATED: dict[str, Any] = {"facecolor": "0.85", "edgecolor": "none"}


def draw_forest(cache: ExperimentCache, options: Options) -> Figure:
    """Every exponent with its interval beside its prediction, a panel per group.

    Raises:
        NothingToDraw: there are no exponents.
    """
    groups = (groups_of(cache) or cache.labels)[:MOST_GROUPS]
    rows = [
        (quantity, layer)
        for quantity in sorted(dict.fromkeys(q for _, q in quantities_of(cache)), key=_rate)
        for layer in _layers(cache, groups, quantity, options)
    ]
    if not rows:
        raise NothingToDraw(f"{cache.metric}: no exponents are drawn, as none was found")
    height = _ROW * len(rows)
    columns, header = min(len(groups), _BESIDE), header_height(2, options)
    figure, cells = charts(len(groups), header, columns, height, 0.0, left=_NAMES)
    for cell, group in zip(cells, groups, strict=True):
        _draw_exponents(cell.main, cache, group, rows)
        if len(groups) > 1:
            name = style.layer_title(group, cell.width, style.TITLE_SIZE, options.use_tex)
            cell.main.set_title(name, loc="left")
        if cell.at_bottom:
            cell.main.set_xlabel("exponent of the width", labelpad=2)
        cell.main.set_ylim(len(rows) - 0.4, -0.6)
        names = [
            style.plain(f"{quantity}  {layer}".rstrip(), options.use_tex)
            for quantity, layer in rows
        ]
        cell.main.set_yticks(range(len(rows)), names if cell.leftmost else [])
    add_header(figure, f"{cache.title}: exponents", _verdict_legend(cache), options)
    return figure


def _rate(quantity: str) -> float:
    """Orders losses at learning rates, of which groups may have others, behind all else."""
    text = quantity.removeprefix(AT)
    return 0.0 if text == quantity else float(text)


def _layers(
    cache: ExperimentCache, groups: Sequence[str], quantity: str, options: Options
) -> list[str]:
    fits = [f for group in groups for f in selected(cache.newest(group, quantity), options)]
    return list(dict.fromkeys(f.layer for f in fits))


def _draw_exponents(
    axes: Axes, cache: ExperimentCache, group: str, rows: Sequence[tuple[str, str]]
) -> None:
    for quantity in dict.fromkeys(quantity for quantity, _ in rows):
        for fit in cache.newest(group, quantity):
            if (quantity, fit.layer) not in rows:
                continue
            row, colour = rows.index((quantity, fit.layer)), _COLOURS[fit.verdict]
            if np.isfinite(fit.interval):
                ends = fit.exponent - fit.interval, fit.exponent + fit.interval
                axes.plot(ends, (row, row), color=colour, linewidth=1.4, zorder=2)
            axes.plot(fit.exponent, row, "o", color=colour, markersize=3, zorder=3)
            if fit.predicted is not None:
                place = float(fit.predicted)
                axes.plot(place, row, "k|", markersize=8, zorder=4)
                corner = (place - MARGIN, row - 0.35)
                axes.add_patch(Rectangle(corner, 2 * MARGIN, 0.7, zorder=1, **_TOLERATED))
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, (low + high - 1) / 2), max(high, (low + high + 1) / 2))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="x", color="0.9", linewidth=0.5)
    axes.tick_params(left=False)


def _verdict_legend(cache: ExperimentCache) -> tuple[list[Any], list[str]]:
    drawn = {f.verdict for quantity in quantities_of(cache) for f in cache.newest(*quantity)}
    verdicts = [v for v in _COLOURS if v in drawn]
    handles: list[Any] = [
        Line2D([], [], color=_COLOURS[v], marker="o", markersize=3, linewidth=1.4) for v in verdicts
    ]
    labels = [_WORDS.get(v, v) for v in verdicts]
    if set(verdicts) - {""}:
        tick = Line2D([], [], color="k", marker="|", markersize=8, linestyle="")
        handles += [tick, Patch(**_TOLERATED)]
        labels += ["theory", f"± {MARGIN:g}"]
    return handles, labels
