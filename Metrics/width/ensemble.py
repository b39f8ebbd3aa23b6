"""The mean and variance of many networks' outputs beside those of infinitely wide ones.

The networks of an experiment differ in the seed of their initial weights alone. In the kernel
regime their outputs on the probe batch become, as they widen, those of a Gaussian process at every
step of training: N(μ_t(x), σ_t²(x)) for each output of each example (Lee et al. 2019, arXiv
1902.06720, section 2.3), which the run of infinite width has. At width n the cumulants of outputs
are power series in 1/n whose corrections begin with the first order: the mean and the variance miss
their limits by Θ(1/n) once networks are trained (Dyer and Gur-Ari 2020, arXiv 1909.11304; Huang and
Yau 2020, arXiv 1909.08156). A single network's kernel fluctuates by n^{−½}, of which the mean over
networks leaves nothing to this order.

Where the readout begins as n^{−½−δ}, δ > 0 (:mod:`Models.infinite.limit`), all networks have the
same limit, σ = 0. What they differ by is n^{−δ} f_0, whose variance is n^{−2δ}; and what features
learn, n^{−r} with r = ½ − δ, changes kernels and so the mean by its square, n^{−2r}. Under losses
that are not quadratic in the outputs the mean also feels the square of f_0. Distances are then told
in units of the root mean square of the limit's outputs at the last step.

Shape letters: W widths, T steps, S networks, P probe examples, C outputs, K outputs that are shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from Metrics.fits import fit_power
from Metrics.width.exponents import Exponent
from Metrics.width.infinite import LimitCheckpoint, no_ensemble
from Metrics.width.members import Group, Member
from Metrics.width.metric import (
    Array,
    Cell,
    Cells,
    Observation,
    PerLayer,
    Quantity,
    Values,
)
from Metrics.width.network import Checkpoint
from Metrics.width.samples import FEWEST, Sample, sample
from Metrics.width.store import Measurements
from Metrics.width.theory import ChainTheory

MEAN, VARIANCE = Quantity("deviation of the mean"), Quantity("deviation of the variance")

_OUTPUTS, _VARIANCES = Quantity("outputs"), Quantity("variances")
_NOT_EXTRACTED = (
    "no step has outputs of enough networks and of infinite width; run extract.py --probe logits "
    "for all, and then this again"
)
_SHOWN = 3
_LEAST = 1e-10
"""Of the variance at the start: where it is smaller by then, deviations are not told in it."""


class Ensemble(PerLayer):
    """Outputs on the probe batch [P, C] of every run and step; what they say is of all together."""

    reads_layers = False

    def measure(self, checkpoint: Checkpoint) -> Values | None:
        logits = checkpoint.probe_logits
        return None if logits is None else {_OUTPUTS: logits}

    def why_no_limit(self, member: Member) -> str:
        return no_ensemble(member)

    def measure_limit(self, limit: LimitCheckpoint) -> Values | None:
        """The Gaussian law's mean and variance."""
        if limit.ensemble is None:
            return None
        mean, variance = limit.ensemble
        return {_OUTPUTS: mean, _VARIANCES: variance}

    def observations(self, members: Sequence[Member], cells: Cells) -> list[Observation]:
        """None: a single run has no mean and variance."""
        return []

    def predicted(
        self, quantity: Quantity, step: int, theory: ChainTheory, loss: str = "mse"
    ) -> Fraction | None:
        """Both corrections are of first order, or as the head of this module says; at the start
        the mean is 0 at any width.

        Args:
            quantity: the mean or the variance.
            step: updates done.
            theory: of the group.
            loss: its loss.
        """
        delta = Fraction(0) if theory.abc is None else theory.abc.layers[-1].s - Fraction(1, 2)
        if delta > 0 and quantity == VARIANCE:
            return -2 * delta
        if delta > 0 and step:
            learnt = 2 * delta - 1
            return learnt if loss == "mse" else max(learnt, -2 * delta)
        return Fraction(-1) if step else None

    def silence(self, group: Group, theory: ChainTheory) -> str:
        if len({member.hyperparameters["seed"] for member in group.members}) > 1:
            return "runs differ in --seed, and so in data and probe batch; use --init-seed"
        if not group.limits:
            return (
                "there is no run with --width inf and otherwise the same flags; with --loss mse, "
                "or under --param hybrid:s"
            )
        widths = [member.width for member in group.members]
        most = max(widths.count(n) for n in widths)
        return "" if most >= FEWEST else f"no width has {FEWEST} networks; use more --init-seed"

    def together(self, group: Group, stored: Measurements, theory: ChainTheory) -> "Together":
        """What the networks of each width say, at the steps that they and the limit have."""
        if self.silence(group, theory):
            return Together({}, [], [])
        found = _samples(group, stored)
        if not found:
            return Together({}, [], [_NOT_EXTRACTED])
        exponents = [
            exponent
            for step in sorted({step for _, step in found})
            for exponent in self._exponents(group, step, found, theory)
        ]
        return Together(_tables(group, stored, found), exponents, _lines(found))

    def _exponents(
        self,
        group: Group,
        step: int,
        found: Mapping[tuple[int, int], Sample],
        theory: ChainTheory,
    ) -> list[Exponent]:
        widths = sorted(n for n, at in found if at == step)
        of = [found[n, step] for n in widths]
        fits = {
            MEAN: ([s.mean for s in of], [s.mean_interval for s in of], True, 2),
            VARIANCE: ([s.variance for s in of], [s.variance_interval for s in of], False, 1),
        }
        exponents = []
        for quantity, (values, intervals, positive, power) in fits.items():
            fit = fit_power(
                np.array(widths, float),
                np.array(values),
                np.array(intervals),
                min(s.networks for s in of),
                positive,
                power,
            )
            if fit is not None:
                loss = str(group.members[0].flag("loss"))
                predicted = self.predicted(quantity, step, theory, loss)
                exponents.append(Exponent(group.label, quantity, step, fit, predicted))
        return exponents


