"""Means and variances of networks' outputs beside those of infinite width: over widths and steps.

Shape letters: W widths, T steps, K outputs that are shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from Metrics.figures import _style as style
from Metrics.figures._cache import Array
from Metrics.figures._experiment import ExperimentCache, FittedExponent
from Metrics.figures._exponents import size_axis, width_axis
from Metrics.figures._frame import Legend, add_header, header_height
from Metrics.figures._layout import charts
from Metrics.figures._options import NothingToDraw, Options

MANY = 2
"""The most groups of a page, each with six panels."""

_PANELS = 6
_BAND = 0.18  # opacity
_TWO = 1.96  # standard deviations


@dataclass(frozen=True)
class _Group:
    """What a group's networks say together.

    Attributes:
        widths: [W], finite.
        steps: [T].
        tables: [W, T] by name; of "mean" and "variance" [W + 1, T, K], infinite width last.
        fits: the newest exponents, by quantity.
        colours: [W] of the widths.
    """

    widths: Array
    steps: Array
    tables: Mapping[str, Array]
    fits: Mapping[str, FittedExponent]
    colours: Sequence[Any]

    @property
    def spreads(self) -> bool:
        """Whether networks differ at infinite width."""
        return bool(np.nanmax(self.tables["variance"][-1]) > 0)


def draw_ensemble(cache: ExperimentCache, options: Options) -> Figure:
    """For each group: distances of mean and variance from infinite width, over widths and over
    steps, some outputs of the widest networks, and how many lie where they should.

    Raises:
        NothingToDraw: no group has networks and their limit.
    """
    labels = list(dict.fromkeys(cache.ensembles.get("group", np.empty(0)).tolist()))[:MANY]
    if not labels:
        raise NothingToDraw(f"{cache.metric}: not drawn, no networks and their limit were measured")
    header = header_height(3, options)
    figure, cells = charts(_PANELS * len(labels), header, 3, 1.4, 0.0)
    for row, label in enumerate(labels):
        group = _group(cache, label)
        six = [cell.main for cell in cells[_PANELS * row : _PANELS * (row + 1)]]
        last = f", step {int(_known(group)[-1])}"
        name = "" if label == "all" else f"{label}: "
        titles = [f"{name}mean{last}", f"variance{last}", "outputs of the widest"]
        titles += ["mean", "variance", "in 95 %: means, variances (dashed)"]
        for axes, quantity, sizes in zip(six, _QUANTITIES, (_mean, _variance), strict=False):
            _over_widths(axes, group, sizes(group), group.fits.get(quantity))
            _tell_exponent(axes, group.fits.get(quantity))
        _outputs(six[2], group)
        _means(six[3], group)
        _variances(six[4], group)
        _within(six[5], group)
        for axes, title in zip(six, titles, strict=True):
            axes.set_title(style.plain(title, options.use_tex), loc="left")
        for axes, text in zip(six, ("width", "width", *["step"] * 4), strict=True):
            axes.set_xlabel(text, labelpad=2)
            if text == "step":
                style.x_ticks(axes, group.steps, whole=True)
        names = ("standard deviations", "relative", "", "standard deviations", "ratio", "fraction")
        if not group.spreads:
            size = "of the outputs' size"
            names = (size, f"{size}, squared", "", size, f"{size}, squared", "")
        for axes, text in zip(six, names, strict=True):
            axes.set_ylabel(text, labelpad=2)
    add_header(figure, cache.title, _legend(_group(cache, labels[0])), options)
    return figure


def _legend(group: _Group) -> Legend:
    handles: list[Any] = [Line2D([], [], color=c, **style.MEASURED) for c in group.colours]
    labels = [f"{n:.0f}" for n in group.widths]
    labels[0] = f"width {labels[0]}"
    handles += [Line2D([], [], **style.EXACT), Line2D([], [], **style.PAPER)]
    handles.append(Patch(color=style.GREY, alpha=_BAND, linewidth=0))
    return handles, [*labels, "theory", "noise alone, 95 %", "95 %"]


def _group(cache: ExperimentCache, label: str) -> _Group:
    rows = cache.ensembles["group"] == label
    own = {name: values[rows] for name, values in cache.ensembles.items() if name != "group"}
    finite = np.isfinite(own["width"])
    shown = ("mean", "variance")
    tables = {n: v if n in shown else v[finite] for n, v in own.items() if n != "width"}
    fits = {fit.quantity: fit for q in _QUANTITIES for fit in cache.newest(label, q)}
    widths = own["width"][finite]
    colours = list(colormaps["viridis"](np.linspace(0.05, 0.85, len(widths))))
    return _Group(widths, cache.steps.astype(float), tables, fits, colours)


_QUANTITIES = ("deviation of the mean", "deviation of the variance")


def _known(group: _Group) -> Array:
    """The steps at which the networks of some width were compared."""
    steps: Array = group.steps[np.isfinite(group.tables["deviation of the variance"]).any(0)]
    return steps


def _mean(group: _Group) -> tuple[Array, Array, Array]:
    """At every width and step [W, T]: the mean's distance, and the ends of its interval."""
    square, half = (
        group.tables["squared deviation of the mean"],
        group.tables["interval of the mean"],
    )
    middle, low, high = (np.sqrt(np.maximum(square + side * half, 0)) for side in (0, -1, 1))
    return middle, low, high


