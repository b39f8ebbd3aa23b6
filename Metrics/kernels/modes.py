"""Errors along the eigenvectors of the tangent kernel, and the decay that a fixed kernel predicts.

Shape letters: N examples, C outputs.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from scipy.special import softmax

from Metrics.features import StepFeatures
from Metrics.kernels.at import State
from Metrics.kernels.linear import DESCENT
from Metrics.kernels.measures import Floats, cumulative_power, eigenvectors, mode_powers, traced
from Metrics.kernels.metric import Predicted
from Metrics.metric import Arrays, Verdict

REFERENCE, NOW = "reference", "now"
"""The "layers": eigenvectors of the kernel at the reference step, and of each step's own."""


class Modes(Predicted):
    """Mean square errors along eigenvectors, largest eigenvalue first.

    They are of the kernel that moves the outputs (:class:`Metrics.kernels.moving.Moving`): along
    those of another one errors do not decay each at its own rate.
    """

    def forecast(self, steps: int) -> list[str]:
        """Also of the kernels weighted by learning rates."""
        return [*super().forecast(steps), *self.linear.moving.forecast(steps)]

    def rows(self, features: StepFeatures) -> Arrays:
        """Errors [N], eigenvalues and the targets' cumulative power in both bases; prediction."""
        state, targets = self.state(features), self.context.kernel_at.targets
        error = self._error(state.logits)
        rows: dict[str, Floats] = {}
        bases = {REFERENCE: self._basis, NOW: self._modes_of(state)}
        for name, (values, vectors) in bases.items():
            rows[f"empirical/{name}"] = mode_powers(vectors, error)
            rows[f"eigenvalue/{name}"] = values
            rows[f"target/{name}"] = cumulative_power(vectors, targets)
        predicted = self.linear.outputs(DESCENT, features.step)
        powers = np.full(len(error), np.nan)
        if predicted is not None:
            powers = mode_powers(self._basis[1], self._error(predicted))
        rows[f"theoretical/{REFERENCE}"] = powers
        return rows

    def verdicts(self, features: StepFeatures) -> Mapping[str, Verdict]:
        """Whether the decay of a linear model is known, and what else it differs in."""
        reason = self.linear.why_not(DESCENT)
        units = np.full(len(self._basis[0]), not reason)
        return {REFERENCE: Verdict(units, reason or self.linear.remark)}

    def _error(self, logits: Floats) -> Floats:
        """[N, C] f − y, or softmax(f) − y: the loss's derivative by the outputs, up to a factor."""
        squared = self.context.model_at.training.loss == "mse"
        error: Floats = (logits if squared else softmax(logits, 1)) - self.context.kernel_at.targets
        return error

    @cached_property
    def _basis(self) -> tuple[Floats, Floats]:
        return self._modes_of(self.reference)

    def _modes_of(self, state: State) -> tuple[Floats, Floats]:
        return eigenvectors(traced(self.linear.moving.kernel(state)))
