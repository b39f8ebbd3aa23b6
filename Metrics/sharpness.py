"""Largest eigenvalues of the training loss's curvature, beside the edge of stability."""

from collections.abc import Mapping
from functools import cached_property, partial

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator

from Metrics.edge import Edge
from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Curves, Verdict
from Metrics.spectrum import (
    Floats,
    Spectrum,
    gauss_newton,
    hessian,
    largest_eigenvalues,
    preconditioned,
)
from Metrics.stability import Stability

HESSIAN, GAUSS_NEWTON, PRECONDITIONED = "Hessian", "Gauss-Newton", "preconditioned Hessian"
"""The matrices, which are the "layers" of the cache."""


class Sharpness(Curves):
    """The k largest eigenvalues of each matrix, their errors, and the threshold."""

    @property
    def settings(self) -> Mapping[str, int | str]:
        config = self.context.config
        return {"examples": config.examples, "eigenvalues": config.eigenvalues}

    def rows(self, features: StepFeatures) -> Arrays:
        """``empirical`` and ``error`` [k] of each matrix, and the threshold of one of them."""
        at = self.context.model_at
        model = at.load(features)
        curvature = hessian(model, at.loss, at.batch)
        spectra = {
            HESSIAN: self._largest(curvature),
            GAUSS_NEWTON: self._largest(gauss_newton(model, at.loss, at.batch)),
        }
        edge = self._edge.at(features.step)
        if edge and edge.preconditioner:
            inverse = self._inverse(features, edge)
            spectra[PRECONDITIONED] = (
                self._nothing()
                if inverse is None
                else self._largest(preconditioned(curvature, inverse, self._decay(edge)))
            )
        rows = {f"empirical/{name}": spectrum.values for name, spectrum in spectra.items()}
        rows |= {f"error/{name}": spectrum.errors for name, spectrum in spectra.items()}
        if edge:
            rows[f"theoretical/{_decisive(edge)}"] = np.array(edge.threshold)
        return rows

    def verdicts(self, features: StepFeatures) -> Mapping[str, Verdict]:
        """Whether the threshold is one: for known optimizers that do not clip the gradient."""
        edge, reason = self._edge.at(features.step), self._edge.reason(features.step)
        units = np.full(self.context.config.eigenvalues, not reason)
        return {_decisive(edge): Verdict(units, reason)}

    def _largest(self, matrix: LinearOperator) -> Spectrum:
        config, precision = self.context.config, torch.finfo(self.context.model_at.dtype).eps
        return largest_eigenvalues(matrix, config.eigenvalues, precision, self.context.seed)

    def _nothing(self) -> Spectrum:
        nothing = np.full(self.context.config.eigenvalues, np.nan)
        return Spectrum(nothing, nothing)

    @cached_property
    def _edge(self) -> Edge:
        return Edge(self.context.model_at)

    def _inverse(self, features: StepFeatures, edge: Stability) -> Floats | None:
        """[P] 1/p, zero for parameters that have never had a gradient; ``None`` before a step."""
        assert edge.preconditioner is not None
        parts, known = [], False
        for name, parameter in self.context.model_at.parameters.items():
            if not parameter.requires_grad:
                continue
            p = edge.preconditioner(partial(features.buffer, name))
            known |= p is not None
            inverse = torch.zeros(parameter.shape) if p is None else 1 / p.double()
            parts.append(inverse.double().reshape(-1).numpy())
        return np.concatenate(parts) if known else None

    def _decay(self, edge: Stability) -> Floats:
        """[P] λ of every weight where it is added to the gradient before the preconditioner."""
        at = self.context.model_at
        spares_vectors = at.training.wd_on == "matrices"
        trained = (p for p in at.parameters.values() if p.requires_grad)
        decays = [(p.numel(), edge.decay * (p.dim() > 1 or not spares_vectors)) for p in trained]
        return np.repeat([decay for _, decay in decays], [count for count, _ in decays])


def _decisive(edge: Stability | None) -> str:
    """The matrix whose largest eigenvalue decides on stability."""
    return PRECONDITIONED if edge and edge.preconditioner else HESSIAN
