"""How a figure is drawn, and which layers it shows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from Utils.errors import UserError
from Utils.registry import unknown

X = Literal["step", "time"]


class NothingToDraw(UserError):
    """The cache is sound and empty, as that of a law which the model does not have."""


@dataclass(frozen=True)
class Options:
    """How a figure is drawn; the flags of ``plot.py`` describe each one."""

    layers: tuple[str, ...] = ()
    layer_wise: bool = False
    max_units: int = 12
    x: X = "step"
    use_tex: bool = False
    legend: bool = True


def select_layers(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The ``names`` that ``wanted`` asks for, in their order; all if nothing is wanted.

    A layer is asked for by its own name (``conv1|conv2``), by a module in it (``conv2``), or
    by a module that holds it (``features`` for ``features.0``).
    """
    return [name for name in names if not wanted or any(_is_in(w, name) for w in wanted)]


def check_layers(names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise :class:`UserError` if some wanted layer is in none of the ``names``."""
    for layer in wanted:
        if not select_layers(names, [layer]):
            raise UserError(f"--layers: {unknown('layer', layer, dict.fromkeys(names))}")


def _is_in(wanted: str, name: str) -> bool:
    return wanted == name or any(
        part == wanted or part.startswith(f"{wanted}.") for part in re.split(r"[|+ ]", name)
    )
