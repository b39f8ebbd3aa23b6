"""The residuals of all laws of a run in one table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from Metrics.figures._cache import Array, Layer, read_cache
from Metrics.figures._panels import relative

_HEAD = ("metric", "layer", "units", "exact law", "continuous theory", "")


def table(paths: Sequence[Path]) -> str:
    """The table that :func:`Metrics.figures.residual_table` describes."""
    rows = [_HEAD]
    for cache in map(read_cache, paths):
        rows += [(cache.metric, *_row(layer)) for layer in cache.layers if layer.law]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _row(layer: Layer) -> tuple[str, str, str, str, str]:
    law = layer.law
    assert law is not None
    opened = int(law.open.sum())
    units = f"{opened} of {layer.units}" if opened < layer.units else str(layer.units)
    return (
        layer.name,
        units,
        _largest(layer.measured, law.exact, law.size, law.open),
        _largest(layer.measured, law.paper, law.size, law.open),
        law.reason if opened < layer.units else "",
    )


def _largest(measured: Array, predicted: Array, size: Array, units: np.ndarray) -> str:
    """Of the deviations [T, U] of the given units ([U]); "–" if there are none."""
    values = relative(measured, predicted, size)[:, units]
    values = values[np.isfinite(values)]
    return f"{values.max():.1e}" if values.size else "–"
