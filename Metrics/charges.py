"""The charges of symmetries: measured, and predicted by the discrete and the continuous law."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Context, Verdict
from Models.symmetry import Kind, Laws
from Training.registry import SGDS


class OfCharges:
    """A metric of charges, whose cache says of which weights they are.

    Args:
        laws: of the run.
    """

    def __init__(self, laws: Laws):
        self._of_rates = any(rate != 1 for rate in laws.rates.values())

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        return {}

    @property
    def attributes(self) -> Mapping[str, str]:
        """Under a parametrization ``of``: what the charges are made of."""
        return {"of": "θ/√s, learning rates sη"} if self._of_rates else {}


class ChargeMetric(OfCharges):
    """All laws of one kind.

    Args:
        kind: "scale", "rescale", "balance" or "translation".
        context: of the run.
    """

    def __init__(self, kind: Kind, context: Context):
        super().__init__(context.laws)
        families = context.laws.families
        self._predict = context.predict
        self._families = [(i, f) for i, f in enumerate(families) if f.kind == kind]
        self._optimizer = str(context.hyperparameters["optimizer"])

    @property
    def settings(self) -> Mapping[str, int | str]:
        return {}

    def rows(self, features: StepFeatures) -> Arrays:
        """Per unit: the charge, its predictions, its size and what the leak has moved."""
        measured, size = features.charges
        predicted = self._predict(features)
        curves = {
            "empirical": measured,
            "exact": predicted.exact,
            "theoretical": predicted.theoretical,
            "leak": predicted.leak,
            "size": size,
        }
        return {
            f"{name}/{family.layer}": values[family.units]
            for name, values in curves.items()
            for _, family in self._families
        }

    def dense(self, features: StepFeatures) -> Arrays:
        """Per layer: sums over its units, and the largest relative residual."""
        if not features.observed:
            return {}
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
        predicted = self._predict(features)
        return {
            f.layer: Verdict(predicted.open[f.units], self._reason(predicted.reason(f)))
            for _, f in self._families
        }

    def _reason(self, why: str) -> str:
        """Why gates of a family are closed, with the optimizer's part in it."""
        if not why or self._optimizer in SGDS:
            return why
        return f"{why}; {self._optimizer} breaks the symmetry, see the metric budget"


scale = partial(ChargeMetric, "scale")
rescale = partial(ChargeMetric, "rescale")
translation = partial(ChargeMetric, "translation")
