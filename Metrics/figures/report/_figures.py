"""Figures as parts of a page: the picture's bytes within it, and its words."""

import base64
import io
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from Metrics.figures._cache import Array, Cache, Header, read_cache
from Metrics.figures._draw import draw_cache, remark
from Metrics.figures._options import NothingToDraw, Options, select_layers
from Metrics.figures._style import settings
from Metrics.registry import METRICS

_PIXELS = 132  # CSS pixels for an inch of the printed page, so that small text can be read
_DPI = 200  # of figures that are made of pixels: sharp enough, and few bytes
_COLOURS = 64  # of theirs: a third of the bytes, and no difference to the eye
_NAMED = 6  # layers in an alternative text


@dataclass(frozen=True)
class Picture:
    """One metric's figure.

    Attributes:
        metric: its name.
        title: of the metric.
        description: what it tells, in a sentence.
        citation: the paper it comes from; empty for common knowledge.
        remark: what the figure leaves out, or why there is none.
        source: the picture itself, as a data URI; empty if there is none.
        alternative: what it shows, in words and numbers.
        width, height: on the page, in CSS pixels.
    """

    metric: str
    title: str
    description: str
    citation: str
    remark: str
    source: str = ""
    alternative: str = ""
    width: int = 0
    height: int = 0


def picture(header: Header, options: Options, most: int) -> Picture:
    """The figure of a cache, or the reason why there is none.

    Args:
        header: the cache.
        options: how it is drawn; layers that it does not have are not asked for.
        most: bytes of a vector graphic, above which the figure is drawn in pixels.
    """
    entry = METRICS[header.metric]
    words = (entry.name, entry.title, sentence(entry.description), entry.citation)
    wanted = tuple(w for w in options.layers if select_layers(header.layers, [w]))
    if options.layers and header.layers and not wanted:
        return Picture(*words, "Not drawn: it has none of the layers that were asked for.")
    cache, options = read_cache(header.path), replace(options, layers=wanted)
    try:
        figure = draw_cache(cache, options)
    except NothingToDraw as reason:
        return Picture(*words, sentence(str(reason).partition(": ")[2]))
    left_out = sentence(remark(cache, options).partition(": ")[2])
    source = data_uri(figure, options, most)
    return Picture(*words, left_out, source, _in_words(cache), *pixels(figure))


def pixels(figure: Figure) -> tuple[int, int]:
    """Width and height of a figure on the page, in CSS pixels."""
    width, height = (round(_PIXELS * inches) for inches in figure.get_size_inches())
    return width, height


def data_uri(figure: Figure, options: Options, most: int) -> str:
    """Lines where they are few enough, which stay sharp at any size, and pixels where not."""
    with settings(options.use_tex):
        lines, raster = io.BytesIO(), io.BytesIO()
        figure.savefig(lines, format="svg", metadata={"Date": None})
        if len(lines.getvalue()) <= most:
            return _encoded("image/svg+xml", lines.getvalue())
        figure.savefig(raster, format="png", dpi=_DPI)
    few = io.BytesIO()
    Image.open(raster).convert("RGB").quantize(_COLOURS).save(few, "png", optimize=True)
    return _encoded("image/png", few.getvalue())


def _encoded(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _in_words(cache: Cache) -> str:
    """What a reader who does not see the curves should know of them."""
    names = [layer.name for layer in cache.layers]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    steps = f"from step {cache.at.step[0]:.0f} to {cache.at.step[-1]:.0f}"
    curves = sum(layer.units for layer in cache.layers)
    first, last = (_range(np.concatenate([x.measured[i] for x in cache.layers])) for i in (0, -1))
    what = f"{curves} curves of {', '.join(names[:_NAMED])}{more}, {steps}"
    return f"{cache.title}: {what}; values {first} at first, {last} at last."


def _range(values: Array) -> str:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "not known"
    low, high = float(finite.min()), float(finite.max())
    return f"{low:.3g}" if low == high else f"from {low:.3g} to {high:.3g}"


def sentence(text: str) -> str:
    """A remark as a sentence."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""
