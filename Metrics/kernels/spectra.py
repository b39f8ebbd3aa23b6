"""Eigenvalues of the tangent kernel, its ranks, and the largest stable learning rate.

Shape letters: N examples, C outputs.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import eigvalsh

from Metrics.edge import Edge
from Metrics.features import StepFeatures
from Metrics.kernels.at import WHOLE, State
from Metrics.kernels.measures import (
    Floats,
    centred,
    condition_number,
    effective_rank,
    matrix,
    participation_ratio,
    stable_rank,
)
from Metrics.kernels.metric import KernelMetric
from Metrics.metric import Arrays, Verdict

CENTRED = "centred"
"""The "layer" of H Θ H, without the direction (1, …, 1) that H takes out."""


class Spectrum(KernelMetric):
    """All eigenvalues of the traced kernel, as it is and centred, and what sums them up."""

    def rows(self, features: StepFeatures) -> Arrays:
        """``empirical`` [N], largest first, four numbers of each, and the learning rates."""
        state = self.state(features)
        kernel = state.kernel.traced
        spectra = {
            WHOLE: np.linalg.eigvalsh(kernel)[::-1],
            CENTRED: _without_the_smallest(np.linalg.eigvalsh(centred(kernel))),
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
        reason = self._reason(features.step)
        return {WHOLE: Verdict(np.full(len(self.context.kernel_at.classes), not reason), reason)}

    @cached_property
    def _edge(self) -> Edge:
        return Edge(self.context.model_at)

    def _reason(self, step: int) -> str:
        if reason := self._edge.reason(step):
            return reason
        if self._edge.largest_lr(step, 1.0) is None:
            return f"{self.context.model_at.training.optimizer} preconditions the gradient"
        if self.context.model_at.training.loss != "mse" and self.context.config.kernel != "full":
            return "that of cross-entropy needs --kernel full"
        return ""

    def _largest_lr(self, state: State) -> float:
        """η at which the largest eigenvalue of JᵀH_fJ reaches the edge; NaN if unknown."""
        if self._reason(state.step):
            return float("nan")
        largest = largest_curvature(
            state.kernel.total, state.logits, self.context.model_at.training.loss
        )
        found = self._edge.largest_lr(state.step, largest)
        return float("nan") if found is None else found


def largest_curvature(kernel: Floats, logits: Floats, loss: str) -> float:
    """The largest eigenvalue of the Gauss-Newton matrix JᵀH_fJ on the examples.

    It is that of H_f^{1/2} Θ H_f^{1/2}, H_f [NC, NC] being the loss's second derivative by the
    logits: 2/(NC) for the mean squared error, (diag p − ppᵀ)/N for softmax cross-entropy. Of a
    traced kernel, a mean of blocks, the result is a lower bound.

    Args:
        kernel: [N, N] or [N, N, C, C].
        logits: [N, C].
        loss: "mse", or "ce", which needs the full kernel.
    """
    theta = matrix(kernel)
    last = [len(theta) - 1] * 2
    if loss == "mse":
        return 2 / logits.size * float(eigvalsh(theta, subset_by_index=last)[0])
    examples, outputs = logits.shape
    root = _root_of_softmax_curvature(logits)
    half = np.einsum("nab,nbm->nam", root, theta.reshape(examples, outputs, -1))
    whole = np.einsum("xmb,mbc->xmc", half.reshape(-1, examples, outputs), root)
    return float(eigvalsh(whole.reshape(theta.shape), subset_by_index=last)[0])


def _root_of_softmax_curvature(logits: Floats) -> Floats:
    """[N, C, C] the symmetric square roots of (diag p − ppᵀ)/N."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    p = exponentials / exponentials.sum(1, keepdims=True)
    blocks = (np.einsum("na,ab->nab", p, np.eye(p.shape[1])) - np.einsum("na,nb->nab", p, p)) / len(
        p
    )
    values, vectors = np.linalg.eigh(blocks)
    root: Floats = np.einsum("nai,ni,nbi->nab", vectors, np.sqrt(np.maximum(values, 0)), vectors)
    return root


def _without_the_smallest(ascending: Floats) -> Floats:
    """Largest first, without the one that is smallest in size: the direction taken out."""
    kept = np.delete(ascending, np.abs(ascending).argmin())
    return kept[::-1]
