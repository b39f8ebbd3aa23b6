"""Powers of the width: sizes on logarithmic axes, and exponents beside their predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from Metrics.figures import _style as style
from Metrics.figures._cache import Array
from Metrics.figures._experiment import ExperimentCache, FittedExponent
from Metrics.figures._frame import add_header, header_height
from Metrics.figures._layout import charts
from Metrics.figures._options import NothingToDraw, Options, select_layers
from Metrics.width.layout import AT

MANY = 12
"""The most panels of a page."""

_LEGEND = 1.15  # inches beside each panel
_ROW = 0.15  # inches of a line of the table of exponents
_NAMES = 1.75  # inches beside it

LIMIT: dict[str, Any] = {"marker": "D", "markersize": 4, "linestyle": ""}
"""Of what is known at infinite width."""

_ZERO: dict[str, Any] = {"marker": "v", "markersize": 5, "linestyle": ""}
"""The same where a logarithmic axis has no place for it."""

_COLOURS = {
    "agrees": "#0072B2",
    "contradicts": "#D55E00",
    "pre-asymptotic": "#E69F00",
    "undecided": "#CC79A7",
    "": "0.55",
}
_WORDS = {"": "no prediction", "pre-asymptotic": "not yet asymptotic"}


def quantities_of(cache: ExperimentCache) -> list[tuple[str, str]]:
    """Groups and quantities that have exponents; mean absolute values go as mean squares do."""
    shown = [f for f in cache.fits if not f.quantity.startswith("mean ")]
    return list(dict.fromkeys((f.group, f.quantity) for f in shown))


def draw_sizes(cache: ExperimentCache, options: Options) -> Figure:
    """A panel per group and quantity: sizes against the width, predicted slopes dashed.

    Raises:
        NothingToDraw: there are no exponents.
    """
    measured = {quantity for quantity, _ in cache.curves}  # others are quotients of these
    panels = [
        (group, quantity, fits)
        for group, quantity in [q for q in quantities_of(cache) if q[1] in measured][:MANY]
        if (fits := _selected(cache.newest(group, quantity), options))
    ]
    if not panels:
        raise NothingToDraw(f"{cache.metric}: not drawn, nothing was measured at two widths")
    layers = list(dict.fromkeys(f.layer for *_, fits in panels for f in fits))
    colours = dict(zip(layers, style.colours(len(layers)), strict=True))
    columns, marked = 2 if len(panels) > 1 else 1, set[str]()
    figure, cells = charts(len(panels), header_height(2, options), columns, 1.45, _LEGEND)
    for cell, (group, quantity, fits) in zip(cells, panels, strict=True):
        handles = [_draw_layer(cell.main, cache, fit, colours[fit.layer]) for fit in fits]
        limits = {_draw_limit(cell.main, cache, fit, colours[fit.layer]) for fit in fits} - {""}
        marked |= limits
        width_axis(cell.main, cache.widths, bool(limits))
        size_axis(cell.main)
        title = quantity if len(cache.labels) == 1 else f"{quantity}, {group}"
        name = style.layer_title(title, cell.width, style.TITLE_SIZE, options.use_tex)
        cell.main.set_title(f"{name}, step {fits[0].step}", loc="left")
        cell.main.legend(
            handles,
            [style.plain(_label(fit, fits), options.use_tex) for fit in fits],
            loc="upper left",
            bbox_to_anchor=(1.02, 1.02),
            frameon=False,
            borderpad=0,
            handlelength=1.0,
            handletextpad=0.4,
        )
        if cell.at_bottom:
            cell.main.set_xlabel("width", labelpad=2)
        if cell.leftmost:
            cell.main.set_ylabel(cache.ylabel)
    kinds = [Line2D([], [], color=style.GREY, **style.MEASURED), Line2D([], [], **style.EXACT)]
    labels = ["measured, with its exponent", "slope by theory (its exponent)"]
    for look, label in ((LIMIT, "infinite width"), (_ZERO, "0 at infinite width")):
        if look["marker"] in marked:
            kinds.append(Line2D([], [], color=style.GREY, **look))
            labels.append(label)
    add_header(figure, cache.title, (kinds, labels), options)
    return figure


def _label(fit: FittedExponent, fits: Sequence[FittedExponent]) -> str:
    """A fit's label; the network's is named where there are layers beside it."""
    return f"network {fit.label()}" if len(fits) > 1 and not fit.layer else fit.label()


def _selected(fits: Sequence[FittedExponent], options: Options) -> list[FittedExponent]:
    wanted = select_layers([f.layer for f in fits], options.layers)
    return [f for f in fits if f.layer in wanted]


def _draw_layer(axes: Axes, cache: ExperimentCache, fit: FittedExponent, colour: Any) -> Line2D:
    """The seeds as dots, their geometric mean as a line, and the predicted slope through it."""
    x, y = points_of(cache, fit)
    axes.plot(x, y, ".", color=colour, markersize=2.5, alpha=0.5, zorder=1)
    widths = np.unique(x)
    means = np.array([np.exp(np.log(y[x == n]).mean()) for n in widths])
    (line,) = axes.plot(widths, means, color=colour, **style.MEASURED)
    if fit.predicted is not None:
        power = widths ** float(fit.predicted)
        axes.plot(widths, power * np.exp(np.log(means / power).mean()), **style.EXACT)
    return line


def _draw_limit(axes: Axes, cache: ExperimentCache, fit: FittedExponent, colour: Any) -> str:
    """What the runs of infinite width have, at the right end; returns the marker, "" without."""
    limit, what = cache.limit, (fit.quantity, fit.layer or "network")
    if limit is None or what not in limit.curves:
        return ""
    values = limit.curves[what][limit.groups == fit.group, limit.steps.tolist().index(fit.step)]
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    size, look = float(np.abs(values).mean()), LIMIT if values.any() else _ZERO
    below: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    place = {} if values.any() else below
    x = place_of_infinity(cache.widths)
    axes.plot(x, size, color=colour, zorder=5, **look, **place)
    return str(look["marker"])


def points_of(cache: ExperimentCache, fit: FittedExponent) -> tuple[Array, Array]:
    """Widths and sizes of the runs that a fit is of."""
    curve = cache.curves[fit.quantity, fit.layer or "network"]
    values = np.abs(curve[:, cache.steps.tolist().index(fit.step)])
    known = (cache.groups == fit.group) & np.isfinite(values) & (values > 0)
    return cache.widths[known].astype(float), values[known]


def place_of_infinity(widths: Any) -> float:
    """Where it is drawn on the axis of finite widths: a fifth of it, or an octave, to the right."""
    first, last = float(np.min(widths)), float(np.max(widths))
    return float(last * max(2.0, (last / first) ** 0.2))


def width_axis(axes: Axes, widths: Any, infinity: bool = False) -> None:
    """Logarithmic, with ticks at the widths of the runs, of which some are left out if many.

    Args:
        axes: of the panel.
        widths: finite ones.
        infinity: whether there is room for it at the right end, and a tick.
    """
    axes.set_xscale("log")
    found = np.unique(widths)
    places = [*found[:: -(-len(found) // 5)].tolist()]
    names = [str(n) for n in places]
    end = place_of_infinity(found) if infinity else found[-1]
    axes.set_xlim(found[0] / 1.15, end * 1.15)
    if infinity:
        places, names = [*places, end], [*names, r"$\infty$"]
    axes.set_xticks(places, names)
    axes.xaxis.set_minor_locator(NullLocator())


def size_axis(axes: Axes) -> None:
    """Logarithmic, with few ticks; after curves are drawn."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yscale("linear")  # which a narrow range stays
    style.log_ticks(axes, low, high)


