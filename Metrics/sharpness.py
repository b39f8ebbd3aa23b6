"""Largest eigenvalues of the training loss's curvature, beside the edge of stability."""

from collections.abc import Mapping
from functools import cached_property, partial

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

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
from Metrics.stability import Preconditioning, Stability

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
        if edge and edge.preconditioned is not None:
            known = self._preconditioner(features, edge.preconditioned)
            spectra[PRECONDITIONED] = (
                self._largest(preconditioned(curvature, *known)) if known else self._nothing()
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

    def _preconditioner(
        self, features: StepFeatures, each: Mapping[Tensor, Preconditioning]
    ) -> tuple[Floats, Floats] | None:
        """[P] s/p and λ of every weight; ``None`` before the first step of an adaptive optimizer.

        s/p is zero for parameters that have never had a gradient.
        """
        inverses, decays, known = [], [], False
        for name, parameter in self.context.model_at.parameters.items():
            if not parameter.requires_grad:
                continue
            inverse = each[parameter].inverse(partial(features.buffer, name))
            known |= inverse is not None
            one = torch.zeros(()) if inverse is None else inverse
            inverses.append(one.double().expand(parameter.shape).reshape(-1).numpy())
            decays.append(np.full(parameter.numel(), each[parameter].decay))
        return (np.concatenate(inverses), np.concatenate(decays)) if known else None


def _decisive(edge: Stability | None) -> str:
    """The matrix whose largest eigenvalue decides on stability."""
    return PRECONDITIONED if edge and edge.preconditioned is not None else HESSIAN
