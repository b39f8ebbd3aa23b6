"""Figures: coloured measurements, black dashed predictions on top, the residuals below.

Importing this package costs nothing; ``matplotlib`` is imported by the functions that draw.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from Metrics.figures._config import PlotConfig
from Metrics.figures._options import NothingToDraw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NothingToDraw", "PlotConfig", "draw"]


def draw(
    cache: Path | str,
    *,
    layers: tuple[str, ...] = (),
    layer_wise: bool = False,
    max_units: int = 12,
    x: Literal["step", "time"] = "step",
    use_tex: bool = False,
    legend: bool = True,
) -> "Figure":
    """The figure of one metric's cache, in inches of the printed page.

    Args:
        cache: the file, ``<run>/cache/<metric><suffix>.h5``.
        layers: those to show, by their names or those of modules in them; all if empty.
        layer_wise: whether to sum conserved quantities over the units of each layer.
        max_units: most curves in a panel; of more units, evenly spaced ones are shown.
        x: horizontal axis, updates done or the sum of the effective learning rates.
        use_tex: whether LaTeX sets the text.
        legend: whether there is one.

    Raises:
        NothingToDraw: the cache holds no layers or no evaluations.
        UserError: the cache is missing or damaged, a layer is unknown, or there is no LaTeX.
    """
    from Metrics.figures._cache import read_cache
    from Metrics.figures._draw import draw_cache
    from Metrics.figures._options import Options

    options = Options(tuple(layers), layer_wise, max_units, x, use_tex, legend)
    return draw_cache(read_cache(Path(cache)), options)
