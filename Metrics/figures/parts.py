"""What figures other than that of one cache are made of: the house's style, its pages, its caches.

The figures of :mod:`scripts.paper` are; so may be those of a notebook.
"""

from Metrics.figures._cache import Array, Axis, Cache, Law, Layer, read_cache
from Metrics.figures._files import write_figure
from Metrics.figures._layout import COLUMN_WIDTH, PAGE_WIDTH
from Metrics.figures._panels import relative, spread
from Metrics.figures._style import (
    EXACT,
    GREY,
    MEASURED,
    PAPER,
    SMALL_SIZE,
    THIN,
    TITLE_SIZE,
    colours,
    linear_ticks,
    log_ticks,
    plain,
    settings,
    x_ticks,
)

__all__ = [
    "COLUMN_WIDTH",
    "EXACT",
    "GREY",
    "MEASURED",
    "PAGE_WIDTH",
    "PAPER",
    "SMALL_SIZE",
    "THIN",
    "TITLE_SIZE",
    "Array",
    "Axis",
    "Cache",
    "Law",
    "Layer",
    "colours",
    "linear_ticks",
    "log_ticks",
    "plain",
    "read_cache",
    "relative",
    "settings",
    "spread",
    "write_figure",
    "x_ticks",
]
