"""Exponents: how a measured quantity grows with the width, beside what theory says.

A quantity y ∝ n^e is a straight line of slope e over log n. The slope is fitted by least squares
for every seed alone; the seeds' mean carries Student's 95 % interval, t_{0.975, S−1} s / √S. With
one seed the interval is that of the regression, t_{0.975, W−2} times the slope's standard error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]

MARGIN = 0.1
"""By how much a measured exponent may miss its prediction, besides its interval: finite widths
and the constants beside powers of them."""

PRE_ASYMPTOTIC = 0.15
"""A fit whose slope over the last octave differs by more is not yet a power of the width."""

RESOLUTION = 0.5
"""Powers of the width that theories tell apart are mostly halves: with a margin so wide, a
measurement near one of them is as near to the next."""

_STEEPEST, _GRID = 4.0, 0.005
"""The exponents that :func:`fit_power` tries."""

_NORMAL = 1.959963984540054
"""The 97.5th percentile of the normal law."""

Verdict = Literal["agrees", "contradicts", "pre-asymptotic", "undecided", ""]


@dataclass(frozen=True)
class Fit:
    """One quantity's exponent.

    Attributes:
        exponent: mean slope of the seeds.
        interval: half of its 95 % interval; infinite where nothing is known of it.
        last_octave: the same slope over widths from half of the largest on.
        widths: how many there are.
        seeds: how many there are.
        bend: half of the 95 % interval over seeds of the difference of these two slopes; 0
            where a single seed does not tell.
    """

    exponent: float
    interval: float
    last_octave: float
    widths: int
    seeds: int
    bend: float = 0.0

    @property
    def pre_asymptotic(self) -> bool:
        """Whether the slope still changes with the width."""
        return abs(self.exponent - self.last_octave) > PRE_ASYMPTOTIC

    def verdict(self, predicted: Fraction | None, least: Fraction | None = None) -> Verdict:
        """What the measurement says of a prediction.

        A miss is no contradiction while the slope still changes towards the prediction, nor
        where it lies between the exponents of the parts of a sum: the largest wins in the end,
        at widths that their constants decide on. On the way there a sum's slope can only rise:
        one that falls is no such sum.

        Args:
            predicted: the exponent that theory gives; ``None`` if it gives none.
            least: the smallest exponent of the parts of a sum.
        """
        if predicted is None:
            return ""
        error, margin = abs(self.exponent - float(predicted)), MARGIN + self.interval
        if error <= margin:
            return "agrees" if margin < RESOLUTION else "undecided"
        falls = self.last_octave < self.exponent - max(PRE_ASYMPTOTIC, self.bend)
        within = least is not None and float(least) - margin <= self.exponent <= float(predicted)
        if within and not falls:
            return "pre-asymptotic"
        nearer = abs(self.last_octave - float(predicted)) < error
        return "pre-asymptotic" if self.pre_asymptotic and nearer else "contradicts"


def fit_exponent(
    widths: Sequence[int], seeds: Sequence[int], values: Sequence[float]
) -> Fit | None:
    """The exponent of measurements [R], each of one width and seed.

    What is zero or not finite is left out, and so is a seed of a single width.

    Args:
        widths: n.
        seeds: which measurements belong to one line.
        values: y, of either sign; its size counts.

    Returns:
        the fit; ``None`` if no seed has two widths.
    """
    size, width = np.abs(np.asarray(values, float)), np.asarray(widths, float)
    known = np.isfinite(size) & (size > 0)
    lines = []
    for seed in dict.fromkeys(seeds):
        of_seed = known & (np.asarray(seeds) == seed)
        x, y = np.log(width[of_seed]), np.log(size[of_seed])
        if len(np.unique(x)) > 1:
            lines.append((x, y))
    if not lines:
        return None
    slopes = np.array([_slope(x, y) for x, y in lines])
    octaves = np.array([_last_octave(x, y) for x, y in lines])
    return Fit(
        exponent=float(slopes.mean()),
        interval=interval_of_mean(slopes) if len(lines) > 1 else _regression_interval(*lines[0]),
        last_octave=float(octaves.mean()),
        widths=len(np.unique(np.concatenate([x for x, _ in lines]))),
        seeds=len(lines),
        bend=interval_of_mean(octaves - slopes) if len(lines) > 1 else 0.0,
    )


def minimum(rates: Array, losses: Array) -> tuple[float, float]:
    """Where a curve of log losses over log rates is least, and the loss there; NaN at an end.

    Losses span decades, so that the parabola of losses themselves may have its vertex below 0.

    Args:
        rates: ascending.
        losses: infinite where training diverged.
    """
    k = int(np.argmin(losses))
    if not 0 < k < len(rates) - 1 or not np.isfinite(losses[k]):
        return float("nan"), float("nan")
    near = losses[k - 1 : k + 2]
    if not np.isfinite(near).all() or losses[k] <= 0:
        return float(rates[k]), float(losses[k])
    (x, _, z), (y, _, w) = np.log(rates[k - 1 : k + 2] / rates[k]), np.log(near / losses[k])
    a = (w / z - y / x) / (z - x)  # y > 0, as the first of the least losses is taken, and so a > 0
    b = w / z - a * z
    return float(rates[k] * np.exp(-b / (2 * a))), float(losses[k] * np.exp(-b * b / (4 * a)))


def interval_of_mean(values: Array) -> float:
    """Half of Student's 95 % interval of the mean of values [S]; infinite for a single one."""
    count = len(values)
    if count < 2:
        return float("inf")
    return float(stdtrit(count - 1, 0.975) * values.std(ddof=1) / np.sqrt(count))


