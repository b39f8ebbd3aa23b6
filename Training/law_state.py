"""What is known of each law between two steps, and what is common to all ways to advance it.

Shape letters: K laws, Q quadratic and L linear ones.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from Training.discrete_laws import Floats


@dataclass
class LawState:
    """What is known of each law between two steps, in float64.

    Attributes:
        start: the charges at the beginning, [K].
        charge: what the law predicts, [K].
        kinetic, leak: what the square of the update and the broken symmetry have added to it
            since the start, [K].
        paper: what the paper's continuous theory predicts, [K]; NaN where it has none.
        turned: the angle in radians by which each group of weights has turned, summed over the
            steps, [Q]; meaningful for scale laws.
        velocity, kinetic_velocity, leak_velocity, paper_rate: ⟨θ, v⟩_S for the momentum buffer
            v, what the squares and the leak have added to it, and the time derivative of
            ``paper``, [K].
        apart: whether the parameters of a law have been updated with different
            hyper-parameters, [K].
    """

    start: Floats
    charge: Floats
    kinetic: Floats
    leak: Floats
    paper: Floats
    turned: Floats
    velocity: Floats
    kinetic_velocity: Floats
    leak_velocity: Floats
    paper_rate: Floats
    apart: NDArray[np.bool_]

    @classmethod
    def at(cls, charges: Floats, quadratic: int) -> "LawState":
        """The state from which predictions start, with the first Q laws quadratic."""
        zeros = {f.name: np.zeros_like(charges) for f in fields(cls)}
        apart = np.zeros(len(charges), bool)
        known = {name: charges.copy() for name in ("start", "charge", "paper")}
        return cls(**{**zeros, **known, "turned": np.zeros(quadratic), "apart": apart})

    @property
    def decay(self) -> Floats:
        """What weight decay has added to the charge since the start, [K]."""
        return self.charge - self.start - self.kinetic - self.leak


def angle(before: Floats, after: Floats, moved: Floats) -> Floats:
    """The angle between weights before and after a step, in radians.

    Args:
        before, after: |θ|² and |θ'|², [K].
        moved: |θ' − θ|², [K].
    """
    along = (after - before - moved) / 2  # ⟨θ, θ' − θ⟩
    across = np.sqrt(np.maximum(moved * before - along**2, 0))  # |θ| times the part across θ
    turned: Floats = np.arctan2(across, before + along)
    return turned


def joined(parts: list[Tensor]) -> Tensor:
    """All parts, one after the other."""
    return torch.cat(parts) if parts else torch.zeros(0)


def split(rows: Floats, widths: list[int]) -> list[Floats]:
    """Cut steps' rows, along the last axis, into parts of the given widths."""
    return np.split(rows, np.cumsum(widths)[:-1], axis=-1)
