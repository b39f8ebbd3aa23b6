"""From a cache to a figure: chooses the form that shows its layers best."""

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from Metrics.figures._budget import draw_budget
from Metrics.figures._cache import PERFORMANCE, Cache, Layer
from Metrics.figures._certificate import draw_certificate
from Metrics.figures._curves import draw_gradients, draw_network, draw_performance
from Metrics.figures._kernels import draw_alignment, draw_kernels, draw_spectrum
from Metrics.figures._laws import draw_laws, draw_many_laws
from Metrics.figures._linear import draw_lazy, draw_linearized, draw_modes
from Metrics.figures._options import NothingToDraw, Options, check_layers, select_layers
from Metrics.figures._panels import Panel, layer_panel, matrix_panel, spread, unit_panel
from Metrics.figures._phase import draw_phase
from Metrics.figures._rotation import draw_rotation
from Metrics.figures._stability import draw_stability
from Metrics.figures._style import settings

MATRICES = "balance"
"""The metric whose units are the entries of a matrix."""

MANY = 12
"""The most panels that a page holds."""

_OTHER_KINDS: dict[str, Callable[[Cache, Sequence[Layer], Options], Figure]] = {
    "budget": draw_budget,
    "rotation": draw_rotation,
    "phase": draw_phase,
    "gradients": draw_gradients,
    "stability": draw_stability,
    "certificate": draw_certificate,
    "kernels": draw_kernels,
    "spectrum": draw_spectrum,
    "alignment": draw_alignment,
    "modes": draw_modes,
    "linearized": draw_linearized,
    "lazy": draw_lazy,
}


def draw_cache(cache: Cache, options: Options) -> Figure:
    """The figure of a cache.

    Raises:
        NothingToDraw: no layers, or no evaluations.
        UserError: an unknown layer, or LaTeX fails for ``use_tex``.
    """
    with settings(options.use_tex):
        figure = _draw(cache, options)
        figure.draw_without_rendering()  # so that later readers need not know the settings
    return figure


def remark(cache: Cache, options: Options) -> str:
    """What a figure leaves out because there are many layers; empty if nothing."""
    count = len(select_layers([layer.name for layer in cache.layers], options.layers))
    if cache.metric == PERFORMANCE or count <= MANY:
        return ""
    if not _is_law(cache):
        parts = "parameters" if cache.kind in {"curves", "gradients"} else "layers"
        return f"{cache.metric}: {MANY} of {count} {parts} drawn; choose with --layers"
    if options.layer_wise:
        return ""
    return f"{cache.metric}: sums of {count} layers drawn; for their units, choose with --layers"


def _draw(cache: Cache, options: Options) -> Figure:
    if cache.metric == PERFORMANCE:
        return draw_performance(cache, options)
    layers = _selected(cache, options)
    if not _is_law(cache):
        some = [layers[i] for i in spread(len(layers), MANY)]
        if cache.kind in _OTHER_KINDS:
            return _OTHER_KINDS[cache.kind](cache, some, options)
        return draw_network(cache, _panels(some, unit_panel, cache, options), options)
    if len(layers) > MANY:
        return draw_many_laws(cache, _panels(layers, layer_panel, cache, options), options)
    by_unit = matrix_panel if cache.metric == MATRICES else unit_panel
    make = layer_panel if options.layer_wise else by_unit
    return draw_laws(cache, _panels(layers, make, cache, options), options)


def _is_law(cache: Cache) -> bool:
    return any(layer.law is not None for layer in cache.layers)


def _panels(
    layers: list[Layer],
    make: Callable[[Layer, Cache, Options], Panel],
    cache: Cache,
    options: Options,
) -> list[Panel]:
    return [make(layer, cache, options) for layer in layers]


def _selected(cache: Cache, options: Options) -> list[Layer]:
    names = [layer.name for layer in cache.layers]
    if not names:
        raise NothingToDraw(f"{cache.metric}: not drawn, the network has nothing of this kind")
    check_layers(names, options.layers)
    wanted = select_layers(names, options.layers)
    return [layer for layer in cache.layers if layer.name in wanted]
