"""How far weights move after training has settled: the follow-up paper's displacements.

Kunin et al., *The limiting dynamics of SGD* (Neural Computation 2023), follow the squared
displacement |θ_{n+s} − θ_n|² over the lag s, which grows as a power s^c, and the velocity
|θ_{k+1} − θ_k|². Beside them stands the walk that independent gradients of the measured mean
square G would make without a loss to hold it: v' = βv + g, θ' = θ − ηv' gives::

    |δ|²  = σ² = η²G / (1 − β²)
    |Δ_s|² = σ² (s (1+β)/(1−β) − 2β(1−β^s)/(1−β)²)

which is ballistic, c = 2, for s ≪ 1/(1−β), and diffusive, c = 1, beyond.

Shape letters: L lags, R runs that differ in their seeds.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from Metrics.figures import parts
from scripts.paper.curves import CacheOf
from scripts.paper.grids import Cell, Grid
from Training.config import TrainConfig
from Utils.cli import parse

_FIT: dict[str, Any] = {"linestyle": "-", "linewidth": 1.4, "color": "#D55E00", "zorder": 5}
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Walk:
    """Runs of one configuration, from the first of the steps that ``--save-at`` names.

    Attributes:
        lags: [L] steps since then.
        displacement: [R, L] |θ_{n+s} − θ_n|² over the followed weights.
        velocity: [R, L] |θ_{n+s+1} − θ_{n+s}|².
        free: [L] the displacement of independent gradients; ``free[0]`` is their velocity.
    """

    lags: parts.Array
    displacement: parts.Array
    velocity: parts.Array
    free: parts.Array

    def exponent(self, shortest: float) -> tuple[float, float]:
        """c of |Δ_s|² ∝ s^c from a lag on, and half the 95 % interval of its mean over seeds."""
        kept = self.lags >= shortest
        logs = np.log(self.displacement[:, kept])
        slopes = np.polyfit(np.log(self.lags[kept]), logs.T, 1)[0]
        quantile = stats.t.ppf((1 + _CONFIDENCE) / 2, len(slopes) - 1)
        return float(slopes.mean()), float(quantile * slopes.std(ddof=1) / len(slopes) ** 0.5)


def free_walk(lags: parts.Array, lr: float, momentum: float, square: float) -> parts.Array:
    """|Δ_s|² [L] of independent gradients of mean square ``square``, after a long time."""
    b = momentum
    steady = lr**2 * square / (1 - b**2)
    walked: parts.Array = lags * (1 + b) / (1 - b) - 2 * b * (1 - b**lags) / (1 - b) ** 2
    return steady * walked


def read_walk(cells: Sequence[Cell], cache_of: CacheOf) -> Walk:
    """The walk of runs that differ in their seeds, from caches of ``weights_grads_full``.

    Raises:
        UserError: a cache is missing or damaged.
    """
    displacement, velocity, squares = [], [], []
    for cell in cells:
        config = parse(
            TrainConfig, [*shlex.split(cell.point.flags), "--experiment", "e", "--expid", "x"]
        )
        start, *saved = sorted(map(int, config.save_at))
        cache = parts.read_cache(cache_of(cell))
        row = {int(step): i for i, step in enumerate(cache.at.step)}
        weights = np.concatenate([layer.measured for layer in cache.layers], axis=1)
        gradients = np.concatenate([layer.beside["gradient"] for layer in cache.layers], axis=1)
        starts = [step for step in saved if step + 1 in row]
        lags = np.array(starts, dtype=np.float64) - start
        moved = weights[[row[step] for step in starts]] - weights[row[start]]
        after = weights[[row[step + 1] for step in starts]]
        displacement.append((moved**2).sum(1))
        velocity.append(((after - weights[[row[step] for step in starts]]) ** 2).sum(1))
        squares.append((gradients[[row[step] for step in saved]] ** 2).sum(1).mean())
    assert config.lr is not None
    free = free_walk(lags, config.lr, config.momentum or 0.0, float(np.mean(squares)))
    return Walk(lags, np.array(displacement), np.array(velocity), free)


def draw_diffusion(grid: Grid, cache_of: CacheOf) -> Figure:
    """Displacements over lags, and below them velocities; a column per row of the grid.

    Args:
        grid: rows of runs that differ in their seeds only.
        cache_of: finds their caches.

    Raises:
        UserError: a cache is missing or damaged.
    """
    figure = Figure(figsize=(parts.PAGE_WIDTH, 3.9))
    axes = figure.subplots(2, len(grid.rows), squeeze=False, sharex=True, height_ratios=[3, 2])
    figure.subplots_adjust(left=0.1, right=0.98, top=0.8, bottom=0.11, wspace=0.3, hspace=0.2)
    for (upper, lower), cells in zip(axes.T, grid.rows, strict=True):
        walk = read_walk(cells, cache_of)
        _draw_displacement(upper, walk)
        _draw_curves(lower, walk, walk.velocity, np.full_like(walk.free, walk.free[0]))
        upper.set_title(cells[0].point.label, loc="left", fontsize=parts.TITLE_SIZE)
        lower.set_xlabel("lag $s$ / steps", labelpad=2)
    axes[0][0].set_ylabel(r"$|\theta_{n+s} - \theta_n|^2$")
    axes[1][0].set_ylabel(r"$|\theta_{k+1} - \theta_k|^2$")
    figure.text(0.5, 0.985, grid.title, ha="center", va="top")
    lines = [
        Line2D([], [], color=parts.colours(1)[0], **parts.MEASURED),
        Line2D([], [], **parts.PAPER),
        Line2D([], [], **_FIT),
    ]
    labels = ["measured, a line per seed", "independent gradients", "fitted power"]
    figure.legend(
        lines, labels, loc="upper center", bbox_to_anchor=(0.5, 0.96), ncols=3, frameon=False
    )
    return figure


def _draw_displacement(axes: Axes, walk: Walk) -> None:
    """The displacement, and the power that fits the upper half of the lag's decades."""
    _draw_curves(axes, walk, walk.displacement, walk.free)
    shortest = float(np.sqrt(walk.lags[-1]))
    power, margin = walk.exponent(shortest)
    kept = walk.lags >= shortest
    lags = walk.lags[kept]
    factor = np.exp(np.log(walk.displacement[:, kept] / lags**power).mean())
    axes.plot(lags, factor * lags**power, **_FIT)
    axes.set_title(rf"$c = {power:.2f} \pm {margin:.2f}$", loc="right", fontsize=parts.SMALL_SIZE)


def _draw_curves(axes: Axes, walk: Walk, measured: parts.Array, free: parts.Array) -> None:
    axes.set_xscale("log")
    for curve in measured:
        axes.plot(walk.lags, curve, color=parts.colours(1)[0], **parts.MEASURED)
    axes.plot(walk.lags, free, **parts.PAPER)
    values = np.concatenate([measured.ravel(), free])
    parts.log_ticks(axes, float(values.min()) / 1.5, float(values.max()) * 1.5)
