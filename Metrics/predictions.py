"""What the laws say of the charges at a checkpoint, and whether they may.

The observer of ``train.py`` writes it down while the model trains. Of runs that had none, there
is what follows from what was saved (:mod:`Metrics.unobserved`).

Shape letters: K laws.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from Metrics.features import StepFeatures
from Models.symmetry import Family
from Training.law_state import LEAK_TOLERANCE

Floats = NDArray[np.float64]

APART = "its parameters have different learning rates or momenta"


@dataclass(frozen=True)
class Prediction:
    """The charges of one checkpoint as theory has them.

    Attributes:
        exact: by the discrete law, [K]; NaN where it is not known.
        theoretical: by the paper's continuous law, [K]; likewise.
        leak: what the broken symmetry has moved, [K]; NaN where it was not measured.
        open: whether the laws' preconditions have held so far, [K].
        reason: why laws of a family are closed; empty if none is.
    """

    exact: Floats
    theoretical: Floats
    leak: Floats
    open: NDArray[np.bool_]
    reason: Callable[[Family], str]


Predict = Callable[[StepFeatures], Prediction]


def recorded(features: StepFeatures) -> Prediction:
    """What the observer knew; raises ``NotRecorded`` if there was none."""
    leak_peak = features.conservation("leak_peak")
    apart = features.conservation("apart")

    def reason(family: Family) -> str:
        leaks = leak_peak[family.units]
        leaking = ~(leaks <= LEAK_TOLERANCE)
        reasons = []
        if leaking.any():
            reasons.append(f"leak {leaks.max():.0e} in {leaking.sum()} of {len(family)} laws")
        if apart[family.units].any():
            reasons.append(APART)
        return "; ".join(reasons)

    return Prediction(
        features.conservation("charge"),
        features.conservation("paper"),
        features.conservation("leak"),
        features.conservation("open").astype(bool),
        reason,
    )
