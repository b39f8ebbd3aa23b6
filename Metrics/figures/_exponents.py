"""Powers of the width: sizes on logarithmic axes, and exponents beside their predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from Metrics.figures import _style as style
from Metrics.figures._cache import Array
from Metrics.figures._experiment import ExperimentCache, FittedExponent
from Metrics.figures._frame import add_header, header_height
from Metrics.figures._layout import charts
from Metrics.figures._options import NothingToDraw, Options, select_layers
from Metrics.width.edges import POWERS, edges
from Metrics.width.layout import FAN_IN, FAN_OUT

MOST_GROUPS = 12
"""Of which there are figures."""

_LEGEND = 1.15  # inches beside each panel
_NARROWEST = 4.0
"""The least quotient of the ends of an axis of sizes: what does not depend on the width is to
look so, too."""

_OWN_LABELS = {"rank": "rank", "ratio": "ratio", "share": "share", "diversity": "neurons"}
"""Labels of quantities that end so, where those of their metric do not fit them."""

LIMIT: dict[str, Any] = {"marker": "D", "markersize": 4, "linestyle": ""}
"""Of what is known at infinite width."""

_ZERO: dict[str, Any] = {"marker": "v", "markersize": 5, "linestyle": ""}
"""The same where a logarithmic axis has no place for it."""


def quantities_of(cache: ExperimentCache) -> list[tuple[str, str]]:
    """Groups and quantities that have exponents; mean absolute values go as mean squares do."""
    shown = [f for f in cache.fits if not f.quantity.startswith("mean ")]
    return list(dict.fromkeys((f.group, f.quantity) for f in shown))


def groups_of(cache: ExperimentCache) -> list[str]:
    """The groups that have exponents."""
    return list(dict.fromkeys(f.group for f in cache.fits))


def draw_sizes(cache: ExperimentCache, options: Options, group: str = "") -> Figure:
    """A panel per quantity of a group: sizes against the width, predicted slopes dashed.

    Args:
        cache: what was measured.
        options: of the figure.
        group: whose runs are shown; the first one's that have exponents, if none is named.

    Raises:
        NothingToDraw: there are no exponents.
    """
    measured = {quantity for quantity, _ in cache.curves}  # others are quotients of these
    group = group or next(iter(groups_of(cache)), "")
    panels = [
        (quantity, fits)
        for label, quantity in quantities_of(cache)
        if label == group and quantity in measured
        if (fits := selected(cache.newest(group, quantity), options))
    ]
    if not panels:
        raise NothingToDraw(f"{cache.metric}: not drawn, nothing was measured at two widths")
    layers = list(dict.fromkeys(f.layer for _, fits in panels for f in fits))
    colours = dict(zip(layers, style.colours(len(layers)), strict=True))
    columns, marked = 2 if len(panels) > 1 else 1, set[str]()
    figure, cells = charts(len(panels), header_height(2, options), columns, 1.45, _LEGEND)
    for cell, (quantity, fits) in zip(cells, panels, strict=True):
        handles = [_draw_layer(cell.main, cache, fit, colours[fit.layer]) for fit in fits]
        limits = {_draw_limit(cell.main, cache, fit, colours[fit.layer]) for fit in fits} - {""}
        marked |= limits
        width_axis(cell.main, cache.widths, bool(limits))
        size_axis(cell.main)
        name = style.layer_title(quantity, cell.width, style.TITLE_SIZE, options.use_tex)
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
            cell.main.set_ylabel(_OWN_LABELS.get(quantity.split()[-1], cache.ylabel))
    kinds = [Line2D([], [], color=style.GREY, **style.MEASURED)]
    labels = ["measured, with its exponent"]
    if any(fit.predicted is not None for _, fits in panels for fit in fits):
        kinds.append(Line2D([], [], **style.EXACT))
        labels.append("theory, its exponent in parentheses")
    for look, label in ((LIMIT, "infinite width"), (_ZERO, "0 at infinite width")):
        if look["marker"] in marked:
            kinds.append(Line2D([], [], color=style.GREY, **look))
            labels.append(label)
    title = cache.title if len(cache.labels) == 1 else f"{cache.title}: {group}"
    add_header(figure, title, (kinds, labels), options)
    return figure


def _label(fit: FittedExponent, fits: Sequence[FittedExponent]) -> str:
    """A fit's label; the network's is named where there are layers beside it."""
    return f"network {fit.label()}" if len(fits) > 1 and not fit.layer else fit.label()


def selected(fits: Sequence[FittedExponent], options: Options) -> list[FittedExponent]:
    """The exponents of the layers that are to be drawn."""
    wanted = select_layers([f.layer for f in fits], options.layers)
    return [f for f in fits if f.layer in wanted]


def _draw_layer(axes: Axes, cache: ExperimentCache, fit: FittedExponent, colour: Any) -> Line2D:
    """The seeds as dots, their geometric mean as a line, and the predicted curve through it."""
    x, y = points_of(cache, fit)
    axes.plot(x, y, ".", color=colour, markersize=2.5, alpha=0.5, zorder=1)
    widths = np.unique(x)
    means = np.array([np.exp(np.log(y[x == n]).mean()) for n in widths])
    (line,) = axes.plot(widths, means, color=colour, **style.MEASURED)
    if fit.predicted is not None:
        power = widths ** float(fit.predicted) / _corrections(cache, fit, widths)
        axes.plot(widths, power * np.exp(np.log(means / power).mean()), **style.EXACT)
    return line


def _corrections(cache: ExperimentCache, fit: FittedExponent, widths: Array) -> Array:
    """What was divided out before the exponent was fitted: 1 of most quantities."""
    inputs, outputs = (cache.curves.get((side, fit.layer)) for side in (FAN_IN, FAN_OUT))
    if fit.quantity not in POWERS or inputs is None or outputs is None:
        return np.ones(len(widths))
    known = {
        int(n): (float(o), float(i))
        for n, i, o in zip(cache.widths, inputs[:, 0], outputs[:, 0], strict=True)
        if np.isfinite(i)
    }
    found = edges(known)
    return np.array([found[int(n)] ** POWERS[fit.quantity] for n in widths])


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
    wider = max(1.0, (_NARROWEST * low / high) ** 0.5)
    low, high = low / wider, high * wider
    axes.set_yscale("linear")  # which a narrow range stays
    style.log_ticks(axes, low, high)
