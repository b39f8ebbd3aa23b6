"""What the steps of any optimizer do to charges, from the weights before and after.

With f = 1 − ηλ for decoupled decay (else 1) and δ = θ' − fθ ::

    ⟨θ', θ'⟩_S − ⟨θ, θ⟩_S = (f² − 1)⟨θ, θ⟩_S + 2f⟨θ, δ⟩_S + ⟨δ, δ⟩_S
                              decay             leak          kinetic

The leak vanishes where the update keeps the symmetry, which is what the gates check. The three
follow from ⟨θ, θ⟩, ⟨θ, Δ⟩ and ⟨Δ, Δ⟩ with Δ = θ' − θ, as δ = Δ + (1 − f)θ.

Shape letters: K laws, Q quadratic and L linear ones, M reductions.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from Models.symmetry import Laws, Reduction, product_sums
from Training.discrete_laws import Coefficients, Floats
from Training.law_groups import groups_of_outputs
from Training.law_state import LawState, angle, joined, split


class MeasuredUpdates:
    """Weights before and after the steps of any optimizer, compared in float64."""

    def __init__(self, optimizer: Optimizer, parameters: dict[str, nn.Parameter], laws: Laws):
        self._laws = laws
        self._parameters = {name: parameters[name] for name in laws.parameters}
        self._old = {name: p.detach().clone() for name, p in self._parameters.items()}
        owner = {id(p): i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
        count = len(optimizer.param_groups)
        self._group = {name: owner.get(id(p), count) for name, p in self._parameters.items()}
        self._groups_of_outputs = [
            groups_of_outputs(charges.reductions, self._group, parameters)
            for charges in (laws.quadratic, laws.linear)
        ]

    def before(self, optimizer: Optimizer) -> None:
        for name, parameter in self._parameters.items():
            self._old[name].copy_(parameter.detach())
        self._coefficients = [
            Coefficients(float(g["lr"]), decoupled_wd(g)) for g in optimizer.param_groups
        ]

    def after(self, optimizer: Optimizer) -> tuple[list[Coefficients], Tensor]:
        """⟨θ, θ⟩ (where it decays, else 0), ⟨θ, Δ⟩ and ⟨Δ, Δ⟩ [M], then ⟨c, θ⟩ and ⟨c, Δ⟩."""
        decays = [c.lr * c.wd != 0 for c in self._coefficients] + [False]
        forms: list[list[Tensor]] = [[], [], []]
        reductions = self._laws.quadratic.reductions
        for (name, gram), same in groupby(reductions, lambda r: (r.parameter, r.is_gram)):
            compare = _compared_grams if gram else _compared
            new, decaying = self._parameters[name].detach(), decays[self._group[name]]
            found = compare(self._old[name], new, list(same), decaying)
            for form, parts in zip(forms, found, strict=True):
                form += parts
        linear: list[list[Tensor]] = [[], []]
        for reduction in self._laws.linear.reductions:
            old = self._old[reduction.parameter].double()
            moved = self._parameters[reduction.parameter].detach().double() - old
            linear[0].append(reduction(old))
            linear[1].append(reduction(moved))
        row = joined([part for form in (*forms, *linear) for part in form])
        return self._coefficients, row

    def advance(self, state: LawState, steps: Sequence[list[Coefficients]], rows: Floats) -> None:
        for coefficients, row in zip(steps, rows, strict=True):
            self._advance(state, coefficients, row)

    def _advance(self, state: LawState, coefficients: list[Coefficients], row: Floats) -> None:
        quadratic, linear = self._laws.quadratic.matrix, self._laws.linear.matrix
        widths = [quadratic.shape[1]] * 3 + [linear.shape[1]] * 2
        squares, along, moved, old, shift = split(row, widths)
        factors = np.array([*(1 - c.lr * c.wd for c in coefficients), 1.0])
        f, g = (factors[groups] for groups in self._groups_of_outputs)
        added = along + (1 - f) * squares  # ⟨θ, δ⟩
        kinetic = quadratic @ (moved + (1 - f) * (along + added))
        decay = np.concatenate([quadratic @ ((f**2 - 1) * squares), linear @ ((g - 1) * old)])
        leak = np.concatenate([quadratic @ (2 * f * added), linear @ (shift + (1 - g) * old)])
        quadratics = slice(0, len(kinetic))
        before = state.charge[quadratics].copy()
        state.leak += leak
        state.kinetic[quadratics] += kinetic
        state.charge += decay + leak
        state.charge[quadratics] += kinetic
        state.turned += angle(before, state.charge[quadratics], quadratic @ moved)
        state.paper[:] = np.nan


def _compared(
    old: Tensor, new: Tensor, reductions: list[Reduction], decaying: bool
) -> list[list[Tensor]]:
    """Reductions of θ² (zeros if nothing decays), θΔ and Δ², in float64."""

    def products(theta: Tensor, moved: Tensor, scratch: Tensor) -> Iterator[Tensor]:
        moved.sub_(theta)
        yield torch.mul(theta, moved, out=scratch)
        yield torch.mul(moved, moved, out=scratch)
        if decaying:
            yield theta.square_()

    along, moved, *squares = product_sums([old, new], reductions, products)
    return [squares[0] if decaying else [torch.zeros_like(x) for x in along], along, moved]


def _compared_grams(
    old: Tensor, new: Tensor, reductions: list[Reduction], decaying: bool
) -> list[list[Tensor]]:
    """The same of Gram matrices, whose ⟨θ, θ⟩ is always measured."""
    theta = old.double()
    moved = new.double() - theta
    pairs = ((theta, theta), (theta, moved), (moved, moved))
    return [[reduction.form(x, y) for reduction in reductions] for x, y in pairs]


def decoupled_wd(group: dict[str, Any]) -> float:
    """λ where a group shrinks its weights by 1 − ηλ; 0 where the decay is in the gradient."""
    decoupled = group.get("decoupled_weight_decay") or group.get("weight_decouple")
    return float(group["weight_decay"]) if decoupled else 0.0
