"""Tangent kernels at checkpoints, as images and as curves; their spectra; their alignments."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from Metrics.figures import _style as style
from Metrics.figures._cache import Array, Cache, Layer
from Metrics.figures._options import Options
from Metrics.figures._panels import spread
from Metrics.figures._plots import (
    WHOLE,
    Image,
    Line,
    Plot,
    by_layer,
    colours_of,
    draw_plots,
    early_to_late,
    layer_legend,
    of_network,
)

_PICTURES = 3
_TIMES = 5  # spectra in a panel
_LAYERS = 8  # with a number beside the image of their similarities
_TICK_SPACE, _DIGIT = 0.04, 0.045  # of the side of an image: between names of classes, in them
_RANKS = {
    "effective rank": "entropy",
    "participation ratio": "participation",
    "stable rank": "stable",
}


def draw_kernels(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """Kernels ordered by class, over their mean diagonal; distances between them, and change."""
    whole = _whole(cache)
    kernels = [whole.beside["kernel"][t] for t in spread(len(cache.at.step), _PICTURES)]
    kernels = [np.trace(k, axis1=2, axis2=3) / k.shape[2] if k.ndim == 4 else k for k in kernels]
    order = np.argsort(whole.beside["class"][0], kind="stable")
    shown = [k[np.ix_(order, order)] * len(k) / np.trace(k) for k in kernels]
    limits = (min(float(k.min()) for k in shown), float(np.percentile(shown, 99)))
    steps = [int(cache.at.step[t]) for t in spread(len(cache.at.step), _PICTURES)]
    classes = _class_ticks(whole.beside["class"][0][order])
    label = "class of example" if classes else "example"
    images: list[Plot | Image] = [
        Image(f"Θ / mean diagonal, step {step}", k, limits, label if i == 0 else "", classes)
        for i, (step, k) in enumerate(zip(steps, shown, strict=True))
    ]
    beside, times = whole.beside, spread(len(cache.at.step), _PICTURES)
    some = {float(t): f"{int(cache.at.step[t])}" for t in times}
    change = {
        "|ΔΘ| / |Θ|": beside["change"].copy(),
        "1 − cosine": beside["distance"][0].copy(),
        "1 − CKA": 1 - beside["cka"][0],
    }
    apart = 0.0, float(np.nanmax(beside["distance"], initial=0.0)) or 1.0
    still = "" if beside["change"].any() else "the kernel does not move"
    for curve in change.values():
        curve[beside["change"] == 0] = 0  # instead of rounding, where it is the first kernel
    plots = [
        *images,
        Image("1 − cosine between steps", beside["distance"], apart, "step", some),
        Plot("change since the first step", of_network(change), logarithmic=True, room=0.5),
        Plot("velocity (1 − cosine, per step)", of_network({"": beside["velocity"]}), True),
        Plot("trace / examples", by_layer(layers, "empirical", colours_of(layers)), True),
        _angles(np.degrees(beside["angle"]), len(order)),
    ]
    return draw_plots(cache, plots, options, still, layer_legend(layers, options))


def _class_ticks(classes: Array) -> dict[float, str]:
    """Where each class is among sorted ones, with its name, if that is not too near another's."""
    found = {float(np.flatnonzero(classes == c).mean()): f"{int(c)}" for c in np.unique(classes)}
    if len(found) == 1:  # of a regression
        return {}
    ticks: dict[float, str] = {}
    for place, name in found.items():
        last = max(ticks, default=-np.inf)
        digits = (len(name) + len(ticks.get(last, ""))) / 2
        if place - last > (_TICK_SPACE + _DIGIT * digits) * len(classes):
            ticks[place] = name
    return ticks


def _angles(angles: Array, examples: int) -> Plot:
    """Of angles [T, k] the largest and the median; rounding is not spread over the panel.

    Where there are as many outputs as examples, the eigenspace is the whole space.
    """
    curves = {"largest": angles[:, 0], "median": np.median(angles, axis=1)}
    shown = of_network(curves if angles.shape[1] > 1 else {"": angles[:, 0]})
    highest = max(float(np.nanmax(angles, initial=0.0)), 1.0)
    limits = (-0.03 * highest, 1.05 * highest)
    all_ = "of all directions: always 0" * (angles.shape[1] >= examples)
    return Plot("top eigenspace, angles (°)", shown, limits=limits, note=all_)


