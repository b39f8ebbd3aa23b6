"""Losses over learning rates at every width, where they are least, and losses at a fixed one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from Metrics.figures import _style as style
from Metrics.figures._cache import Array
from Metrics.figures._experiment import ExperimentCache, FittedExponent
from Metrics.figures._exponents import size_axis, width_axis
from Metrics.figures._frame import add_header, header_height
from Metrics.figures._layout import charts
from Metrics.figures._options import NothingToDraw, Options
from Metrics.fits import minimum

MANY = 4
"""The most groups of a page, each with three panels."""

_LOSS = ("train loss", "network")
_BEST = "best lr"


def draw_transfer(cache: ExperimentCache, options: Options) -> Figure:
    """For each group: last losses over learning rates, the best rate over widths, and training
    at one learning rate, that of the middle.

    Raises:
        NothingToDraw: no loss was evaluated.
    """
    groups = [g for g in cache.labels if np.isfinite(_last(cache)[cache.groups == g]).any()]
    groups = groups[:MANY]
    if not groups:
        raise NothingToDraw(f"{cache.metric}: not drawn, no training loss was evaluated")
    widths = np.unique(cache.widths)
    shades = colormaps["viridis"](np.linspace(0.05, 0.85, len(widths)))
    colours = dict(zip(widths.tolist(), shades, strict=True))
    figure, cells = charts(3 * len(groups), header_height(3, options), 3, 1.4, 0.0)
    for row, group in enumerate(groups):
        over_rates, over_widths, over_steps = cells[3 * row : 3 * row + 3]
        _losses(over_rates.main, cache, group, colours)
        _best(over_widths.main, cache, group)
        rate = _at_fixed_rate(over_steps.main, cache, group, colours)
        name = "" if group == "all" else style.plain(group, options.use_tex)
        over_rates.main.set_title(name or "loss over learning rates", loc="left")
        over_widths.main.set_title(_movement(cache, group), loc="left")
        over_steps.main.set_title(f"at learning rate {rate:g}", loc="left")
        over_rates.main.set_ylabel(cache.ylabel)
        over_widths.main.set_ylabel("best learning rate")
        labels = ("learning rate", "width", "step")
        for cell, label in zip(cells[3 * row : 3 * row + 3], labels, strict=True):
            cell.main.set_xlabel(label, labelpad=2)
    handles = [Line2D([], [], color=colours[n], **style.MEASURED) for n in colours]
    add_header(figure, cache.title, (handles, [f"width {n}" for n in colours]), options)
    return figure


def _last(cache: ExperimentCache) -> Array:
    """[R] the loss of each run at the last step; NaN where it has not come so far."""
    last: Array = cache.curves[_LOSS][:, -1]
    return last


def _by_rate(
    cache: ExperimentCache, values: Array, members: NDArray[np.bool_]
) -> tuple[Array, Array]:
    """Learning rates and the mean over seeds of some runs' finite values."""
    known = members & np.isfinite(values)
    rates = np.unique(cache.rates[known])
    means = [values[known & (cache.rates == rate)].mean() for rate in rates]
    return rates, np.array(means)


def _losses(axes: Axes, cache: ExperimentCache, group: str, colours: Mapping[int, Any]) -> None:
    for n, colour in colours.items():
        rates, losses = _by_rate(cache, _last(cache), _of(cache, group) & (cache.widths == n))
        if len(rates):
            axes.plot(rates, losses, ".-", color=colour, markersize=3, linewidth=1.2)
            best = losses.argmin()
            axes.plot(rates[best], losses[best], "v", color=colour, markersize=5, zorder=5)
    axes.set_xscale("log")
    size_axis(axes)


def _best(axes: Axes, cache: ExperimentCache, group: str) -> None:
    """The best learning rate of each width and seed, if it is inside of the sweep."""
    losses = _last(cache)
    for n in np.unique(cache.widths):
        for seed in np.unique(cache.seeds):
            some = _of(cache, group) & (cache.widths == n) & (cache.seeds == seed)
            rates, values = _by_rate(cache, losses, some)
            if len(rates):
                axes.plot(n, minimum(rates, values)[0], ".", color="#0072B2", markersize=4)
    width_axis(axes, cache.widths)
    rates = cache.rates[_of(cache, group)]
    style.log_ticks(axes, rates.min() / 1.2, rates.max() * 1.2)


def _fit(cache: ExperimentCache, group: str) -> FittedExponent | None:
    return next((f for f in cache.newest(group, _BEST)), None)


def _movement(cache: ExperimentCache, group: str) -> str:
    fit = _fit(cache, group)
    if fit is None:
        return "the best one is at an end"
    interval = f"±{fit.interval:.2f}" if np.isfinite(fit.interval) else ""
    return f"moves as width^{fit.exponent:.2f}{interval}".replace("-", "−")


def _at_fixed_rate(
    axes: Axes, cache: ExperimentCache, group: str, colours: Mapping[int, Any]
) -> float:
    """Training of every width at one learning rate; wider ones coincide where curves collapse."""
    members = _of(cache, group)
    rates = np.unique(cache.rates[members])
    rate = float(rates[len(rates) // 2])
    for n, colour in colours.items():
        some = members & (cache.widths == n) & (cache.rates == rate)
        curves = cache.curves[_LOSS][some]
        known = np.isfinite(curves).all(0)
        if some.any() and known.any():
            axes.plot(cache.steps[known], curves[:, known].mean(0), color=colour, **style.THIN)
    size_axis(axes)
    return rate


def _of(cache: ExperimentCache, group: str) -> NDArray[np.bool_]:
    members: NDArray[np.bool_] = cache.groups == group
    return members
