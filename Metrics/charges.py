"""The charges of symmetries: measured, and predicted by the discrete and the continuous law."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Context
from Models.symmetry import Kind
from Training.conservation import LEAK_TOLERANCE


class ChargeMetric:
    """All laws of one kind.

    Args:
        kind: "scale", "rescale" or "translation".
        context: of the run.
    """

    def __init__(self, kind: Kind, context: Context):
        families = context.laws.families
        self._families = [(i, f) for i, f in enumerate(families) if f.kind == kind]

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

    def latest(self, features: StepFeatures) -> Arrays:
        """Whether each law's preconditions have held to the end."""
        gates = features.conservation("open").astype(np.uint8)
        return {f"gate/{family.layer}": gates[family.units] for _, family in self._families}

    def attributes(self, features: StepFeatures) -> Mapping[str, Mapping[str, str]]:
        """Why gates are closed."""
        peak, apart = features.conservation("leak_peak"), features.conservation("apart")
        reasons: dict[str, Mapping[str, str]] = {}
        for _, family in self._families:
            leaks = peak[family.units]
            leaking, split = int((leaks > LEAK_TOLERANCE).sum()), int(apart[family.units].sum())
            reason = ""
            if leaking:
                reason = f"leak {leaks.max():.0e} in {leaking} of {len(family)} laws"
            elif split:
                reason = "its parameters are updated with different hyper-parameters"
            reasons[f"gate/{family.layer}"] = {"reason": reason}
        return reasons


scale = partial(ChargeMetric, "scale")
rescale = partial(ChargeMetric, "rescale")
translation = partial(ChargeMetric, "translation")
