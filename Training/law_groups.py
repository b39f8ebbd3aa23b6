"""The laws of each parameter group of an optimizer, and those whose parameters are in several.

A law is advanced with the hyper-parameters of the group that has most of its weights. Where the
weight decay λ_j of another group differs from that group's λ, it acts as if the gradient were

    g̃ = g + (λ_j − λ) θ   for the weights θ_j of group j,

for which the laws of :mod:`Training.discrete_laws` are exact: the source ⟨θ, g⟩_S gains
Σ s_j (λ_j − λ) |θ_j|², and the square ⟨g, g⟩_S gains Σ s_j (λ_j − λ)² |θ_j|² +
2 Σ s_j (λ_j − λ) ⟨θ_j, g_j⟩. So |θ_j|² is measured, in the smaller groups only, which usually
are vectors. Learning rates s_p η are no difference where the laws know s (:attr:`Laws.rates`): in
φ = θ/√s all steps have the rate η and the decay s_p λ, and what is said here of θ and λ is said of
those. There is no such way where learning rates differ otherwise, or momenta do.

Shape letters: K laws, Q quadratic and L linear ones, M reductions, G parameter groups.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from Models.symmetry import Charges, Laws, Reduction
from Training.discrete_laws import Coefficients, Floats


def rates_of_groups(
    laws: Laws, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer
) -> list[float]:
    """s of each parameter group; its parameters have the same."""
    rates = {id(parameter): laws.rates.get(name, 1.0) for name, parameter in parameters.items()}
    return [rates.get(id(group["params"][0]), 1.0) for group in optimizer.param_groups]


class LawGroups:
    """Which laws belong to which group, and what decay does to those of several.

    Args:
        laws: the model's.
        parameters: by name.
        optimizer: theirs; it may leave some parameters as they are.

    Attributes:
        of_parameter: the group of every parameter that the optimizer updates, by name.
        rates: s of every group.
        members: for each group the places of its laws among the quadratic and among all laws.
        quadratic, linear: what is measured for laws of several groups, and what they gain.
    """

    def __init__(self, laws: Laws, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer):
        count, quadratic = len(optimizer.param_groups), len(laws.quadratic)
        owner = {id(p): i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
        self.of_parameter = {n: owner[id(p)] for n, p in parameters.items() if id(p) in owner}
        chief, guests = np.zeros(len(laws), np.int64), set()
        self._uses = np.zeros((len(laws), count + 1), bool)  # the last: not updated at all
        for family in laws.families:
            groups = {name: self.of_parameter.get(name, count) for name in family.parameters}
            weights = np.zeros(count + 1)
            for name, group in groups.items():
                weights[group] += parameters[name].numel()
            most = int(weights[:count].argmax())
            chief[family.units], self._uses[family.units] = most, weights > 0
            guests |= {name for name, group in groups.items() if group != most}
        self.rates = rates_of_groups(laws, parameters, optimizer)
        several = self._several = self._uses.sum(1) > 1
        decaying = several & (self._decays_differ(optimizer) | self._uses[:, count])
        self.members: list[tuple[Any, Any]] = [(slice(0, quadratic), slice(quadratic, None))]
        if count > 1:
            places = [np.flatnonzero(chief == i) for i in range(count)]
            self.members = [(p[p < quadratic], p[p >= quadratic]) for p in places]
        self.quadratic, self.linear = (
            GuestDecay(
                charges,
                [np.flatnonzero(decaying[part] & (chief[part] == i)) for i in range(count)],
                guests,
                {name: self.of_parameter.get(name, count) for name in parameters},
                parameters,
            )
            for charges, part in (
                (laws.quadratic, slice(0, quadratic)),
                (laws.linear, slice(quadratic, None)),
            )
        )

    def _decays_differ(self, optimizer: Optimizer) -> bool:
        """Whether s λ of some groups is not that of the others."""
        groups = zip(optimizer.param_groups, self.rates, strict=True)
        decays = [group["weight_decay"] * rate for group, rate in groups]
        return not np.allclose(decays, decays[0], rtol=1e-12, atol=0)

    def apart(self, coefficients: Sequence[Coefficients]) -> NDArray[np.bool_]:
        """Which laws [K] have parameters that are updated in incompatible ways."""
        apart = np.zeros(len(self._uses), bool)
        if not self._several.any():
            return apart
        for rule, part in zip(coefficients, self.members, strict=True):
            differs = np.array([*(not other.is_like(rule) for other in coefficients), True])
            for places in part:
                apart[places] |= self._uses[places] @ differs
        return apart


class GuestDecay:
    """What weight decay that differs within laws of one form adds to their sources.

    Args:
        charges: the form's.
        laws: for each group the places of those laws that span groups, this one being chief.
        guests: names of parameters outside of the chief group of some law.
        groups: of all parameters, by name; G for those that are not updated.
        parameters: by name.

    Attributes:
        reductions: those of guests, to be measured in every step.
    """

    def __init__(
        self,
        charges: Charges,
        laws: Sequence[NDArray[np.int64]],
        guests: Container[str],
        groups: Mapping[str, int],
        parameters: Mapping[str, nn.Parameter],
    ):
        held = charges.reductions if any(map(len, laws)) else ()
        self.reductions = tuple(r for r in held if r.parameter in guests)
        self._group = groups_of_outputs(held, groups, parameters)
        measured = {name: name in guests for name in parameters}
        self._measured = groups_of_outputs(held, measured, parameters).astype(bool)
        self._laws = [(places, charges.matrix[places]) for places in laws]
        self._count = len(charges)

    @property
    def width(self) -> int:
        """How many numbers are measured."""
        return int(self._measured.sum())

    def pull(self, measured: Floats, coefficients: Sequence[Coefficients]) -> Floats:
        """Σ (λ_j − λ) s_j |θ_j|² or Σ (λ_j − λ) ⟨c_j, θ_j⟩ of every law.

        Args:
            measured: of θ² or θ, [width].
            coefficients: of each group.
        """
        pull = np.zeros(self._count)
        for places, matrix, excess, theta in self._each(measured, coefficients):
            pull[places] = matrix @ (excess * theta)
        return pull

    def squares(
        self, measured: Floats, leak: Floats, coefficients: Sequence[Coefficients]
    ) -> Floats:
        """What ⟨g̃, g̃⟩_S is more than ⟨g, g⟩_S, for every law.

        Args:
            measured: of θ², [width].
            leak: of θg, [M].
            coefficients: of each group.
        """
        squares = np.zeros(self._count)
        for places, matrix, excess, theta in self._each(measured, coefficients):
            squares[places] = matrix @ (excess * (excess * theta + 2 * leak))
        return squares

    def _each(
        self, measured: Floats, coefficients: Sequence[Coefficients]
    ) -> Iterator[tuple[NDArray[np.int64], Any, Floats, Floats]]:
        """For each group its laws that span groups, their matrix, λ_j − λ [M] and θ² or θ [M]."""
        if not self.reductions:
            return
        theta = np.zeros(len(self._measured))
        theta[self._measured] = measured
        decays = np.array([*(c.wd for c in coefficients), 0.0])[self._group]
        for (places, matrix), c in zip(self._laws, coefficients, strict=True):
            if len(places):
                yield places, matrix, decays - c.wd, theta


def groups_of_outputs(
    reductions: Sequence[Reduction],
    groups: Mapping[str, int],
    parameters: Mapping[str, nn.Parameter],
) -> NDArray[np.int64]:
    """The group [M] of each number that reductions make of parameters, given by name."""
    widths = [r.outputs(parameters[r.parameter].shape) for r in reductions]
    return np.repeat([groups[r.parameter] for r in reductions], widths).astype(np.int64)