def _slope(x: Array, y: Array) -> float:
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))


def _last_octave(x: Array, y: Array) -> float:
    """The slope over x ≥ max − log 2, or over the two largest x where these are farther apart."""
    widths = np.unique(x)
    last = x >= min(widths[-2], widths[-1] - np.log(2)) - 1e-9
    return _slope(x[last], y[last])


def _regression_interval(x: Array, y: Array) -> float:
    free = len(x) - 2
    if free < 1:
        return float("inf")
    centred = x - x.mean()
    residuals = y - y.mean() - _slope(x, y) * centred
    return float(stdtrit(free, 0.975) * np.sqrt(residuals @ residuals / free / (centred @ centred)))


def fit_power(
    widths: Array, values: Array, intervals: Array, networks: int, positive: bool, power: int = 1
) -> Fit | None:
    """The exponent of y^{1/power} of measurements of known intervals, of which some may be noise.

    Least squares of a n^k, a by its own closed form at every k, weighted by the intervals. The
    interval of k holds all at which χ² is above its least by up to 1.96².

    Args:
        widths: n [W].
        values: y [W], of any sign.
        intervals: halves of their 95 % intervals [W].
        networks: behind each of them.
        positive: whether a cannot be negative.
        power: what y is the power of.

    Returns:
        the fit; ``None`` of a single width, if a = 0 is as good as any, or steeper powers than
        the 4th are better.
    """
    if len(widths) < 2:
        return None
    exponents = power * np.arange(-_STEEPEST, _STEEPEST + _GRID / 2, _GRID)
    weights = np.square(_NORMAL / intervals)
    shapes = (widths / widths[-1]) ** exponents[:, None]
    sizes = (shapes * weights * values).sum(1) / (np.square(shapes) * weights).sum(1)
    sizes = np.maximum(sizes, 0.0) if positive else sizes
    misfit = (np.square(values - sizes[:, None] * shapes) * weights).sum(1)
    best = int(np.argmin(misfit))
    inside = misfit <= misfit[best] + _NORMAL**2
    found = (np.square(values) * weights).sum() - misfit[best] > _NORMAL**2
    if not found or best in (0, len(exponents) - 1):
        return None
    ends = inside[0] or inside[-1]
    reach = np.inf if ends else np.abs(exponents[inside] - exponents[best]).max() / power
    last = values[-2:] * np.sign(values[-1])
    octave = exponents[best]
    if (last > 0).all():
        octave = float(np.log(last[1] / last[0]) / np.log(widths[-1] / widths[-2]))
    return Fit(float(exponents[best]) / power, float(reach), octave / power, len(widths), networks)
