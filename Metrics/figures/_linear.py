"""A network beside its linearisation: errors of modes, losses and outputs, and relative changes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from Metrics.figures import _style as style
from Metrics.figures._cache import Cache, Layer
from Metrics.figures._options import Options
from Metrics.figures._plots import (
    WHOLE,
    Line,
    Plot,
    by_layer,
    colours_of,
    draw_plots,
    layer_legend,
    of_network,
)

_MODES = 6  # in a panel

_WAYS = {
    "weights": ("linear, same steps", style.EXACT),
    "descent": ("kernel, full batches", {**style.THIN, "color": "#D55E00", "linestyle": "--"}),
    "flow": ("kernel, gradient flow", style.PAPER),
}
"""Ways of predicting, their labels and looks."""


def draw_modes(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """Errors along some eigenvectors, with their predicted decay, and the targets' power."""
    of = {layer.name: layer for layer in cache.layers}
    reference, now = of["reference"], of["now"]
    chosen = [
        int(i) - 1
        for i in np.unique(
            np.geomspace(1, reference.units, min(_MODES, options.max_units)).astype(int)
        )
    ]
    colours = style.colours(len(chosen))
    targets = {"reference": reference.beside["target"][-1], "last step": now.beside["target"][-1]}
    powers = [replace(line, x=np.arange(1.0, len(line.values) + 1)) for line in of_network(targets)]
    plots = [
        Plot("along the reference's modes", _modes(reference, chosen, colours), logarithmic=True),
        Plot("along the modes of the step", _modes(now, chosen, colours), logarithmic=True),
        Plot("part of the targets within modes", powers, over="modes", limits=(0.0, 1.05)),
    ]
    handles = [Line2D([], [], color=colour, **style.MEASURED) for colour in colours]
    labels = [f"mode {i + 1}" for i in chosen]
    if np.isfinite(reference.beside["theoretical"]).any():
        handles.append(Line2D([], [], **style.EXACT))
        labels.append("linear model")
    return draw_plots(cache, plots, options, reference.note, (handles, labels))


def _modes(layer: Layer, chosen: Sequence[int], colours: Sequence[object]) -> list[Line]:
    pairs = list(zip(chosen, colours, strict=True))
    lines = [Line(layer.measured[:, i], "", {**style.THIN, "color": c}) for i, c in pairs]
    predicted = layer.beside.get("theoretical")
    if predicted is not None:
        for i, colour in pairs:
            look = style.EXACT | {"color": style.darker(colour)}
            lines.append(Line(predicted[:, i], "", look, frames=False))
    return lines


def draw_linearized(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """Loss and accuracy beside those of linear models; distances between their outputs."""
    of = {layer.name: layer for layer in cache.layers}
    plots = [
        Plot(name, _beside(of[name]), logarithmic)
        for name, logarithmic in (("loss", True), ("accuracy", False))
        if np.isfinite(of[name].measured).any()
    ]
    outputs = of["outputs"]
    unmoved = outputs.measured[:, 0] == 0  # at the reference: errors there are rounding
    errors = [replace(x, values=np.where(unmoved, np.nan, x.values)) for x in _ways(outputs)]
    gaps = [Line(outputs.measured[:, 0], "", style.MEASURED), *errors]
    plots.append(Plot("outputs: change, and errors", gaps, logarithmic=True))
    known = [way for way in _WAYS if np.isfinite(outputs.beside[way]).any()]
    looks = [style.MEASURED | {"color": style.colours(1)[0]}, *(_WAYS[way][1] for way in known)]
    handles = [Line2D([], [], **look) for look in looks]
    legend = handles, ["network", *(_WAYS[way][0] for way in known)]
    return draw_plots(cache, plots, options, outputs.note, legend)


def _beside(layer: Layer) -> list[Line]:
    return [Line(layer.measured[:, 0], "", style.MEASURED), *_ways(layer)]


def _ways(layer: Layer) -> list[Line]:
    curves = [(layer.beside[way], look) for way, (_, look) in _WAYS.items()]
    return [Line(values, "", look) for values, look in curves if np.isfinite(values).any()]


def draw_lazy(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """Relative changes of layers, and of what the whole network does."""
    colours = colours_of(layers)
    whole = next(layer for layer in cache.layers if layer.name == WHOLE)
    labels = {"gap": "nonlinear part of outputs", "patterns": "rectifiers that switched"}
    rest = {label: whole.beside[c] for c, label in labels.items() if c in whole.beside}
    plots = [
        Plot("weights, relative change", by_layer(layers, "empirical", colours), logarithmic=True),
        Plot(
            "tangent kernel, relative change", by_layer(layers, "kernel", colours), logarithmic=True
        ),
        Plot("features, 1 − CKA", by_layer(layers, "features", colours), logarithmic=True),
        Plot("parts of the whole", of_network(rest), logarithmic=True, room=0.2),
    ]
    return draw_plots(cache, plots, options, legend=layer_legend(layers, options))
