"""Exponents: against exact power laws, and intervals against scipy's statistics."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from Metrics.fits import Fit, fit_exponent, minimum

WIDTHS = [16, 32, 64, 128]


def test_a_power_law_has_its_exponent_and_no_interval() -> None:
    widths, seeds = WIDTHS * 2, [1] * 4 + [2] * 4
    values = [3 * n**-0.5 for n in WIDTHS] + [-7 * n**-0.5 for n in WIDTHS]
    fit = fit_exponent(widths, seeds, values)
    assert fit is not None
    assert (fit.widths, fit.seeds) == (4, 2)
    assert fit.exponent == pytest.approx(-0.5, abs=1e-12)
    assert fit.last_octave == pytest.approx(-0.5, abs=1e-12)
    assert fit.interval < 1e-12
    assert not fit.pre_asymptotic
    assert fit.verdict(Fraction(-1, 2)) == "agrees"
    assert fit.verdict(Fraction(0)) == "contradicts"
    assert fit.verdict(None) == ""


def noisy(seeds: int) -> tuple[list[int], list[int], np.ndarray]:
    random = np.random.default_rng(0)
    widths, which = WIDTHS * seeds, np.repeat(np.arange(seeds), len(WIDTHS)).tolist()
    return widths, which, np.array(widths) ** 0.7 * np.exp(random.normal(0, 0.3, len(widths)))


def test_the_interval_over_seeds_is_students() -> None:
    widths, seeds, values = noisy(5)
    slopes = [
        stats.linregress(np.log(WIDTHS), np.log(values[4 * k : 4 * k + 4])).slope for k in range(5)
    ]
    fit = fit_exponent(widths, seeds, values.tolist())
    low, high = stats.t.interval(0.95, 4, np.mean(slopes), stats.sem(slopes))
    assert fit is not None
    assert (fit.exponent - fit.interval, fit.exponent + fit.interval) == pytest.approx((low, high))


def test_the_interval_of_one_seed_is_that_of_the_regression() -> None:
    widths, seeds, values = noisy(1)
    line = stats.linregress(np.log(widths), np.log(values))
    fit = fit_exponent(widths, seeds, values.tolist())
    assert fit is not None
    assert fit.exponent == pytest.approx(line.slope)
    assert fit.interval == pytest.approx(stats.t.ppf(0.975, 2) * line.stderr)


def test_two_widths_and_one_seed_tell_no_interval() -> None:
    fit = fit_exponent([8, 16], [1, 1], [1.0, 2.0])
    assert fit is not None
    assert fit.exponent == pytest.approx(1)
    assert fit.interval == float("inf")
    assert fit.verdict(Fraction(1)) == "undecided"


def test_the_last_octave_is_fitted_alone() -> None:
    widths = [16, 32, 64, 96, 128]
    values = [1.0, 1.0, 1.0, 1.5, 2.0]  # a power 1 from 64 on
    fit = fit_exponent(widths, [1] * 5, values)
    assert fit is not None
    assert fit.last_octave == pytest.approx(1)
    assert fit.pre_asymptotic
    values[3] = 1.7  # counts, too
    bent = fit_exponent(widths, [1] * 5, values)
    assert bent is not None
    line = stats.linregress(np.log(widths[2:]), np.log(values[2:]))
    assert bent.last_octave == pytest.approx(line.slope)
    far_apart = fit_exponent([8, 32, 128], [1] * 3, [1.0, 1.0, 16.0])  # by two octaves
    assert far_apart is not None
    assert far_apart.last_octave == pytest.approx(2)


def test_what_is_no_number_is_left_out() -> None:
    values = [float("nan"), 2.0, float("inf"), 8.0, 0.0]
    fit = fit_exponent([8, 16, 32, 64, 128], [1] * 5, values)
    assert fit is not None
    assert fit.exponent == pytest.approx(1)
    assert fit.widths == 2
    assert fit_exponent([8, 8, 16], [1, 1, 2], [1.0, 1.0, 1.0]) is None


@pytest.mark.parametrize(
    ("last", "predicted", "verdict"),
    [
        (0.5, 1, "pre-asymptotic"),  # moves towards 1
        (0.0, 1, "contradicts"),  # moves away
        (0.4, 1, "contradicts"),  # has settled
        (0.5, 0, "contradicts"),
        (0.5, Fraction(7, 20), "agrees"),
    ],
)
def test_a_miss_is_forgiven_while_the_slope_moves_there(
    last: float, predicted: float, verdict: str
) -> None:
    fit = Fit(exponent=0.3, interval=0.01, last_octave=last, widths=3, seeds=3)
    assert fit.verdict(Fraction(predicted)) == verdict


@pytest.mark.parametrize(
    ("predicted", "verdict"), [(0, "undecided"), (Fraction(-1, 2), "undecided"), (2, "contradicts")]
)
def test_what_fits_two_powers_decides_for_none(predicted: float, verdict: str) -> None:
    fit = Fit(exponent=-0.2, interval=0.4, last_octave=-0.2, widths=3, seeds=3)
    assert fit.verdict(Fraction(predicted)) == verdict


@pytest.mark.parametrize(
    ("exponent", "verdict"),
    [
        (-0.7, "contradicts"),
        (-0.6, "pre-asymptotic"),  # the parts miss their exponents as others do
        (-0.5, "pre-asymptotic"),
        (-0.2, "pre-asymptotic"),
        (0.05, "agrees"),
    ],
)
def test_a_sum_may_lie_between_its_parts(exponent: float, verdict: str) -> None:
    fit = Fit(exponent, interval=0.01, last_octave=exponent, widths=3, seeds=3)
    assert fit.verdict(Fraction(0), Fraction(-1, 2)) == verdict


def test_the_slope_of_a_sum_of_powers_does_not_fall() -> None:
    widths = np.array([64, 128, 256, 512, 1024])
    rising = fit_exponent(list(widths), [1] * 5, list(widths**-0.5 + 0.05))
    assert rising is not None
    assert rising.last_octave > rising.exponent
    assert rising.verdict(Fraction(0), Fraction(-1, 2)) == "pre-asymptotic"
    falling = Fit(exponent=-0.2, interval=0.01, last_octave=-0.4, widths=3, seeds=3)
    assert falling.verdict(Fraction(0), Fraction(-1, 2)) == "contradicts"


def test_noise_of_the_last_octave_is_no_fall() -> None:
    """A last octave that falls in half of the seeds and rises in the others says nothing."""
    widths, least = [64, 128, 256, 512], (Fraction(0), Fraction(-1, 2))
    line = np.array(widths) ** -0.4
    down, up = line * [1, 1, 1, 0.6], line * [1, 1, 1, 1.05]
    seeds = [seed for seed in range(6) for _ in widths]
    noisy = fit_exponent(widths * 6, seeds, [*down, *up] * 3)
    sure = fit_exponent(widths * 6, seeds, [*down] * 6)
    assert noisy is not None
    assert sure is not None
    for fit, verdict in ((noisy, "pre-asymptotic"), (sure, "contradicts")):
        assert fit.last_octave < fit.exponent - 0.15
        assert fit.verdict(*least) == verdict


def test_the_minimum_of_a_parabola_lies_between_its_points() -> None:
    rates = np.array([0.1, 0.2, 0.4, 0.8])
    losses = 3 * np.exp(2 * np.log(rates / 0.3) ** 2)
    assert minimum(rates, losses) == pytest.approx((0.3, 3))
    uneven = np.array([0.1, 0.25, 0.8])
    x, y = np.log(uneven), np.log([3.0, 2.0, 2.5])
    a, b, c = np.polyfit(x, y, 2)
    found = minimum(uneven, np.exp(y))
    assert found == pytest.approx((np.exp(-b / a / 2), np.exp(c - b * b / a / 4)))
    assert minimum(rates, np.array([2.0, 0.0, 1.0, 2.0])) == (0.2, 0.0)
    assert np.isnan(minimum(rates, rates)).all()  # still falls at the end
    assert np.isnan(minimum(rates, np.full(4, np.inf))).all()
    diverged = np.array([2.0, 1.0, np.inf, np.inf])
    assert minimum(rates, diverged) == (0.2, 1.0)
