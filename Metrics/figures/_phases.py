"""A phase diagram: parametrizations in the plane of two exponents, by how far features move."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from Metrics.figures._cache import Array
from Metrics.figures._experiment import ExperimentCache
from Metrics.figures._frame import add_header, header_height
from Metrics.figures._layout import charts
from Metrics.figures._options import NothingToDraw, Options
from Models.parametrization import ABC, Exponents, Theory, explain
from Models.parametrization.exponents import Family

_GRID = 41
_LINES: dict[str, Literal["-", "--"]] = {"features": "-", "outputs": "--"}


def axes_of(cache: ExperimentCache) -> list[str]:
    """Which of a, b and c differ among the groups: "c of hidden"."""
    told = [p for p in cache.parametrizations.values() if p]
    names = dict.fromkeys(name for p in told for name in p)
    return [name for name in names if len({p[name] for p in told}) > 1 and " of " in name]


def draw_phases(cache: ExperimentCache, options: Options) -> Figure:
    """Groups as dots in the plane of the two exponents that differ, coloured by −r, the largest
    measured exponent of a hidden layer's change in the first step; and the predicted lines on
    which features, and outputs, change by Θ(1).

    Raises:
        NothingToDraw: not two exponents differ, or no change was measured.
    """
    axes = axes_of(cache)
    measured = {label: moved for label in cache.labels if (moved := _moved(cache, label))}
    if len(axes) != 2 or not measured:
        raise NothingToDraw(f"{cache.metric}: no phases drawn, two of a, b, c have to vary")
    figure, (cell,) = charts(1, header_height(1, options), 1, 2.4, 0.5)
    points = np.array(
        [[float(Fraction(cache.parametrizations[label][a])) for a in axes] for label in measured]
    )
    values = np.array([max(moved) for moved in measured.values()])
    size = max(0.5, float(np.abs(values).max()))
    dots = cell.main.scatter(
        points[:, 0],
        points[:, 1],
        c=values,
        cmap="coolwarm",
        norm=TwoSlopeNorm(0, -size, size),
        edgecolors="k",
    )
    figure.colorbar(dots, ax=cell.main, label="measured exponent of features\u2019 change")
    base = next(p for p in cache.parametrizations.values() if p)
    drawn = _boundaries(cell.main, points, (axes[0], axes[1]), base)
    cell.main.set_xlabel(axes[0], labelpad=2)
    cell.main.set_ylabel(axes[1])
    handles = [Line2D([], [], color="k", linestyle=_LINES[what]) for what in drawn]
    labels = [f"{what} change as 1" for what in drawn]
    add_header(figure, "Phases of parametrizations", (handles, labels), options)
    return figure


def _moved(cache: ExperimentCache, label: str) -> list[float]:
    """Exponents of the first step's changes in all layers but the readout, which is last."""
    changes = [f for f in cache.fits if (f.group, f.quantity) == (label, "change")]
    first = min((f.step for f in changes), default=0)
    found = [f.exponent for f in changes if f.step == first]
    return found[:-1]


def _boundaries(
    axes: Axes, points: Array, names: tuple[str, str], base: Mapping[str, str]
) -> list[str]:
    """Draw the predicted lines; returns which ones cross the plane that is shown."""
    low, high = points.min(0), points.max(0)
    margin = 0.15 * (high - low) + 0.1
    x, y = (np.linspace(low[i] - margin[i], high[i] + margin[i], _GRID) for i in (0, 1))
    features, outputs = np.empty((_GRID, _GRID)), np.empty((_GRID, _GRID))
    for i, along in enumerate(x):
        for j, up in enumerate(y):
            told = dict(base) | {names[0]: str(along), names[1]: str(up)}
            theory = theory_at(told)
            features[j, i] = -float(theory.r)
            outputs[j, i] = float(theory.first["change"][-1] or 0)
    fields = {"features": features, "outputs": outputs}
    drawn = [what for what, values in fields.items() if values.min() < 0 < values.max()]
    for what in drawn:
        look = _LINES[what]
        axes.contour(x, y, fields[what], levels=[0], linestyles=look, linewidths=0.8, colors="k")
    return drawn


def theory_at(told: Mapping[str, str]) -> Theory:
    """The predictions for exponents as the cache names them.

    Args:
        told: a, b and c of the roles, the family and the depth.
    """

    def of(role: str) -> Exponents:
        a, b, c = (Fraction(told[f"{name} of {role}"]).limit_denominator(10**6) for name in "abc")
        return Exponents(a, b, c)

    depth = int(told["depth"])
    family: Family = "adam" if told["family"] == "adam" else "sgd"
    layers = (of("input"), *[of("hidden")] * (depth - 1), of("readout"))
    none = Exponents()
    return explain(ABC(layers, layers, none, none, of("hidden")), depth, family)
