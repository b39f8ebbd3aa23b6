"""Outputs of untrained networks beside the Gaussian that they are at infinite width.

Shape letters: R runs, N examples, C outputs.
"""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from Metrics.figures import _style as style
from Metrics.figures._cache import Array
from Metrics.figures._experiment import ExperimentCache
from Metrics.figures._frame import add_header, header_height
from Metrics.figures._layout import charts
from Metrics.figures._options import NothingToDraw, Options

MANY = 6
"""The most groups of a page."""

_BINS = np.linspace(-5, 5, 41)


def draw_histogram(cache: ExperimentCache, options: Options) -> Figure:
    """A panel per group: the density of outputs over their size, a line for each width.

    The size is that at infinite width, if a run of it was measured and it is not 0; else their own.

    Raises:
        NothingToDraw: no outputs were measured.
    """
    groups = [g for g in cache.labels if np.isfinite(cache.outputs[cache.groups == g]).any()]
    if not groups:
        raise NothingToDraw(f"{cache.metric}: no histogram, there are no outputs of step 0")
    groups = groups[:MANY]
    widths = np.unique(cache.widths)
    shades = dict(
        zip(widths, colormaps["viridis"](np.linspace(0.05, 0.85, len(widths))), strict=True)
    )
    columns = min(len(groups), 2)
    figure, cells = charts(len(groups), header_height(len(groups), options), columns, 1.9, 0.0)
    for cell, group in zip(cells, groups, strict=True):
        most, own = 0, cache.groups == group
        is_known = _sizes_at_infinity(cache, own) is not None
        for n, colour in shades.items():
            rows = own & (cache.widths == n)
            sizes = _sizes_at_infinity(cache, rows) if is_known else None
            ratios = standardised(cache.outputs[rows], sizes)
            most = max(most, len(ratios))
            _density(cell.main, ratios, colour)
        _gaussian(cell.main, lowest=0.5 / (most * (_BINS[1] - _BINS[0])))
        if len(groups) > 1:
            cell.main.set_title(style.plain(group, options.use_tex), loc="left")
        of = "standard deviation at infinite width" if is_known else "root mean square"
        cell.main.set_xlabel(f"output / its {of}", labelpad=2)
        if cell.leftmost:
            cell.main.set_ylabel("density")
    handles: list[Any] = [Line2D([], [], color=shades[n], **style.MEASURED) for n in widths]
    labels = [*(f"width {n}" for n in widths), "Gaussian"]
    add_header(figure, cache.title, ([*handles, Line2D([], [], **style.EXACT)], labels), options)
    return figure


def _sizes_at_infinity(cache: ExperimentCache, rows: NDArray[np.bool_]) -> Array | None:
    """[R, N, 1] the standard deviations of the outputs for each example of some runs, by the runs
    of infinite width with the same examples; ``None`` if one is 0 or unknown."""
    limit, count = cache.limit, cache.outputs.shape[1]
    names = [("second moment", f"example {i}") for i in range(count)]
    if limit is None or any(name not in limit.curves for name in names):
        return None
    known = {
        key: [limit.curves[name][row, 0] for name in names]
        for row, key in enumerate(zip(limit.groups, limit.data_seeds, strict=True))
    }
    keys = zip(cache.groups[rows], cache.data_seeds[rows], strict=True)
    moments = np.array([known.get(key, [0.0] * count) for key in keys])
    return np.sqrt(moments)[..., None] if (moments > 0).all() else None


def standardised(outputs: Array, sizes: Array | None = None) -> Array:
    """Outputs [R, N, C] of runs of one width, each over the size of its example.

    Args:
        outputs: of the runs.
        sizes: [R, N, 1]; left out, the root mean squares over runs and outputs.

    Returns:
        flat, without what is not known.
    """
    size = np.sqrt(np.nanmean(np.square(outputs), axis=(0, 2), keepdims=True))
    size = size if sizes is None else sizes
    ratios: Array = (outputs / np.where(size > 0, size, np.nan)).ravel()
    return ratios[np.isfinite(ratios)]


def _density(axes: Axes, ratios: Array, colour: Any) -> None:
    """Steps of a histogram; bins without an output are left out, on an axis of logarithms."""
    counts, _ = np.histogram(ratios, _BINS)
    density = np.where(counts, counts / (len(ratios) * np.diff(_BINS)), np.nan)
    axes.stairs(density, _BINS, color=colour, linewidth=1.2)


def _gaussian(axes: Axes, lowest: float) -> None:
    """The curve at infinite width, and axes that show a bin with a single output."""
    x = np.linspace(_BINS[0], _BINS[-1], 201)
    axes.plot(x, np.exp(-x * x / 2) / np.sqrt(2 * np.pi), **style.EXACT)
    axes.set_yscale("log")
    axes.set_ylim(lowest, 2)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(_BINS[0], _BINS[-1])
