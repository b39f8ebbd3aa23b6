"""Figures 2 to 4: fields and charges of the symmetries, and the modified equation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from Metrics.figures import parts
from scripts.paper.toys import (
    HEAVY_BALL,
    QUADRATIC,
    ROTATION,
    SYMMETRIES,
    Array,
    Linear,
    descend,
    flow,
)

_REACH = 2.0  # of the planes that are shown, on both sides of the origin
_CONTOUR: dict[str, Any] = {"colors": "0.75", "linewidths": 0.5, "linestyles": "solid", "zorder": 1}
_STARTS = np.array([[-1.6, 0.6], [-0.6, -1.5], [1.6, -0.5], [0.4, 1.5]])
_RATE = 0.25  # of the descent that leaves the level sets visibly

FLOW: dict[str, Any] = {"linestyle": "-", "linewidth": 1.2, "color": "#0072B2", "zorder": 3}
MODIFIED: dict[str, Any] = {**parts.EXACT, "linewidth": 1.0, "zorder": 5}
DESCENT: dict[str, Any] = {"linestyle": "-", "linewidth": 0.4, "color": "#D55E00", "zorder": 4}
DESCENT |= {"marker": "o", "markersize": 1.8}


def draw_fields() -> Figure:
    """Figure 2: negative gradients, which run along the sets on which each charge is constant."""
    figure, axes = _page(1.0)
    for axis, toy in zip(axes[0], SYMMETRIES, strict=True):
        points, arrows = _points(200, _REACH), _points(13, 0.9 * _REACH)
        values = np.log(toy.loss(points) + 0.02)  # levels are dense where the loss is flat
        axis.contour(*np.moveaxis(points, -1, 0), values, levels=11, **_CONTOUR)
        force = -toy.gradient(arrows)
        # Lengths are compressed, so that directions can be seen where the loss is flat.
        size = np.linalg.norm(force, axis=-1, keepdims=True)
        shown = force / np.maximum(size, 1e-12) * np.tanh(2 * size) ** 0.5
        axis.quiver(
            *np.moveaxis(arrows, -1, 0),
            *np.moveaxis(shown, -1, 0),
            color="#0072B2",
            angles="xy",
            scale=22,
            width=0.006,
            zorder=3,
        )
        _plane_axes(axis, toy.name, toy.formulas[0])
    _legend(figure, [Line2D([], [], color="0.75", lw=0.8)], ["equal loss"], "#0072B2")
    return figure


def draw_charges() -> Figure:
    """Figure 3: flow stays on lines, circles and hyperbolas; descent leaves the latter two."""
    figure, axes = _page(1.0)
    times = np.linspace(0, 30, 400)
    for axis, toy in zip(axes[0], SYMMETRIES, strict=True):
        points = _points(201, _REACH)
        axis.contour(*np.moveaxis(points, -1, 0), toy.charge(points), levels=9, **_CONTOUR)
        for start in _STARTS:
            descent = descend(toy.gradient, start, _RATE, round(times[-1] / _RATE))
            axis.plot(*descent.T, **DESCENT)
            axis.plot(*flow(toy.gradient, start, times).T, **FLOW)
            axis.plot(*start, marker="o", color="k", markersize=2.5, zorder=6)
        _plane_axes(axis, toy.name, f"conserved: {toy.formulas[1]}")
    lines = [Line2D([], [], **FLOW), Line2D([], [], **DESCENT), Line2D([], [], color="0.75", lw=1)]
    _legend(figure, lines, ["gradient flow", f"descent, η = {_RATE:g}", "equal charge"])
    return figure


def draw_modified() -> Figure:
    """Figure 4: descent, flow and modified flow, and how far the latter two are from descent."""
    toys = (
        (ROTATION, 100, "rotation, η = 0.1"),
        (QUADRATIC, 20, "quadratic, η = 0.1"),
        (HEAVY_BALL, 50, "quadratic, η = 0.01, β = 0.9"),
    )
    figure, axes = _page(1.62, rows=2)
    for column, (toy, steps, title) in zip(axes.T, toys, strict=True):
        _draw_paths(column[0], toy, steps, title)
        _draw_errors(column[1], toy, steps)
    axes[1][0].set_ylabel("distance to descent")
    lines = [Line2D([], [], **kind) for kind in (FLOW, DESCENT, MODIFIED)]
    labels = ["flow", "gradient descent", "modified flow"]
    lines.append(Line2D([], [], color="0.75", lw=1))
    _legend(figure, lines, [*labels, "equal modified loss (with momentum: loss)"])
    return figure


def _draw_paths(axis: Axes, toy: Linear, steps: int, title: str) -> None:
    times = np.linspace(0, steps * toy.rate, 400)
    paths = (toy.flow(times), toy.modified_flow(times), toy.descent(steps))
    for path, kind in zip(paths, (FLOW, MODIFIED, DESCENT), strict=True):
        axis.plot(*path.T, **kind)
    reach = 1.15 * max(float(np.abs(path).max()) for path in paths)
    if np.allclose(toy.field, toy.field.T):  # of a loss
        # The slow motion, whose loss is modified, does not exist for a ball that overshoots.
        matrix = toy.field if toy.momentum else toy.modified_loss
        points = _points(101, reach)
        values = np.einsum("...i,ij,...j->...", points, matrix, points) / 2
        axis.contour(*np.moveaxis(points, -1, 0), values, levels=9, **_CONTOUR)
    _plane_axes(axis, title, "", reach)


def _draw_errors(axis: Axes, toy: Linear, steps: int) -> None:
    times: Array = np.arange(steps + 1, dtype=np.float64) * toy.rate
    descent = toy.descent(steps)
    errors = [np.linalg.norm(f(times) - descent, axis=1) for f in (toy.flow, toy.modified_flow)]
    for error, kind in zip(errors, (FLOW, MODIFIED), strict=True):
        axis.plot(range(1, steps + 1), error[1:], **kind)
    positive = np.concatenate([error[1:] for error in errors])
    parts.log_ticks(axis, max(float(positive.min()), 1e-6) / 2, float(positive.max()) * 2)
    parts.x_ticks(axis, np.array([0.0, steps]), whole=True)
    axis.set_xlabel("step")


def _points(count: int, reach: float) -> Array:
    """A square grid of points around the origin, [count, count, 2]."""
    line = np.linspace(-reach, reach, count)
    points: Array = np.stack(np.meshgrid(line, line), axis=-1)
    return points


def _page(ratio: float, rows: int = 1) -> tuple[Figure, Any]:
    """A page of three square columns; ``ratio`` is the height of all rows to a column's width."""
    column = (parts.PAGE_WIDTH - 0.62 - 0.14 - 2 * 0.5) / 3
    top, bottom, between = 0.58, 0.24 + 0.18 * (rows - 1), 0.42
    height = top + bottom + ratio * column + (rows - 1) * between
    figure = Figure(figsize=(parts.PAGE_WIDTH, height))
    heights = [1.0] + [ratio - 1] * (rows - 1)
    axes = figure.subplots(rows, 3, squeeze=False, height_ratios=heights)
    mean = ratio * column / rows
    figure.subplots_adjust(
        left=0.62 / parts.PAGE_WIDTH,
        right=1 - 0.14 / parts.PAGE_WIDTH,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=0.5 / column,
        hspace=between / mean,
    )
    return figure, axes


def _plane_axes(axis: Axes, title: str, formula: str, reach: float = _REACH) -> None:
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axis.set_title(title, loc="left", fontsize=parts.TITLE_SIZE, pad=4 + 10 * bool(formula))
    axis.annotate(
        formula,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 3.5),
        textcoords="offset points",
        fontsize=parts.SMALL_SIZE,
        color=parts.GREY,
    )
    parts.linear_ticks(axis, np.array([-reach, reach]) / 1.1)
    axis.set_xticks(axis.get_yticks())
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach))


def _legend(
    figure: Figure, lines: Sequence[Line2D], labels: Sequence[str], arrow: str = ""
) -> None:
    handles, names = list(lines), list(labels)
    if arrow:
        handles.append(Line2D([], [], color=arrow, marker=">", markersize=3, lw=1))
        names.append("negative gradient")
    figure.legend(handles, names, loc="upper center", ncols=len(names), frameon=False)
