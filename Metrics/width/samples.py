"""How far a sample of networks is from a Gaussian law of their outputs, beyond its own noise.

Deviations d = (f − μ) / σ of S networks at M numbers, examples times outputs, which depend on each
other; networks do not. If the law is theirs, every d is N(0, 1); if it has no spread, σ = 0, d is
in another unit and 0. Intervals are of the networks: Student's, of the jackknife's pseudo-values
θ̃_s = S θ − (S − 1) θ_(−s) (Quenouille 1956; Tukey 1958; Efron and Stein 1981: its variance is not
below the true one in expectation).

Shape letters: S networks, M numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import chdtri

from Metrics.fits import Array, interval_of_mean

FEWEST = 4
"""Networks of one width of which intervals are given."""

_NORMAL = 1.959963984540054
"""The 97.5th percentile of the normal law."""


@dataclass(frozen=True)
class Sample:
    """What S networks say of a law.

    Attributes:
        networks: S.
        mean: |E d|² / M, without bias: the square of how far the networks' mean is from the
            law's, in standard deviations. Noise makes it negative where that is small.
        mean_interval: half of its 95 % interval.
        mean_noise: the same, had the networks the law's mean.
        variance: E (d − E d)² / M − 1, without bias; without the −1 if the law has no spread.
        variance_interval: half of its 95 % interval.
        mean_within: the part of the M sample means within the law's 95 % interval.
        variance_within: likewise of the sample variances, by χ² of S − 1 degrees of freedom; both
            are NaN if the law has no spread.
    """

    networks: int
    mean: float
    mean_interval: float
    mean_noise: float
    variance: float
    variance_interval: float
    mean_within: float
    variance_within: float


def sample(deviations: Array, spreads: bool = True) -> Sample:
    """What networks say of a law.

    Args:
        deviations: d [S, M], of at least :data:`FEWEST` networks.
        spreads: whether the law has a variance, by whose root d was divided.
    """
    count, numbers = deviations.shape
    mean, variance = _pseudo(_mean_square, deviations), _pseudo(_variance, deviations)
    variance = variance - 1 if spreads else variance
    products = deviations @ deviations.T / numbers
    products[np.diag_indices(count)] = 0.0
    pairs = count * (count - 1)
    spread = np.sqrt(2 * np.square(products).sum() / pairs**2)
    low, high = (chdtri(count - 1, tail) for tail in (0.975, 0.025))
    squares = (count - 1) * deviations.var(0, ddof=1)

    def within(held: Any) -> float:
        return float(held.mean()) if spreads else np.nan

    return Sample(
        count,
        float(mean.mean()),
        interval_of_mean(mean),
        float(_NORMAL * spread),
        float(variance.mean()),
        interval_of_mean(variance),
        within(np.abs(deviations.mean(0)) * np.sqrt(count) < _NORMAL),
        within((low < squares) & (squares < high)),
    )


Statistic = Callable[[Array, Array, int, int], Array]
"""Of |Σ d|² and Σ |d|², S and M."""


def _mean_square(whole: Array, own: Array, count: int, numbers: int) -> Array:
    """The mean of d_s·d_s' over pairs of networks, by M."""
    value: Array = (whole - own) / (numbers * count * (count - 1))
    return value


def _variance(whole: Array, own: Array, count: int, numbers: int) -> Array:
    """The mean of the sample variances."""
    value: Array = (own - whole / count) / (numbers * (count - 1))
    return value


def _pseudo(statistic: Statistic, deviations: Array) -> Array:
    """The jackknife's pseudo-values [S]; their mean is the statistic, as it has no bias."""
    count, numbers = deviations.shape
    total, own = deviations.sum(0), np.square(deviations).sum(1)
    others = np.square(total - deviations).sum(1)
    value = statistic(np.square(total).sum(), own.sum(), count, numbers)
    without = statistic(others, own.sum() - own, count - 1, numbers)
    pseudo: Array = count * value - (count - 1) * without
    return pseudo
