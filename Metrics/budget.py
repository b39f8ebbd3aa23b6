"""Where every charge's change has come from: decay, kinetic energy and broken symmetry."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from Metrics.charges import OfCharges
from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Context, Verdict
from Metrics.predictions import APART
from Training.registry import SGDS

PARTS = ("decay", "kinetic", "leak")

_STILL = 1e-6
"""A charge that has moved by less than this part of its size is taken to have moved by so much:
the rounding of what does not move is no error of its budget."""


class Budget(OfCharges):
    """Every law of every kind, by "kind layer", for any optimizer.

    The observer counts the parts from the first step of training on and remembers the charges
    there: so the drift is known even if the first checkpoint was lost.
    """

    def __init__(self, context: Context):
        super().__init__(context.laws)
        self._families = {f"{f.kind} {f.layer}": f for f in context.laws.families}
        # Under SGD the law's parts are compared with stored weights; under other optimizers
        # every step's weights are, in float64, and their rounding is part of the leak.
        stored = context.hyperparameters["optimizer"] in SGDS
        dtype = str(context.hyperparameters["dtype"]) if stored else "float64"
        self._rounding = float(np.finfo(dtype).eps)

    @property
    def settings(self) -> Mapping[str, int | str]:
        return {}

    def rows(self, features: StepFeatures) -> Arrays:
        """Per unit: the measured drift, its parts and their sum, and by how much they miss it.

        ``rounding`` is by how much one rounding of the charge would make them miss it.
        """
        measured, charge_size = features.charges
        parts = features.parts
        total = sum(parts.values(), np.zeros(len(measured)))
        drift = measured - features.conservation("start")
        gross = sum(map(np.abs, parts.values()), np.zeros(len(measured)))
        size = np.maximum(gross, _STILL * charge_size)
        sized = np.where(size > 0, size, 1.0)
        curves = {
            "empirical": drift,
            "exact": total,
            **parts,
            "size": size,
            "closing": np.abs(drift - total) / sized,
            "rounding": self._rounding * charge_size / sized,
        }
        return {
            f"{name}/{layer}": values[family.units]
            for name, values in curves.items()
            for layer, family in self._families.items()
        }

    def dense(self, features: StepFeatures) -> Arrays:
        """Per layer: sums over its units of the drift and its parts."""
        record = features.record
        parts = {name: record[name] for name in PARTS}
        total = sum(parts.values(), np.zeros_like(record["exact"]))
        drift: NDArray[np.float64] = record["empirical"] - (record["exact"] - total)
        curves = {"empirical": drift, "exact": total, **parts}
        return {
            "dense/steps": record["step"].astype(np.int64),
            "dense/time": record["time"],
            **{
                f"dense/{name}/{layer}": values[:, index]
                for name, values in curves.items()
                for index, layer in enumerate(self._families)
            },
        }

    def verdicts(self, features: StepFeatures) -> Mapping[str, Verdict]:
        """Which charges' parts are told apart."""
        apart = features.conservation("apart").astype(bool)
        return {
            layer: Verdict(~apart[family.units], APART if apart[family.units].any() else "")
            for layer, family in self._families.items()
        }
