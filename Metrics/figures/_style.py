"""The look of all figures: fonts, colours, ticks. Sizes are those of the printed page."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from Metrics.figures._cache import Array
from Utils.errors import UserError

TITLE_SIZE = 8.0  # points
SMALL_SIZE = 7.0  # points; nothing is smaller

GREY = "0.35"

_FAR_APART = 30.0

# Okabe and Ito's colours without black (the predictions') and yellow (too pale on white).
_FEW = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")

SHADES = ("k", "0.5", "0.75")
"""Of curves that are all of the whole network, beside others whose colours are those of layers."""

KINDS = {"diagonal": "#0072B2", "off-diagonal": "#E69F00"}
"""Colours of curves that differ in kind."""

MEASURED: dict[str, Any] = {"linestyle": "-", "linewidth": 1.6, "zorder": 2}
EXACT: dict[str, Any] = {"linestyle": (0, (3.5, 2.2)), "linewidth": 0.8, "color": "k", "zorder": 4}
PAPER: dict[str, Any] = {"linestyle": ":", "linewidth": 0.9, "color": GREY, "zorder": 3}
THIN: dict[str, Any] = {"linestyle": "-", "linewidth": 0.9, "zorder": 2}
ANGULAR: dict[str, Any] = {"linestyle": "-.", "linewidth": 1.2, "color": "#A50F6B", "zorder": 5}
ROUNDING: dict[str, Any] = {"linestyle": "-", "linewidth": 0.6, "color": "0.6", "zorder": 1}

_BASE: dict[str, Any] = {
    "font.size": TITLE_SIZE,
    "axes.titlesize": TITLE_SIZE,
    "axes.labelsize": TITLE_SIZE,
    "xtick.labelsize": SMALL_SIZE,
    "ytick.labelsize": SMALL_SIZE,
    "legend.fontsize": SMALL_SIZE,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "axes.formatter.useoffset": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.solid_capstyle": "round",
    "pdf.fonttype": 42,  # editable text; publishers refuse Type 3 fonts
    "svg.hashsalt": "learning-mechanics",  # the same figure has the same bytes
    "savefig.dpi": 300,
}
# matplotlib ships STIX, so figures look the same everywhere; DejaVu has the missing glyphs.
_MATHTEXT = {"font.family": ["STIXGeneral", "DejaVu Sans"], "mathtext.fontset": "stix"}
_TEX = {"text.usetex": True, "font.family": "serif"}

_TEX_SPECIAL = {character: "\\" + character for character in "_#%&{}$"} | {
    "\\": r"\textbackslash{}",
    "^": r"\^{}",
    "~": r"\~{}",
    "…": r"\ldots{}",
    "–": "--",
    "|": "$|$",
    "<": "$<$",
    ">": "$>$",
    "−": "$-$",
    "·": r"$\cdot$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "′": "$'$",
    "²": "$^2$",
    "°": r"$^\circ$",
    "₀": "$_0$",
    "×": r"$\times$",
    "∞": r"$\infty$",
    "θ": r"$\theta$",
    "Θ": r"$\Theta$",
    "Δ": r"$\Delta$",
    "ε": r"$\varepsilon$",
    "λ": r"$\lambda$",
    "β": r"$\beta$",
    "η": r"$\eta$",
}


@contextmanager
def settings(use_tex: bool) -> Iterator[None]:
    """A context with matplotlib's settings, text being set by LaTeX or by matplotlib itself.

    Raises:
        UserError: LaTeX, or a program or font it comes with, is missing or fails.
    """
    rc: Any = _BASE | (_TEX if use_tex else _MATHTEXT)  # older stubs have other types of keys
    try:
        with style.context(["default", rc]):  # whatever the user's matplotlibrc says
            yield
    except (RuntimeError, FileNotFoundError) as error:
        if not use_tex:
            raise
        why = str(error).partition("\n")[0]
        raise UserError(f"--use-tex: {why}; mend LaTeX or use --no-use-tex") from error


def plain(text: str, use_tex: bool) -> str:
    """``text`` so that no character of it is markup."""
    if use_tex:
        escaped = (_TEX_SPECIAL.get(c, c if c.isascii() else "?") for c in text)
        return "".join(escaped)
    return text.replace("$", r"\$")


def layer_title(name: str, inches: float, points: float, use_tex: bool) -> str:
    """A layer's name on the page; in STIX a bar without spaces reads like an l."""
    return plain(shorten(name.replace("|", " | "), inches, points), use_tex)


