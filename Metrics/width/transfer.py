"""How the best learning rate and the loss depend on the width.

Runs that differ in --lr besides width and seed are one group. For each width and seed, the best
learning rate is where the last training loss is least, between the points of the sweep: at the
vertex of the parabola of log loss over log lr through the least one and its two neighbours,
where these exist. If the best one of a sweep is at its end, it is not known. A run that has
diverged has an infinite loss; one that has not come to its end has none.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import isnan

import numpy as np

from Metrics.fits import minimum
from Metrics.width.infinite import LimitCheckpoint, no_ensemble
from Metrics.width.layout import AT
from Metrics.width.members import Group, Member
from Metrics.width.metric import Cell, Cells, Observation, Quantity, Values
from Metrics.width.network import Checkpoint
from Metrics.width.theory import ChainTheory

BEST = "best lr"
LEAST = "least loss"

LOSS = Quantity("train loss")


class Transfer:
    """The training loss of each run at the checkpoints that were evaluated."""

    within: tuple[str, ...] = ("lr",)
    reads_layers = False
    counts_diverged = True

    def measure(self, checkpoint: Checkpoint) -> Values:
        return {LOSS: checkpoint.metric("train_loss")}

    def why_no_limit(self, member: Member) -> str:
        return no_ensemble(member)

    def measure_limit(self, limit: LimitCheckpoint) -> Values | None:
        """The mean loss of the ensemble's networks, where it is known: at ends of epochs."""
        if limit.ensemble is None:
            return None
        return {} if isnan(limit.loss) else {LOSS: limit.loss}

    def observations(self, members: Sequence[Member], cells: Cells) -> list[Observation]:
        """The best learning rate and loss of each width and seed, and losses at fixed rates."""
        step, losses = last_losses(members, cells)
        seen = []
        for (width, seed), curve in losses.items():
            rates = np.array(sorted(curve))
            values = np.array([curve[rate] for rate in rates])
            best, least = minimum(rates, values)
            seen.append(Observation(width, seed, step, Quantity(BEST), best))
            seen.append(Observation(width, seed, step, Quantity(LEAST), least))
            seen += [
                Observation(width, seed, step, Quantity(f"{AT}{rate:g}"), loss)
                for rate, loss in zip(rates, values, strict=True)
            ]
        return seen

    def predicted(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        """With muP's exponents the best learning rate does not move; others promise nothing."""
        if quantity.name != BEST or theory.theory is None or not theory.maximal:
            return None
        return Fraction(0)

    def least(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        return None

    def silence(self, group: Group, theory: ChainTheory) -> str:
        return theory.reason


Losses = Mapping[tuple[int, int], Mapping[float, float]]


def last_losses(members: Sequence[Member], cells: Cells) -> tuple[int, Losses]:
    """The losses by learning rate at the last step that any run has, by width and seed.

    Runs that have not come so far are left out; those that have diverged are infinite.
    """
    last = max((member.steps[-1] for member in members if member.steps), default=0)
    losses: dict[tuple[int, int], dict[float, float]] = {}
    for member in members:
        loss = cells.get(Cell(member.name, last, LOSS))
        if member.diverged is not None:
            loss = float("inf")
        if loss is not None:
            curve = losses.setdefault((member.width, member.seed), {})
            curve[float(member.flag("lr"))] = loss
    return last, losses
