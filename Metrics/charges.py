"""The charges of symmetries: measured, and predicted by the discrete and the continuous law."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Context, Verdict
from Models.symmetry import Family, Kind
from Training.conservation import LEAK_TOLERANCE

EXACT = frozenset(("sgd", "momentum"))
"""The optimizers that keep the symmetries, so that laws hold."""

APART = "its parameters are updated with different hyper-parameters"


class ChargeMetric:
    """All laws of one kind.

    Args:
        kind: "scale", "rescale", "balance" or "translation".
        context: of the run.
    """

    def __init__(self, kind: Kind, context: Context):
        families = context.laws.families
        self._families = [(i, f) for i, f in enumerate(families) if f.kind == kind]
        self._optimizer = str(context.hyperparameters["optimizer"])

    @property
    def settings(self) -> Mapping[str, int | str]:
        return {}

    def rows(self, features: StepFeatures) -> Arrays:
        """Per unit: the charge, its predictions, its size and what the leak has moved."""
        measured, size = features.charges
        curves = {
            "empirical": measured,
            "exact": features.conservation("charge"),
            "theoretical": features.conservation("paper"),
            "leak": features.conservation("leak"),
            "size": size,
        }
        return {
            f"{name}/{family.layer}": values[family.units]
            for name, values in curves.items()
            for _, family in self._families
        }

    def dense(self, features: StepFeatures) -> Arrays:
        """Per layer: sums over its units, and the largest relative residual."""
        record = features.record
        curves = ("empirical", "exact", "theoretical", "residual")
        return {
            "dense/steps": record["step"].astype(np.int64),
            "dense/time": record["time"],
            **{
                f"dense/{name}/{family.layer}": record[name][:, index]
                for name in curves
                for index, family in self._families
            },
        }

    def verdicts(self, features: StepFeatures) -> Mapping[str, Verdict]:
        """The gates: whether the laws' preconditions have held."""
        gates = features.conservation("open").astype(bool)
        return {
            family.layer: Verdict(gates[family.units], self._reason(features, family))
            for _, family in self._families
        }

    def _reason(self, features: StepFeatures, family: Family) -> str:
        """Why gates of a family are closed."""
        leaks = features.conservation("leak_peak")[family.units]
        leaking = ~(leaks <= LEAK_TOLERANCE)
        reasons = []
        if leaking.any():
            reasons.append(f"leak {leaks.max():.0e} in {leaking.sum()} of {len(family)} laws")
        if leaking.any() and self._optimizer not in EXACT:
            reasons.append(f"{self._optimizer} breaks the symmetry, see the metric budget")
        if features.conservation("apart")[family.units].any():
            reasons.append(APART)
        return "; ".join(reasons)


scale = partial(ChargeMetric, "scale")
rescale = partial(ChargeMetric, "rescale")
translation = partial(ChargeMetric, "translation")
