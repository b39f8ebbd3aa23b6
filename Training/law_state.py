"""What is known of each law between two steps, and what is common to all ways to advance it.

Shape letters: K laws, F families of laws, Q quadratic and L linear ones; M members of an
ensemble, where "..." says that there may be any.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from Models.symmetry import Laws
from Training.discrete_laws import Floats

LEAK_TOLERANCE = 1e-3
"""A law's gate closes when the measured leak ⟨θ, g⟩_S has added more than this to its charge,
relative to the charge's size, and more than a twentieth of what decay and the squares of updates
have: the parameters then have no such symmetry to speak of. Below it, the leak (usually the ε of
a normalisation) is a measured source in the law."""

_TRANSPORT = 50
"""A leak of LEAK_TOLERANCE times this is a twentieth."""


@dataclass
class LawState:
    """What is known of each law between two steps, in float64.

    Attributes:
        start: the charges at the beginning, [..., K].
        charge: what the law predicts, [..., K].
        kinetic, leak: what the square of the update and the broken symmetry have added to it
            since the start, [..., K].
        paper: what the paper's continuous theory predicts, [..., K]; NaN where it has none.
        turned: the angle in radians by which each group of weights has turned, summed over the
            steps, [..., Q]; meaningful for scale laws.
        velocity, kinetic_velocity, leak_velocity, paper_rate: ⟨θ, v⟩_S for the momentum buffer
            v, what the squares and the leak have added to it, and the time derivative of
            ``paper``, [..., K].
        leak_peak: the largest leak seen, relative to a charge's size or to what has moved it,
            [..., K].
        apart: whether the parameters of a law have been updated with different
            hyper-parameters, [..., K].
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
    leak_peak: NDArray[np.float32]
    apart: NDArray[np.bool_]

    @classmethod
    def at(cls, charges: Floats, quadratic: int) -> "LawState":
        """The state from which predictions start, with the first Q laws quadratic."""
        names = (f.name for f in fields(cls) if f.name not in {"leak_peak", "apart"})
        zeros = {name: np.zeros_like(charges) for name in names}
        known = {name: charges.copy() for name in ("start", "charge", "paper")}
        peak, apart = np.zeros(len(charges), np.float32), np.zeros(len(charges), bool)
        zeros |= {**known, "turned": np.zeros(quadratic)}
        return cls(**zeros, leak_peak=peak, apart=apart)

    @classmethod
    def of_all(cls, states: Sequence["LawState"]) -> "LawState":
        """The states of an ensemble's members as one, [M, ...]; theirs become views of it."""
        arrays = {}
        for name in (field.name for field in fields(cls)):
            arrays[name] = np.stack([getattr(state, name) for state in states])
            for state, row in zip(states, arrays[name], strict=True):
                setattr(state, name, row)
        return cls(**arrays)

    @property
    def decay(self) -> Floats:
        """What weight decay has added to the charge since the start, [..., K]."""
        return self.charge - self.start - self.kinetic - self.leak

    @property
    def open(self) -> NDArray[np.bool_]:
        """Which laws' preconditions have held so far, [..., K]."""
        return (self.leak_peak <= LEAK_TOLERANCE) & ~self.apart

    def compare(self, laws: Laws, measured: Floats, size: Floats) -> dict[str, Floats]:
        """Charges beside what is predicted of them, and the account of what has changed them.

        Notes how large leaks have become.

        Args:
            laws: whose state it is.
            measured: the charges, [..., K].
            size: what they would be if nothing in them cancelled, [..., K].

        Returns:
            sums over families [..., F]; of ``residual`` their largest, of ``turned`` the mean.
        """
        size = np.where(size > 0, size, 1.0)
        moved = np.abs(self.decay) + np.abs(self.kinetic)
        peak = (np.abs(self.leak) / np.maximum(size, _TRANSPORT * moved)).astype(np.float32)
        np.maximum(self.leak_peak, peak, out=self.leak_peak)
        turned = np.zeros_like(measured)
        turned[..., : self.turned.shape[-1]] = self.turned
        sums = {
            "empirical": measured,
            "exact": self.charge,
            "theoretical": self.paper,
            "decay": self.decay,
            "kinetic": self.kinetic,
            "leak": self.leak,
        }
        values = {name: _by_family(laws, np.add, curve) for name, curve in sums.items()}
        residual = np.where(self.open, np.abs(measured - self.charge) / size, 0.0)
        values["residual"] = _by_family(laws, np.maximum, residual)
        units = [len(family) for family in laws.families]
        values["turned"] = _by_family(laws, np.add, turned) / units
        return values


def _by_family(laws: Laws, combine: np.ufunc, values: Floats) -> Floats:
    """[..., K] -> [..., F]."""
    starts = [family.start for family in laws.families]
    if not starts:
        return np.zeros((*values.shape[:-1], 0))
    combined: Floats = combine.reduceat(values, starts, axis=-1)
    return combined


def angle(before: Floats, after: Floats, moved: Floats) -> Floats:
    """The angle between weights before and after a step, in radians.

    Args:
        before, after: |θ|² and |θ'|², [..., K].
        moved: |θ' − θ|², [..., K].
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
