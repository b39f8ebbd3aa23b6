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
)

_PICTURES = 3
_TIMES = 5  # spectra in a panel
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
    images: list[Plot | Image] = [
        Image(f"step {step}", k, limits, "example, by class" if i == 0 else "")
        for i, (step, k) in enumerate(zip(steps, shown, strict=True))
    ]
    beside = whole.beside
    change = [
        Line(beside["change"], "|ΔΘ| / |Θ|"),
        Line(beside["distance"][0], "1 − cosine"),
        Line(1 - beside["cka"][0], "1 − CKA"),
    ]
    still = "" if beside["change"].any() else "the kernel does not move"
    angles = np.degrees(beside["angle"])
    turned = [Line(angles[:, 0], "largest"), Line(np.median(angles, 1), "median")]
    plots = [
        *images,
        Image("distance of checkpoints", beside["distance"], None, "checkpoint"),
        Plot("change since the first", change, logarithmic=True),
        Plot("velocity (distance per step)", [Line(beside["velocity"])], logarithmic=True),
        Plot("trace / examples", by_layer(layers, "empirical", colours_of(layers)), True),
        Plot("top eigenspace, angles (°)", turned),
    ]
    return draw_plots(cache, plots, options, still, layer_legend(layers, options))


def draw_spectrum(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """Eigenvalues over their rank at a few steps, what sums them up, and learning rates."""
    whole, centred = _whole(cache), _named(cache, "centred")
    rates = [Line(whole.beside["lr"], "run", style.MEASURED)]
    if np.isfinite(whole.beside["largest lr"]).any():
        rates.append(Line(whole.beside["largest lr"], "largest stable", style.EXACT))
    plots = [
        _eigenvalues("eigenvalues by rank", whole.measured, cache),
        _eigenvalues("by rank, centred", centred.measured, cache),
        Plot("learning rate", rates, logarithmic=True),
        Plot("effective ranks", _ranks(whole), logarithmic=True, room=0.5),
        Plot("effective ranks, centred", _ranks(centred), logarithmic=True, room=0.5),
        Plot(
            "condition number",
            [Line(x.beside["condition number"], n) for x, n in ((whole, "Θ"), (centred, "HΘH"))],
            logarithmic=True,
        ),
    ]
    return draw_plots(
        cache, plots, options, f"largest learning rate: {whole.note}" * bool(whole.note)
    )


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
    return Plot(title, lines, logarithmic=True, over_ranks=True)


def _ranks(layer: Layer) -> list[Line]:
    return [Line(layer.beside[name], label) for name, label in _RANKS.items()]


def draw_alignment(cache: Cache, layers: Sequence[Layer], options: Options) -> Figure:
    """Alignment beside norm and loss; by layer and class; similarity in time and of layers."""
    whole = _whole(cache)
    parts = [layer for layer in layers if layer.name != WHOLE]
    silent = [
        Line(_over_most(values), label)
        for values, label in (
            (whole.beside["centred"], "alignment"),
            (whole.beside["norm"], "|Θ|"),
            (whole.beside["loss"], "loss"),
        )
    ]
    classes = whole.beside["class"].T
    colours = colours_of(layers)
    plots: list[Plot | Image] = [
        Plot("silent alignment (over maxima)", silent),
        Plot("centred alignment", by_layer(layers, "centred", colours)),
        Plot("alignment", by_layer(layers, "empirical", colours)),
        Plot("of classes, centred", [Line(c, look=style.THIN) for c in classes]),
        Plot("CKA with the reference", by_layer(layers, "cka", colours)),
    ]
    if len(parts) > 1:
        names = [str(i + 1) for i in range(whole.beside["layers"].shape[1])]
        last = whole.beside["layers"][-1]
        plots.append(Image("CKA of layers, last step", last, None, "layer", names))
    return draw_plots(cache, plots, options, legend=layer_legend(layers, options))


def _over_most(values: Array) -> Array:
    most = np.nanmax(np.abs(values), initial=0.0)
    return values / most if most else values


def _whole(cache: Cache) -> Layer:
    return _named(cache, WHOLE)


def _named(cache: Cache, name: str) -> Layer:
    return next(layer for layer in cache.layers if layer.name == name)
