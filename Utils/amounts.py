"""Amounts of memory and time, as messages say them."""

_BYTES = ((1.0, "bytes"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"))
_SECONDS = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "days"))
_HANDY = 99.5
"""Of times: the number from which on the next unit is taken."""


def bytes_text(size: float) -> str:
    """A number of bytes in the unit that suits it, powers of 1000: "16 MB", "2.4 GB"."""
    unit, name = next((u for u in reversed(_BYTES) if size >= 0.9995 * u[0]), _BYTES[0])
    return f"{_digits(size / unit)} {name}"


def seconds_text(seconds: float) -> str:
    """A duration in the unit that suits it: "0.046 s", "90 s", "12 min", "3.5 h"."""
    unit, name = next((u for u in _SECONDS if seconds < _HANDY * u[0]), _SECONDS[-1])
    return f"{_digits(seconds / unit)} {name}"


def _digits(number: float) -> str:
    """Two digits, or all of those before the point."""
    return f"{number:.0f}" if number >= 9.95 else f"{number:.2g}"
