"""Exponents as text: the table of the terminal and of the report."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import isfinite

from Metrics.fits import Verdict

Place = tuple[str, int, str]
"""Quantity, step and layer of an exponent."""

_MARKS: Mapping[str, str] = {"contradicts": "!", "pre-asymptotic": "~", "undecided": "?"}


def cell(exponent: float, interval: float, predicted: Fraction | None, verdict: Verdict) -> str:
    """ "-0.51±.04 (-1/2)" and a mark."""
    width = f"±{interval:.2f}" if isfinite(interval) else "±?"
    theory = "" if predicted is None else f" ({predicted})"
    return f"{signed(exponent)}{width}{theory}{_MARKS.get(verdict, '')}"


def signed(exponent: float) -> str:
    """ "-0.51"; what rounds to zero has no sign of its own: "+0.00"."""
    return f"{round(exponent, 2) + 0.0:+.2f}"


def rows(cells: Mapping[Place, str]) -> list[list[str]]:
    """One row per quantity and step, a column per layer; the first row heads them.

    Of more than three steps the first, the next and the last one are shown, and of the others
    what contradicts theory.
    """
    layers = list(dict.fromkeys(layer for _, _, layer in cells))
    steps = sorted({step for _, step, _ in cells})
    always = steps if len(steps) <= 3 else [*steps[:2], steps[-1]]
    heads = [layer or "network" for layer in layers] if len(layers) > 1 else layers
    table = [["quantity", "step", *heads]]
    for name in dict.fromkeys(name for name, _, _ in cells):
        for step in steps:
            line = [cells.get((name, step, layer), "") for layer in layers]
            if any(cell.endswith("!") or (cell and step in always) for cell in line):
                table.append([name, str(step), *line])
    return table


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many exponents agree with theory."""
    compared = sum(v != "" for v in verdicts)
    if not verdicts:
        return "no exponent was found"
    if not compared:
        return "no exponent has a prediction"
    text = f"{verdicts.count('agrees')} of {compared} exponents agree with theory"
    if waiting := verdicts.count("pre-asymptotic"):
        text += f", {waiting} not yet (~)"
    if unknown := verdicts.count("undecided"):
        text += f", {unknown} undecided (?)"
    if wrong := verdicts.count("contradicts"):
        text += f", {wrong} contradict it (!)"
    return text
