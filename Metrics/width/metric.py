"""What every metric of an experiment is: numbers of each run, which become exponents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from Metrics.width.layout import FAN_IN, FAN_OUT
from Metrics.width.members import Group, Member
from Metrics.width.network import Checkpoint
from Metrics.width.theory import ChainTheory


class Quantity(NamedTuple):
    """What a number is of.

    Attributes:
        name: of the quantity, as in "own".
        layer: of the network; "" if it is of the whole.
    """

    name: str
    layer: str = ""


Array = NDArray[np.float64]

Values = Mapping[Quantity, float | Array]
"""What was measured; arrays [N, C], of examples and outputs, are kept for figures alone."""


class Cell(NamedTuple):
    """Where a number was measured.

    Attributes:
        run: the member's name.
        step: updates done.
        quantity: what was measured.
    """

    run: str
    step: int
    quantity: Quantity


Cells = dict[Cell, float]


@dataclass(frozen=True)
class Observation:
    """A number that takes part in the fit of an exponent.

    Attributes:
        width: n.
        seed: of the run.
        step: updates done.
        quantity: what was measured.
        value: NaN where it is not known.
    """

    width: int
    seed: int
    step: int
    quantity: Quantity
    value: float


class WidthMetric(Protocol):
    """A metric that reads all runs of an experiment."""

    @property
    def within(self) -> tuple[str, ...]:
        """Flags that do not tell groups of runs apart: the metric's own axes."""

    @property
    def reads_layers(self) -> bool:
        """Whether it needs the network, and not only numbers saved with checkpoints."""

    @property
    def counts_diverged(self) -> bool:
        """Whether runs that have diverged take part, also those without features."""

    def measure(self, checkpoint: Checkpoint) -> Values | None:
        """The numbers of one run at one step; ``None`` if features lack the outputs it reads."""

    def observations(self, members: Sequence[Member], cells: Cells) -> list[Observation]:
        """What exponents are fitted to, of a group of runs."""

    def predicted(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        """The exponent that theory gives; ``None`` if it gives none."""

    def least(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        """The smallest exponent of the parts of a sum; ``None`` if it is no sum."""

    def silence(self, group: Group, theory: ChainTheory) -> str:
        """Why nothing is predicted of a group; empty if something may be."""


class PerLayer:
    """Base of metrics that fit what they measure in every run and layer."""

    within: tuple[str, ...] = ()
    reads_layers = True
    counts_diverged = False

    def observations(self, members: Sequence[Member], cells: Cells) -> list[Observation]:
        of_name = {member.name: member for member in members}
        return [
            Observation(m.width, m.seed, cell.step, cell.quantity, value)
            for cell, value in cells.items()
            if (m := of_name.get(cell.run)) is not None
            and cell.quantity.name not in (FAN_IN, FAN_OUT)
        ]

    def least(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        return None

    def silence(self, group: Group, theory: ChainTheory) -> str:
        return theory.reason


def rms(x: Tensor) -> float:
    """Root mean square of all entries, in float64."""
    return float(x.to(torch.float64).square().mean().sqrt())


def mean_size(x: Tensor) -> float:
    """Mean absolute value of all entries, in float64."""
    return float(x.to(torch.float64).abs().mean())