@dataclass(frozen=True)
class Together:
    """What the runs of a group say together.

    Attributes:
        tables: for caches, by name; each [E] or [E, T, ...], a width in each row.
        exponents: fitted.
        lines: for the terminal.
    """

    tables: Mapping[str, Any]
    exponents: Sequence[Exponent]
    lines: Sequence[str]


def _samples(group: Group, stored: Measurements) -> dict[tuple[int, int], Sample]:
    """By width and step."""
    found = {}
    for n in sorted({member.width for member in group.members}):
        for step in _steps(stored):
            outputs, law = _outputs(group, stored, n, step), _law(group, stored, step)
            if law is not None and len(outputs) >= FEWEST:
                mean, variance = law
                spreads = variance > 0
                if spreads.any():
                    distances = (outputs - mean)[:, spreads] / np.sqrt(variance[spreads])
                else:
                    distances = (outputs - mean).reshape(len(outputs), -1) / _size(group, stored)
                found[n, step] = sample(distances, bool(spreads.any()))
    return found


def _size(group: Group, stored: Measurements) -> float:
    """Root mean square of the outputs at infinite width at the last step; 1 if they are 0."""
    laws = (_law(group, stored, step) for step in reversed(_steps(stored)))
    mean, _ = next(law for law in laws if law is not None)
    return float(np.sqrt(np.square(mean).mean())) or 1.0


def _steps(stored: Measurements) -> list[int]:
    return sorted({cell.step for cell in stored.arrays})


def _outputs(group: Group, stored: Measurements, width: int, step: int) -> Array:
    """[S, P, C] of the networks of a width."""
    cells = (Cell(m.name, step, _OUTPUTS) for m in group.members if m.width == width)
    return np.array([stored.arrays[cell] for cell in cells if cell in stored.arrays])


def _law(group: Group, stored: Measurements, step: int) -> tuple[Array, Array] | None:
    """The mean and variance [P, C] at infinite width; ``None`` where they are not known."""
    name = group.limits[0].name
    cells = [Cell(name, step, quantity) for quantity in (_OUTPUTS, _VARIANCES)]
    if any(cell not in stored.arrays for cell in cells):
        return None
    mean, variance = (stored.arrays[cell] for cell in cells)
    start = stored.arrays.get(Cell(name, 0, _VARIANCES), variance)
    return mean, np.maximum(variance, _LEAST * start)


_COLUMNS = {
    "networks": "networks",
    "squared deviation of the mean": "mean",
    "interval of the mean": "mean_interval",
    "noise of the mean": "mean_noise",
    "deviation of the variance": "variance",
    "interval of the variance": "variance_interval",
    "means within": "mean_within",
    "variances within": "variance_within",
}
"""Tables of a cache [E, T], and the attributes of :class:`Sample`."""


def _tables(
    group: Group, stored: Measurements, found: Mapping[tuple[int, int], Sample]
) -> dict[str, Any]:
    """What samples say, and the law and the mean and variance of networks at some outputs."""
    widths, steps = sorted({n for n, _ in found}), _steps(stored)
    rows = [*map(float, widths), np.inf]
    shape = (len(rows), len(steps))
    tables: dict[str, Any] = {name: np.full(shape, np.nan) for name in _COLUMNS}
    for (n, step), one in found.items():
        for name, attribute in _COLUMNS.items():
            tables[name][widths.index(n), steps.index(step)] = getattr(one, attribute)
    shown = {name: np.full((*shape, _SHOWN), np.nan) for name in ("mean", "variance")}
    known = [step for step in steps if _law(group, stored, step) is not None]
    chosen = _most_telling(group, stored, known[-1]) if known else []
    for at, step in enumerate(steps):
        for row, n in enumerate(widths):
            outputs = _outputs(group, stored, n, step)
            if len(outputs) >= FEWEST:
                some = outputs.reshape(len(outputs), -1)[:, chosen]
                shown["mean"][row, at, : len(chosen)] = some.mean(0)
                shown["variance"][row, at, : len(chosen)] = some.var(0, ddof=1)
        law = _law(group, stored, step)
        if law is not None:
            for name, values in zip(shown, law, strict=True):
                shown[name][-1, at, : len(chosen)] = values.reshape(-1)[chosen]
    return {"width": np.array(rows), "group": [group.label] * len(rows), **tables, **shown}


def _most_telling(group: Group, stored: Measurements, step: int) -> list[int]:
    """The numbers of the outputs that are shown: low, middle and high at the last step."""
    law = _law(group, stored, step)
    assert law is not None
    order = np.argsort(law[0].reshape(-1))
    places = np.linspace(0, len(order) - 1, min(_SHOWN, len(order))).astype(int)
    return [int(order[place]) for place in places]


def _lines(found: Mapping[tuple[int, int], Sample]) -> list[str]:
    """What the networks of each width say at the last step."""
    last = max(step for _, step in found)
    lines = [f"step {last}: how far the networks of each width are from infinite width"]
    for (n, step), one in found.items():
        if step == last:
            low, high = (np.sqrt(max(one.mean + side * one.mean_interval, 0.0)) for side in (-1, 1))
            variance = f"{one.variance:+.1%} ±{one.variance_interval:.1%}"
            mean, spread = f"mean {low:.3f} to {high:.3f}", f"variance {variance}"
            if np.isnan(one.variance_within):
                mean, spread = f"{mean} of the size of its outputs", f"{spread} of its square"
            else:
                mean += " standard deviations"
            lines.append(f"  {n}: {mean}, {spread} ({one.networks} networks)")
    return lines
