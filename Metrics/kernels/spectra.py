"""Eigenvalues of the tangent kernel, its ranks, and the largest stable learning rate.

Shape letters: N examples, C outputs.
"""

from collections.abc import Mapping

import numpy as np
import torch

from Metrics.edge import CLIPPED
from Metrics.features import StepFeatures
from Metrics.kernels.at import WHOLE, State
from Metrics.kernels.measures import (
    Floats,
    centred,
    condition_number,
    effective_rank,
    eigenvalues,
    participation_ratio,
    stable_rank,
)
from Metrics.kernels.metric import KernelMetric
from Metrics.metric import Arrays, Verdict
from Training.function_space import largest_curvature, largest_lr

CENTRED = "centred"
"""The "layer" of H Θ H, without the direction (1, …, 1) that H takes out."""


class Spectrum(KernelMetric):
    """All eigenvalues of the traced kernel, as it is and centred, and what sums them up."""

    @property
    def attributes(self) -> Mapping[str, str]:
        """Also of which kernel the largest learning rate is."""
        return {**super().attributes, "predicted by": self.context.linear.moving.formula}

    def forecast(self, steps: int) -> list[str]:
        """Also of the kernels weighted by learning rates."""
        return [*super().forecast(steps), *self.context.linear.moving.forecast(steps)]

    def rows(self, features: StepFeatures) -> Arrays:
        """``empirical`` [N], largest first, four numbers of each, and the learning rates."""
        state = self.state(features)
        kernel = state.kernel.traced
        spectra = {
            WHOLE: eigenvalues(kernel),
            CENTRED: _without_the_smallest(eigenvalues(centred(kernel))),
        }
        precision = float(torch.finfo(self.context.kernel_at.dtype).eps)
        rows = {f"empirical/{name}": values for name, values in spectra.items()}
        for name, values in spectra.items():
            rows[f"effective rank/{name}"] = np.array(effective_rank(values))
            rows[f"participation ratio/{name}"] = np.array(participation_ratio(values))
            rows[f"stable rank/{name}"] = np.array(stable_rank(values))
            rows[f"condition number/{name}"] = np.array(condition_number(values, precision))
        rows[f"lr/{WHOLE}"] = np.array(self.context.model_at.schedule.lr(features.step))
        rows[f"largest lr/{WHOLE}"] = np.array(self._largest_lr(state))
        return rows

    def verdicts(self, features: StepFeatures) -> Mapping[str, Verdict]:
        """Whether the largest stable learning rate is known."""
        reason = self._reason()
        units = np.full(len(self.context.kernel_at.classes), not reason)
        one = self.context.config.kernel == "traced" and not self.context.kernel_at.is_exact
        return {WHOLE: Verdict(units, reason or "from one kernel for all outputs" * one)}

    def _reason(self) -> str:
        clipped = self.context.model_at.training.clip_norm is not None
        return CLIPPED if clipped else self.context.linear.moving.why_not

    def _largest_lr(self, state: State) -> float:
        """η at which the largest eigenvalue of JᵀH_fJ reaches the edge; NaN if unknown."""
        if self._reason() or not np.isfinite(state.kernel.total).all():
            return float("nan")
        at, moving = self.context.kernel_at, self.context.linear.moving
        targets = at.batch[1].cpu()
        curvature = largest_curvature(
            torch.from_numpy(moving.kernel(state)),
            self.context.model_at.loss,
            torch.from_numpy(state.logits),
            targets.double() if targets.is_floating_point() else targets,
        )
        return largest_lr(curvature, moving.rule(state.step))


def _without_the_smallest(values: Floats) -> Floats:
    """Without the one that is smallest in size: that of the direction taken out."""
    return np.delete(values, np.abs(values).argmin())
