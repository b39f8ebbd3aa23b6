"""Losses over learning rates at every width, where they are least, and losses at a fixed one.

Of seeds, geometric means are drawn, with Student's 95 % interval of the mean of the logarithms.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from Metrics.figures import _style as style
from Metrics.figures._cache import Array
from Metrics.figures._experiment import ExperimentCache, FittedExponent, joined
from Metrics.figures._exponents import LIMIT, place_of_infinity, width_axis
from Metrics.figures._frame import Legend, add_header, header_height
from Metrics.figures._layout import charts
from Metrics.figures._options import NothingToDraw, Options
from Metrics.fits import interval_of_mean, minimum

MANY = 4
"""The most groups of a page, each with three panels."""

_LOSS = ("train loss", "network")
_BEST = "best lr"
_BAND = 0.18  # opacity


@dataclass(frozen=True)
class Mean:
    """Of positive numbers [S] of seeds: the geometric mean, and the factor of its interval."""

    value: float
    factor: float

    @staticmethod
    def of(values: Array) -> "Mean":
        logs = np.log(values)
        half = interval_of_mean(logs)
        with np.errstate(over="ignore"):  # two seeds that have little in common
            return Mean(float(np.exp(logs.mean())), float(np.exp(half)) if len(logs) > 1 else 1.0)

    @property
    def ends(self) -> tuple[float, float]:
        """Of the interval."""
        return self.value / self.factor, self.value * self.factor


def draw_transfer(cache: ExperimentCache, options: Options) -> Figure:
    """For each group: last losses over learning rates, the best rate over widths, and training
    at one learning rate.

    Raises:
        NothingToDraw: no loss was evaluated.
    """
    cache = joined(cache)
    groups = [g for g in cache.labels if np.isfinite(_last(cache)[cache.groups == g]).any()]
    groups = groups[:MANY]
    if not groups:
        raise NothingToDraw(f"{cache.metric}: not drawn, no training loss was evaluated")
    widths = np.unique(cache.widths)
    finite = widths[np.isfinite(widths)].tolist()
    shades = colormaps["viridis"](np.linspace(0.05, 0.85, len(finite)))
    colours = dict(zip(finite, shades, strict=True))
    if len(finite) < len(widths):
        colours[np.inf] = "k"
    figure, cells = charts(3 * len(groups), header_height(3, options), 3, 1.4, 0.0)
    for row, group in enumerate(groups):
        over_rates, over_widths, over_steps = cells[3 * row : 3 * row + 3]
        _losses(over_rates.main, cache, group, colours)
        swept = len(np.unique(cache.rates[cache.groups == group])) > 1
        (_best if swept else _last_over_widths)(over_widths.main, cache, group, colours)
        rate = _at_fixed_rate(over_steps.main, cache, group, colours)
        name = "" if group == "all" else style.plain(group, options.use_tex)
        over_rates.main.set_title(name or "last loss", loc="left")
        said = _movement(cache, group) if swept else f"step {cache.steps[-1]}"
        over_widths.main.set_title(said, loc="left")
        over_steps.main.set_title(f"at learning rate {rate:g}", loc="left")
        over_rates.main.set_ylabel(cache.ylabel)
        over_widths.main.set_ylabel("best learning rate" if swept else cache.ylabel)
        labels = ("learning rate", "width", "step")
        for cell, label in zip(cells[3 * row : 3 * row + 3], labels, strict=True):
            cell.main.set_xlabel(label, labelpad=2)
    add_header(figure, cache.title, _legend(cache, colours), options)
    return figure


def _legend(cache: ExperimentCache, colours: Mapping[float, Any]) -> Legend:
    handles: list[Any] = [Line2D([], [], color=colours[n], **style.MEASURED) for n in colours]
    names = [str(int(n)) if np.isfinite(n) else r"$\infty$" for n in colours]
    labels = [f"width {name}" for name in names]
    if len(np.unique(cache.seeds)) > 1:
        handles.append(Patch(color=style.GREY, alpha=_BAND, linewidth=0))
        labels.append("95 % interval over seeds")
    handles.append(Line2D([], [], color=style.GREY, marker="v", markersize=5, linestyle=""))
    labels.append("least")
    if (ended := int((cache.diverged >= 0).sum())) > 0:
        handles.append(Line2D([], [], color=style.GREY, marker="x", markersize=4, linestyle=""))
        labels.append(f"diverged: {ended} of {len(cache.diverged)} runs")
    return handles, labels


def _last(cache: ExperimentCache) -> Array:
    """[R] the loss of each run at the last step: infinite if it diverged, NaN if it is unknown."""
    return np.where(cache.diverged >= 0, np.inf, cache.curves[_LOSS][:, -1])


def _by_rate(cache: ExperimentCache, some: Any) -> Iterator[tuple[float, Array]]:
    """Learning rates, ascending, and the known last losses of some runs there."""
    losses = _last(cache)
    known = some & ~np.isnan(losses)
    for rate in np.unique(cache.rates[known]):
        yield float(rate), losses[known & (cache.rates == rate)]


def _losses(axes: Axes, cache: ExperimentCache, group: str, colours: Mapping[float, Any]) -> None:
    """Curves through the learning rates at which no seed diverged; the others are crossed out."""
    axes.set_xscale("log")
    drawn = []
    for line, (n, colour) in enumerate(colours.items()):
        some = (cache.groups == group) & (cache.widths == n)
        found = [(rate, losses) for rate, losses in _by_rate(cache, some)]
        whole = {rate: Mean.of(losses) for rate, losses in found if np.isfinite(losses).all()}
        drawn += [mean.value for mean in whole.values()]
        axes.plot([*whole], [m.value for m in whole.values()], ".-", color=colour, **_THIN_DOTS)
        for rate, losses in found:
            if rate not in whole:
                _cross_out(axes, rate, losses, line, colour)
        best, least = _minima(cache, some)
        if len(best):
            across, down = Mean.of(best), Mean.of(least)
            drawn.append(down.value)
            axes.plot(across.value, down.value, "v", color=colour, markersize=5, zorder=5)
            axes.plot(across.ends, [down.value] * 2, color=colour, linewidth=1.0, zorder=5)
    rates = cache.rates[cache.groups == group]
    beside = max(1.3, float(rates.max() / rates.min()) ** 0.05)
    axes.set_xlim(rates.min() / beside, rates.max() * beside)
    if rates.min() < rates.max():
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
    else:  # mostly between two powers of ten
        axes.set_xticks(rates[:1], [style.number(rates[0])])
    axes.xaxis.set_minor_locator(NullLocator())
    for n, colour in colours.items():
        some = (cache.groups == group) & (cache.widths == n)
        found = [each for each in _by_rate(cache, some) if np.isfinite(each[1]).all()]
        _band(axes, [r for r, _ in found], [Mean.of(losses) for _, losses in found], colour)
    _limit(axes, drawn, _slowest(cache, group))


def _slowest(cache: ExperimentCache, group: str) -> float:
    """The largest loss at the smallest learning rate: about that of untrained networks."""
    _, losses = next(_by_rate(cache, cache.groups == group))
    return float(losses.max())


def _limit(axes: Axes, losses: Sequence[float], usual: float = np.inf) -> None:
    """Show the means, but not what is far above ``usual``: runs on their way to diverging.

    Intervals of two or three seeds may be wider than that.
    """
    highest = min(max(losses, default=1.0), 3 * usual)
    style.log_ticks(axes, min(losses, default=0.1) / 1.5, highest * 1.5)


def _band(axes: Axes, x: Sequence[float], means: Sequence[Mean], colour: Any) -> None:
    """The intervals of means, shaded."""
    low, high = ([mean.ends[i] for mean in means] for i in (0, 1))
    axes.fill_between(x, low, high, color=colour, alpha=_BAND, linewidth=0)


_THIN_DOTS: dict[str, Any] = {"markersize": 3, "linewidth": 1.2}


def _cross_out(axes: Axes, rate: float, losses: Array, line: int, colour: Any) -> None:
    """A cross above a learning rate, paler the fewer of its seeds diverged; the others as dots."""
    finite = losses[np.isfinite(losses)]
    axes.plot([rate] * len(finite), finite, ".", color=colour, markersize=3)
    axes.plot(
        rate,
        1.0 - 0.06 * line,
        "x",
        color=colour,
        alpha=1 - 0.7 * len(finite) / len(losses),
        markersize=4,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
    )


def _minima(cache: ExperimentCache, some: Any) -> tuple[Array, Array]:
    """The best learning rates of seeds, and their losses there, where these are known."""
    found = []
    for seed in np.unique(cache.seeds[some]):
        curve = [
            (rate, loss.mean()) for rate, loss in _by_rate(cache, some & (cache.seeds == seed))
        ]
        if curve:
            found.append(minimum(*np.array(curve).T))
    known = np.array(found).reshape(-1, 2)
    known = known[np.isfinite(known).all(1)]
    return known[:, 0], known[:, 1]


def _best(axes: Axes, cache: ExperimentCache, group: str, colours: Mapping[float, Any]) -> None:
    """The best learning rate of each width and seed, if it is inside of the sweep, and its fit."""
    widths = _width_axis(axes, cache)
    rates = cache.rates[cache.groups == group]
    style.log_ticks(axes, rates.min() / 1.2, rates.max() * 1.2)
    means: dict[float, float] = {}
    for n, colour in colours.items():
        best, _ = _minima(cache, (cache.groups == group) & (cache.widths == n))
        if not len(best):
            continue
        mean, x = Mean.of(best), n if np.isfinite(n) else place_of_infinity(widths)
        if np.isfinite(n):
            means[n] = mean.value
        axes.plot([x] * len(best), best, ".", color=colour, markersize=2.5, alpha=0.6)
        axes.plot(x, mean.value, "v", color=colour, markersize=5, zorder=5)
        axes.plot([x, x], mean.ends, color=colour, linewidth=1.0, zorder=5)
    fit = _fit(cache, group)
    if fit is not None and means:
        _power(axes, means, fit.exponent, {"color": style.GREY, **style.THIN})
        if fit.predicted is not None:
            _power(axes, means, float(fit.predicted), style.EXACT)


def _width_axis(axes: Axes, cache: ExperimentCache) -> Array:
    """With infinity, if some runs are there; returns the finite widths of all."""
    widths: Array = cache.widths[np.isfinite(cache.widths)].astype(int)
    width_axis(axes, widths, len(widths) < len(cache.widths))
    return widths


def _last_over_widths(
    axes: Axes, cache: ExperimentCache, group: str, colours: Mapping[float, Any]
) -> None:
    """The last loss of each width, where all runs have one learning rate."""
    widths, drawn = _width_axis(axes, cache), []
    for n, colour in colours.items():
        losses = _last(cache)[(cache.groups == group) & (cache.widths == n)]
        losses = losses[np.isfinite(losses)]
        if not len(losses):
            continue
        x = n if np.isfinite(n) else place_of_infinity(widths)
        mean = Mean.of(losses)
        drawn.append(mean.value)
        axes.plot([x] * len(losses), losses, ".", color=colour, markersize=2.5, alpha=0.6)
        look = {"marker": "o", "markersize": 4} if np.isfinite(n) else LIMIT
        axes.plot(x, mean.value, color=colour, zorder=5, **look)
        axes.plot([x, x], mean.ends, color=colour, linewidth=1.0, zorder=5)
    _limit(axes, drawn)


def _power(axes: Axes, means: Mapping[float, float], exponent: float, look: Any) -> None:
    """A power of the width through the middle of the means."""
    widths = np.array([*means], float)
    logs = np.log([*means.values()]) - exponent * np.log(widths)
    axes.plot(widths, np.exp(logs.mean()) * widths**exponent, **look)


def _fit(cache: ExperimentCache, group: str) -> FittedExponent | None:
    return next((f for f in cache.newest(group, _BEST)), None)


def _movement(cache: ExperimentCache, group: str) -> str:
    fit = _fit(cache, group)
    if fit is None:
        return "the best one is at an end"
    return f"moves as {style.width_power(fit.exponent, fit.interval)}"


def _at_fixed_rate(
    axes: Axes, cache: ExperimentCache, group: str, colours: Mapping[float, Any]
) -> float:
    """Training of every width at one learning rate, the middle one of those at which no run
    diverged; wider ones coincide where curves collapse."""
    members = cache.groups == group
    losses = dict(_by_rate(cache, members))
    sound = [rate for rate, found in losses.items() if np.isfinite(found).all()] or [*losses]
    rate = sound[len(sound) // 2]
    bands: list[tuple[list[float], list[Mean], Any]] = []
    for n, colour in colours.items():
        curves = cache.curves[_LOSS][members & (cache.widths == n) & (cache.rates == rate)]
        curves = curves[np.isfinite(curves).any(1)]
        known = np.isfinite(curves).all(0) & bool(len(curves))
        if known.any():
            means = [Mean.of(values) for values in curves[:, known].T]
            bands.append((cache.steps[known].tolist(), means, colour))
            axes.plot(bands[-1][0], [m.value for m in means], color=colour, **style.THIN)
    for band in bands:
        _band(axes, *band)
    _limit(axes, [mean.value for _, means, _ in bands for mean in means])
    return rate
