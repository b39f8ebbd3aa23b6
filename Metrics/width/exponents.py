"""Measured exponents beside predicted ones: the table of a width metric."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from Metrics.fits import Fit, Verdict, fit_exponent
from Metrics.width.metric import Observation, Quantity, WidthMetric
from Metrics.width.table import cell, rows, summary
from Metrics.width.theory import ChainTheory
from Utils.storage import write_atomically

COLUMNS = (
    *("group", "quantity", "layer", "step", "widths", "seeds", "exponent", "interval"),
    *("last_octave", "pre_asymptotic", "predicted", "verdict"),
)
"""Of the table, in csv files and caches."""

MOST = 0.95
"""The share of exponents that has to agree for a theory to be confirmed."""


@dataclass(frozen=True)
class Exponent:
    """A line of the table.

    Attributes:
        group: the runs' label.
        quantity: what was measured.
        step: updates done.
        fit: its exponent.
        predicted: the exponent that theory gives, if any.
        least: the smallest exponent of the parts, of a sum.
    """

    group: str
    quantity: Quantity
    step: int
    fit: Fit
    predicted: Fraction | None
    least: Fraction | None = None

    @property
    def verdict(self) -> Verdict:
        return self.fit.verdict(self.predicted, self.least)

    def row(self) -> dict[str, Any]:
        """The values of :data:`COLUMNS`."""
        fit = self.fit
        return {
            "group": self.group,
            "quantity": self.quantity.name,
            "layer": self.quantity.layer,
            "step": self.step,
            "widths": fit.widths,
            "seeds": fit.seeds,
            "exponent": fit.exponent,
            "interval": fit.interval,
            "last_octave": fit.last_octave,
            "pre_asymptotic": fit.pre_asymptotic,
            "predicted": "" if self.predicted is None else str(self.predicted),
            "verdict": self.verdict,
        }

    def cell(self) -> str:
        """ "-0.51±.04 (-1/2)" and a mark."""
        return cell(self.fit.exponent, self.fit.interval, self.predicted, self.verdict)


def exponents_of(
    metric: WidthMetric, group: str, observations: Sequence[Observation], theory: ChainTheory
) -> list[Exponent]:
    """The exponents of a group, by quantity, layer and step.

    Args:
        metric: which predicts.
        group: the runs' label.
        observations: of the group's runs.
        theory: of the group.
    """
    found: dict[tuple[Quantity, int], list[Observation]] = {}
    for seen in observations:
        found.setdefault((seen.quantity, seen.step), []).append(seen)
    table = []
    for (quantity, step), points in sorted(found.items(), key=_in_order(list(found))):
        points.sort(key=lambda p: (p.seed, p.width))
        fit = fit_exponent(
            [p.width for p in points], [p.seed for p in points], [p.value for p in points]
        )
        if fit is not None:
            predicted = metric.predicted(quantity, step, theory)
            least = metric.least(quantity, step, theory)
            table.append(Exponent(group, quantity, step, fit, predicted, least))
    return table


def _in_order(
    found: list[tuple[Quantity, int]],
) -> Callable[[tuple[tuple[Quantity, int], Any]], tuple[int, int, int]]:
    """A key that sorts by quantity and layer as they are first met, then by step."""
    names = list(dict.fromkeys(quantity.name for quantity, _ in found))
    layers = list(dict.fromkeys(quantity.layer for quantity, _ in found))
    return lambda item: (
        names.index(item[0][0].name),
        layers.index(item[0][0].layer),
        item[0][1],
    )


def write_csv(path: Path, exponents: Sequence[Exponent]) -> None:
    """Save the table, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(exponent.row() for exponent in exponents)
    write_atomically(path, lambda file: file.write_text(text.getvalue(), encoding="utf-8"))


def table_text(exponents: Sequence[Exponent]) -> list[str]:
    """Lines for the terminal; see :func:`Metrics.width.table.rows`."""
    table = rows({(e.quantity.name, e.step, e.quantity.layer): e.cell() for e in exponents})
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]


def unconfirmed(exponents: Sequence[Exponent]) -> list[str]:
    """The groups of which too few exponents agree with theory, :data:`MOST` of them, in words."""
    groups: dict[str, list[Exponent]] = {}
    for one in exponents:
        if one.verdict:
            groups.setdefault(one.group, []).append(one)
    return [
        f"{group}: only {summary([e.verdict for e in own])}"
        for group, own in groups.items()
        if sum(e.verdict == "agrees" for e in own) < MOST * len(own)
    ]