def _variance(group: _Group) -> tuple[Array, Array, Array]:
    """The same of the variance's, by its size."""
    value, half = (
        group.tables["deviation of the variance"],
        group.tables["interval of the variance"],
    )
    size = np.abs(value)
    return size, np.maximum(size - half, 0), size + half


def _over_widths(
    axes: Axes, group: _Group, sizes: tuple[Array, Array, Array], fit: FittedExponent | None
) -> None:
    """At the last step, with intervals; an arrow down from the end of one that holds 0."""
    at = int(np.flatnonzero(group.steps == _known(group)[-1])[0])
    middle, low, high = (values[:, at] for values in sizes)
    known = np.isfinite(middle)
    sure, least = known & (low > 0), np.nanmin(np.where(middle > 0, middle, np.nan))
    axes.set_yscale("log")
    for n, one, a, b, colour in zip(group.widths, middle, low, high, group.colours, strict=True):
        if a > 0:
            axes.plot([n, n], [a, b], color=colour, linewidth=1.2)
            axes.plot(n, one, "o", color=colour, markersize=3.5, zorder=3)
        elif np.isfinite(b):
            axes.plot([n, n], [least / 2, b], color=colour, linewidth=0.8)
            axes.plot(n, b, "_", color=colour, markersize=6)
            axes.plot(n, least / 2, "v", color=colour, markersize=3)
    if sure.any():
        power = -1.0 if fit is None or fit.predicted is None else float(fit.predicted)
        factor = np.exp(np.log(middle[sure] / group.widths[sure] ** power).mean())
        axes.plot(group.widths, factor * group.widths**power, **style.EXACT)
    width_axis(axes, group.widths.astype(int))
    size_axis(axes)


def _tell_exponent(axes: Axes, fit: FittedExponent | None) -> None:
    """In the corner of a panel, if there is one."""
    if fit is None:
        return
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "top"}
    shown = style.width_power(fit.exponent, fit.interval)
    axes.text(0.98, 0.98, shown, fontsize=style.SMALL_SIZE, **place)


def _means(axes: Axes, group: _Group) -> None:
    """Distances of means over steps, and where networks of the limit's mean would be."""
    middle, low, high = _mean(group)
    noise = np.sqrt(group.tables["noise of the mean"])
    for row, colour in enumerate(group.colours):
        known = np.isfinite(middle[row])
        steps = group.steps[known]
        axes.plot(steps, middle[row, known], color=colour, **style.THIN)
        axes.fill_between(
            steps, low[row, known], high[row, known], color=colour, alpha=_BAND, linewidth=0
        )
    known = np.isfinite(noise[-1])
    axes.plot(group.steps[known], noise[-1, known], **style.PAPER)
    axes.axhline(0.0, **style.EXACT)


def _variances(axes: Axes, group: _Group) -> None:
    """Sample variances over those of infinite width, or themselves where these are 0, by step."""
    value, half = (
        group.tables["deviation of the variance"] + group.spreads,
        group.tables["interval of the variance"],
    )
    for row, colour in enumerate(group.colours):
        known = np.isfinite(value[row])
        steps, one, wide = group.steps[known], value[row, known], half[row, known]
        axes.plot(steps, one, color=colour, **style.THIN)
        axes.fill_between(steps, one - wide, one + wide, color=colour, alpha=_BAND, linewidth=0)
    axes.axhline(float(group.spreads), **style.EXACT)


def _outputs(axes: Axes, group: _Group) -> None:
    """Some outputs: means and 95 % of networks at infinite width, and those of the widest."""
    mean, variance = group.tables["mean"], group.tables["variance"]
    known = np.isfinite(mean[-1]).any(1)
    for k, colour in zip(range(mean.shape[2]), style.colours(mean.shape[2]), strict=True):
        steps, middle = group.steps[known], mean[-1, known, k]
        half = _TWO * np.sqrt(variance[-1, known, k])
        axes.plot(steps, middle, **style.EXACT)
        axes.fill_between(
            steps, middle - half, middle + half, color=colour, alpha=_BAND, linewidth=0
        )
        measured = np.isfinite(mean[-2, :, k])
        some = np.flatnonzero(measured)[:: -(-int(measured.sum()) // 8)]
        beside = (k - 1) * 0.012 * np.ptp(group.steps)
        at, half = group.steps[some] + beside, _TWO * np.sqrt(variance[-2, some, k])
        axes.errorbar(
            at, mean[-2, some, k], half, fmt="o", color=colour, markersize=2.5, linewidth=0.9
        )


def _within(axes: Axes, group: _Group) -> None:
    """How many sample means, and (dashed) variances, lie in the intervals of infinite width."""
    if not group.spreads:
        axes.set_visible(False)
        return
    for row, colour in enumerate(group.colours):
        for name, look in (("means within", "-"), ("variances within", "--")):
            values = group.tables[name][row]
            known = np.isfinite(values)
            axes.plot(
                group.steps[known], values[known], color=colour, linestyle=look, linewidth=0.9
            )
    axes.axhline(0.95, **style.EXACT)
    axes.set_ylim(0, 1.05)