def draw_spectrum(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """Eigenvalues over their rank at a few steps, what sums them up, and learning rates."""
    whole, centred = _whole(cache), _named(cache, "centred")
    rates = [Line(whole.beside["lr"], "of the run", style.MEASURED)]
    if np.isfinite(whole.beside["largest lr"]).any():
        rates.append(Line(whole.beside["largest lr"], "largest stable", style.EXACT))
    of = {
        name: x.beside["condition number"]
        for name, x in (("Θ", whole), ("centred", centred))
        if x.units
    }
    conditions = [Line(values, name) for name, values in of.items() if np.isfinite(values).any()]
    beyond = " and ".join(name for name, values in of.items() if np.isnan(values).any())
    note = f"largest stable: {whole.note}" * bool(whole.note)
    spectra = {"eigenvalues": whole, "eigenvalues, centred": centred}
    plots = [
        *(_eigenvalues(title, x.measured, cache) for title, x in spectra.items() if x.units),
        Plot("learning rate", rates, logarithmic=True, room=0.35, note=note),
        *(
            Plot(f"effective ranks{part}", _ranks(x), logarithmic=True, room=0.5)
            for part, x in (("", whole), (", centred", centred))
            if x.units
        ),
        Plot(
            "condition number",
            conditions,
            logarithmic=True,
            room=0.35,
            note=f"{beyond}: infinite where λ_N is rounding" * bool(beyond),
        ),
    ]
    return draw_plots(cache, plots, options)


def _eigenvalues(title: str, values: Array, cache: Cache) -> Plot:
    chosen = spread(len(values), _TIMES)
    ranks = np.arange(1.0, values.shape[1] + 1)
    lines = [
        Line(
            np.where(values[t] > 0, values[t], np.nan),
            f"step {int(cache.at.step[t])}" if t in (chosen[0], chosen[-1]) else "",
            {**style.THIN, "color": colour},
            ranks,
        )
        for t, colour in zip(chosen, early_to_late(len(chosen)), strict=True)
    ]
    return Plot(title, lines, logarithmic=True, over="rank")


def _ranks(layer: Layer) -> list[Line]:
    return [Line(layer.beside[name], label) for name, label in _RANKS.items()]


def draw_alignment(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """Alignment beside norm and loss; by layer and class; similarity in time and of layers."""
    whole = _whole(cache)
    parts = [layer for layer in layers if layer.name != WHOLE]
    silent = {"alignment": "centred", "|Θ|": "norm", "loss": "loss"}
    over_most = {label: _over_most(whole.beside[curve]) for label, curve in silent.items()}
    colours = colours_of(layers)
    plots: list[Plot | Image] = [
        Plot("silent alignment (over maxima)", of_network(over_most), room=0.5),
        Plot("centred alignment", by_layer(layers, "centred", colours)),
        Plot("alignment", by_layer(layers, "empirical", colours)),
        *_of_classes(whole.beside["class"]),
        Plot("CKA with the reference", by_layer(layers, "cka", colours)),
    ]
    if len(parts) > 1:
        last = whole.beside["layers"][-1]
        some = {float(i): f"{i + 1}" for i in spread(len(last), _LAYERS)}
        plots.append(Image("CKA of layers, last step", last, None, "layer", some))
    return draw_plots(cache, plots, options, legend=layer_legend(layers, options))


def _of_classes(alignments: Array) -> list[Plot]:
    """A line for each class of [T, C], the first and the last one with their names."""
    count = alignments.shape[1]
    if count == 1:
        return []
    looks = [{**style.THIN, "color": c} for c in early_to_late(count)]
    names = [f"class {i}" * (i in (0, count - 1)) for i in range(count)]
    lines = [Line(*each) for each in zip(alignments.T, names, looks, strict=True)]
    return [Plot("centred alignment of classes", lines, room=0.4)]


def _over_most(values: Array) -> Array:
    most = np.nanmax(np.abs(values), initial=0.0)
    return values / most if most else values


def _whole(cache: Cache) -> Layer:
    return _named(cache, WHOLE)


def _named(cache: Cache, name: str) -> Layer:
    return next(layer for layer in cache.layers if layer.name == name)
