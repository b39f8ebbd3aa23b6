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

from Metrics.width.members import Member
from Metrics.width.metric import (
    FAN_IN,
    FAN_OUT,
    Cells,
    Observation,
    PerLayer,
    Quantity,
    Values,
)
from Metrics.width.network import Checkpoint
from Metrics.width.theory import ChainTheory

_DENSE = 256
"""Up to this size of the smaller side all singular values are computed."""

_UPDATE = "update "
"""Before the names of quantities of ΔW."""

_RELATIVE = "relative update"

_OPERATOR = "operator norm"

_POWERS = {_OPERATOR: -1, "spectral ratio": -1, "stable rank": 2}
"""Of W_0's edge, by which it is taken out of quantities before exponents are fitted."""


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
        """W_0's operator norms without :func:`edge`; also ‖ΔW‖ / ‖W_0‖."""
        edges = _edges(members, cells)
        seen = []
        for one in super().observations(members, cells):
            name, layer = one.quantity
            factor = edges.get((one.width, layer), 1.0) ** _POWERS.get(name, 0)
            seen.append(replace(one, value=one.value * factor))
        before = {
            (o.width, o.seed, o.quantity.layer): o.value
            for o in seen
            if o.quantity.name == _OPERATOR
        }
        for one in [o for o in seen if o.quantity.name == _UPDATE + _OPERATOR]:
            norm = before.get((one.width, one.seed, one.quantity.layer), 0.0)
            ratio = one.value / norm if norm else float("nan")
            relative = Quantity(_RELATIVE, one.quantity.layer)
            seen.append(replace(one, quantity=relative, value=ratio))
        return seen

    def predicted(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        name, layer = quantity
        if name == _RELATIVE:
            return _less(
                _norm(_UPDATE + _OPERATOR, layer, step, theory),
                _norm(_OPERATOR, layer, 0, theory),
            )
        prefix = _UPDATE if name.startswith(_UPDATE) else ""
        operator = _norm(prefix + _OPERATOR, layer, step, theory)
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


def edge(outputs: float, inputs: float, growing: float) -> float:
    """(√outputs + √inputs) / √growing, of a matrix.

    The operator norm of independent numbers of standard deviation σ is σ √growing times this
    (Bai and Yin 1993, Annals of Probability 21): for the first layer and the readout, one side
    of which does not grow, a factor that goes to 1 so slowly that exponents miss by 0.1 and
    more at usual widths.

    Args:
        outputs: rows.
        inputs: columns.
        growing: the side that grows with the width.
    """
    factor: float = (outputs**0.5 + inputs**0.5) / growing**0.5
    return factor


def _edges(members: Sequence[Member], cells: Cells) -> dict[tuple[int, str], float]:
    """By width and layer."""
    width = {member.name: member.width for member in members}
    sides: dict[str, dict[int, dict[str, float]]] = {}
    for cell, value in cells.items():
        name, layer = cell.quantity
        if name in {FAN_IN, FAN_OUT} and cell.run in width:
            sides.setdefault(layer, {}).setdefault(width[cell.run], {})[name] = value
    edges = {}
    for layer, by_width in sides.items():
        grows = len({pair[FAN_OUT] for pair in by_width.values()}) > 1
        for n, pair in by_width.items():
            growing = pair[FAN_OUT if grows else FAN_IN]
            edges[n, layer] = edge(pair[FAN_OUT], pair[FAN_IN], growing)
    return edges


def norms(weight: Tensor) -> dict[str, float]:
    """Operator and Frobenius norm, stable rank ‖·‖_F²/‖·‖² and spectral ratio.

    Args:
        weight: [outputs, …].
    """
    matrix = weight.flatten(1).to(torch.float64)
    frobenius, operator = float(matrix.norm()), operator_norm(matrix)
    rows, columns = matrix.shape
    return {
        _OPERATOR: operator,
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