def draw_forest(cache: ExperimentCache, options: Options) -> Figure:
    """Every exponent with its interval beside its prediction, a column per group.

    Raises:
        NothingToDraw: there are no exponents.
    """
    groups = cache.labels[:3]
    rows = [
        (quantity, layer)
        for quantity in sorted(dict.fromkeys(q for _, q in quantities_of(cache)), key=_rate)
        for layer in _layers(cache, groups, quantity, options)
    ]
    if not rows:
        raise NothingToDraw(f"{cache.metric}: no exponents are drawn, as none was found")
    height = _ROW * len(rows)
    figure, cells = charts(
        len(groups), header_height(2, options), len(groups), height, 0.0, left=_NAMES
    )
    for cell, group in zip(cells, groups, strict=True):
        _draw_exponents(cell.main, cache, group, rows)
        if len(groups) > 1:
            cell.main.set_title(style.plain(group, options.use_tex), loc="left")
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
    fits = [f for group in groups for f in _selected(cache.newest(group, quantity), options)]
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
                axes.plot(float(fit.predicted), row, "k|", markersize=8, zorder=4)
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
    tick = Line2D([], [], color="k", marker="|", markersize=8, linestyle="")
    return [*handles, tick], [*(_WORDS.get(v, v) for v in verdicts), "theory"]
