"""Norms and ranks of weights W and of what training has added, ΔW = W_t − W_0.

A convolution's weight counts as the matrix [outputs, inputs · kernel]. The spectral condition
(Yang, Simon and Bernstein 2023, arXiv 2310.17813, condition 1) asks for ‖W‖ and ‖ΔW‖, operator
norms, of size √(n_out/n_in); the *spectral ratio* is the norm divided by that.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, svds
from torch import Tensor

from Metrics.width.edges import OPERATOR, POWERS, edges
from Metrics.width.layout import FAN_IN, FAN_OUT
from Metrics.width.members import Member
from Metrics.width.metric import Cells, Observation, PerLayer, Quantity, Values
from Metrics.width.network import Checkpoint
from Metrics.width.theory import ChainTheory

_DENSE = 256
"""Up to this size of the smaller side all singular values are computed."""

_UPDATE = "update "
"""Before the names of quantities of ΔW."""

_RELATIVE = "relative update"


class UpdateNorms(PerLayer):
    """Of W_0 at step 0 and of ΔW afterwards, by layer."""

    def measure(self, checkpoint: Checkpoint) -> Values:
        values: dict[Quantity, float] = {}
        for layer in checkpoint.layers:
            at_start = checkpoint.step == 0
            weight = checkpoint.initial(layer) if at_start else checkpoint.moved(layer)
            prefix = "" if at_start else _UPDATE
            for name, value in norms(weight).items():
                values[Quantity(prefix + name, layer)] = value
        return values

    def observations(self, members: Sequence[Member], cells: Cells) -> list[Observation]:
        """W_0's operator norms without :func:`Metrics.width.edges.edge`; also ‖ΔW‖ / ‖W_0‖."""
        known = _edges(members, cells)
        seen = []
        for one in super().observations(members, cells):
            name, layer = one.quantity
            factor = known.get((one.width, layer), 1.0) ** POWERS.get(name, 0)
            seen.append(replace(one, value=one.value * factor))
        before = {
            (o.width, o.seed, o.quantity.layer): o.value
            for o in seen
            if o.quantity.name == OPERATOR
        }
        for one in [o for o in seen if o.quantity.name == _UPDATE + OPERATOR]:
            norm = before.get((one.width, one.seed, one.quantity.layer), 0.0)
            ratio = one.value / norm if norm else float("nan")
            relative = Quantity(_RELATIVE, one.quantity.layer)
            seen.append(replace(one, quantity=relative, value=ratio))
        return seen

    def predicted(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        name, layer = quantity
        if name == _RELATIVE:
            return _less(
                _norm(_UPDATE + OPERATOR, layer, step, theory),
                _norm(OPERATOR, layer, 0, theory),
            )
        prefix = _UPDATE if name.startswith(_UPDATE) else ""
        operator = _norm(prefix + OPERATOR, layer, step, theory)
        if name.endswith("stable rank"):
            twice = _less(_norm(f"{prefix}frobenius norm", layer, step, theory), operator)
            return None if twice is None else 2 * twice
        if name.endswith("spectral ratio"):
            return _less(operator, theory.spectral(layer))
        return _norm(name, layer, step, theory)


def _norm(name: str, layer: str, step: int, theory: ChainTheory) -> Fraction | None:
    if step == 0:
        return theory.initial(name, layer)
    return theory.after_first(name, layer, step)


def _less(one: Fraction | None, other: Fraction | None) -> Fraction | None:
    return None if one is None or other is None else one - other


def _edges(members: Sequence[Member], cells: Cells) -> dict[tuple[int, str], float]:
    """By width and layer."""
    width = {member.name: member.width for member in members}
    sides: dict[str, dict[int, dict[str, float]]] = {}
    for cell, value in cells.items():
        name, layer = cell.quantity
        if name in {FAN_IN, FAN_OUT} and cell.run in width:
            sides.setdefault(layer, {}).setdefault(width[cell.run], {})[name] = value
    return {
        (n, layer): found
        for layer, by_width in sides.items()
        for n, found in edges(
            {n: (pair[FAN_OUT], pair[FAN_IN]) for n, pair in by_width.items()}
        ).items()
    }


def norms(weight: Tensor) -> dict[str, float]:
    """Operator and Frobenius norm, stable rank ‖·‖_F²/‖·‖² and spectral ratio.

    Args:
        weight: [outputs, …].
    """
    matrix = weight.flatten(1).to(torch.float64)
    frobenius, operator = float(matrix.norm()), operator_norm(matrix)
    rows, columns = matrix.shape
    return {
        OPERATOR: operator,
        "frobenius norm": frobenius,
        "stable rank": (frobenius / operator) ** 2 if operator else float("nan"),
        "spectral ratio": operator / (rows / columns) ** 0.5,
    }


def operator_norm(matrix: Tensor) -> float:
    """The largest singular value: of all, or by Lanczos iteration to 1e-10 of it.

    Args:
        matrix: float64.
    """
    if min(matrix.shape) <= _DENSE or not matrix.any() or not matrix.isfinite().all():
        return float(torch.linalg.matrix_norm(matrix, ord=2))
    array = matrix.cpu().numpy()
    start = np.ones(min(array.shape))  # ARPACK draws one otherwise
    try:
        found = svds(array, k=1, tol=1e-10, v0=start, return_singular_vectors=False)
    except ArpackError:
        return float(torch.linalg.matrix_norm(matrix, ord=2))
    norm: float = found[0]
    return float(norm)