def width(text: str, points: float = SMALL_SIZE) -> float:
    """How wide a text is on the page, in inches; with LaTeX, about."""
    if not text:
        return 0.0
    path = TextPath((0, 0), text.replace("$", "S"), size=points)  # "$" would begin a formula
    return float(path.get_extents().width / 72)


def shorten(text: str, inches: float, points: float = SMALL_SIZE) -> str:
    """``text`` with as much of its middle left out as makes it fit."""
    short, kept = text, len(text)
    while kept > 2 and width(short, points) > inches:
        kept -= 1
        short = f"{text[: kept // 2]}…{text[len(text) - (kept + 1) // 2 :]}"
    return short


def wrap(text: str, inches: float) -> str:
    """Small text in lines that fit a width."""
    mean = width(text) / max(len(text), 1)
    return textwrap.fill(text, max(int(0.95 * inches / mean), 1)) if mean else text


def colours(count: int) -> list[Any]:
    """``count`` colours that colour-blind readers can tell apart; ordered if they are many."""
    if count <= len(_FEW):
        return list(_FEW[:count])
    ordered = colormaps["viridis"](np.linspace(0.05, 0.95, count))
    return list(0.75 * ordered + 0.25)  # paler, so that black dashes are seen on all of them


def darker(colour: Any) -> tuple[float, float, float]:
    """A colour for dashes on curves of ``colour``, which tells to which of them they belong."""
    red, green, blue = (0.45 * part for part in to_rgb(colour))
    return red, green, blue


def width_power(exponent: float, interval: float) -> str:
    """ "width^(−0.51±0.04)" as markup."""
    error = rf" \pm {interval:.2f}" if np.isfinite(interval) else ""
    return rf"width$^{{{exponent:.2f}{error}}}$"


def number(value: float) -> str:
    """A number as markup, as a power of ten where it has many zeros."""
    if not value or 1e-3 <= abs(value) < 1e5:
        return f"{value:g}"
    digits, power = f"{value:e}".split("e")
    factor = f"{float(digits):g}"
    return "$" + rf"{factor}\cdot" * (factor != "1") + f"10^{{{int(power)}}}$"


def rank_ticks(axes: Axes, highest: float) -> None:
    """A logarithmic horizontal axis from 1 on, with whole numbers."""
    axes.set_xscale("log")
    axes.set_xlim(1 / 1.1, max(highest, 2.0) * 1.1)
    few = highest < 20
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def linear_ticks(axes: Axes, values: Array, most: int = 5) -> None:
    """Limits that show ``values``, and few ticks, ``most`` intervals between them.

    Limits never close in on less than 1 % of the values, so that a conserved quantity looks
    conserved instead of showing its rounding errors.
    """
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    middle, span = (low + high) / 2, max(high - low, 0.01 * max(abs(low), abs(high))) or 1.0
    axes.set_ylim(middle - 0.55 * span, middle + 0.55 * span)
    axes.yaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))


def value_ticks(axes: Axes, values: Array) -> None:
    """Limits and ticks that show ``values``: logarithmic if they are positive and far apart."""
    low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
    if 0 < low < high / _FAR_APART:
        log_ticks(axes, low / 1.3, high * 1.3)
    else:
        linear_ticks(axes, values)


def log_ticks(axes: Axes, low: float, high: float) -> None:
    """A logarithmic vertical axis with few ticks; of whole decades, if it spans many.

    It is linear where so little is spanned that it would have less than two ticks.
    """
    axes.set_ylim(low, high)
    round_numbers, narrow = LogLocator(subs=(1, 2, 5)), high < 1e2 * low
    ticks = round_numbers.tick_values(low, high) if narrow else ()
    if narrow and sum(low <= tick <= high for tick in ticks) < 2:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        return
    axes.set_yscale("log")
    if narrow:
        axes.yaxis.set_major_locator(round_numbers)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    else:
        axes.yaxis.set_major_locator(LogLocator(numticks=4))
    axes.yaxis.set_minor_locator(NullLocator())


def x_ticks(axes: Axes, values: Array, whole: bool) -> None:
    """Horizontal limits that fit ``values``, and few ticks, at whole numbers if asked for."""
    low, high = values.min(), values.max()
    margin = 0.02 * (high - low) or 0.5
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=whole))
