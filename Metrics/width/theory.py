"""What theory says of a group of runs: its parametrization's exponents, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from Metrics.width.members import Group, Member
from Models.parametrization import (
    ABC,
    Exponents,
    Family,
    Theory,
    build_parametrization,
    explain,
)
from Utils.errors import UserError

_FAMILIES: Mapping[str, Family] = {
    "sgd": "sgd",
    "momentum": "sgd",
    "adam": "adam",
    "adamw": "adam",
    "rms": "adam",
}

Fans = tuple[int, int]
"""What one output of a layer reads, and how many outputs there are."""


@dataclass(frozen=True)
class ChainTheory:
    """The predictions for a group, by the names of its layers.

    Attributes:
        theory: of the group's parametrization; ``None`` if there is none.
        reason: why not.
        abc: the parametrization.
        places: index of each layer in the tables of ``theory``: its own in a chain, else that
            of the layer with the same role in a chain of three.
        chain: whether the layers are input, hidden ones and readout in this order.
    """

    theory: Theory | None
    reason: str = ""
    abc: ABC | None = None
    places: Mapping[str, int] | None = None
    chain: bool = False

    def initial(self, name: str, layer: str, below: int = 0) -> Fraction | None:
        """An exponent at initialisation.

        Args:
            name: of the quantity, as :class:`Theory` calls it.
            layer: the layer's.
            below: how many layers below it the quantity is.
        """
        if self.theory is None or (below and not self.chain):
            return None
        return self._of(self.theory.initial[name], layer, below)

    def after(self, name: str, layer: str, step: int, below: int = 0) -> Fraction | None:
        """An exponent after a step ≥ 1, of what has changed since initialisation.

        Unstable parametrizations are predicted for two steps only.
        """
        theory = self.theory
        if theory is None or (below and not self.chain):
            return None
        if step > 2 and theory.regime == "unstable":
            return None
        first = self._of(theory.first.get(name, ()), layer, below)
        if step == 1:
            return first
        return largest(first, self._of(theory.later.get(name, ()), layer, below))

    def after_first(self, name: str, layer: str, step: int) -> Fraction | None:
        """Likewise, where the theory is about one step, and others like it where it is stable."""
        theory = self.theory
        if theory is None or (step > 1 and not self.steady):
            return None
        return self._of(theory.first.get(name, ()), layer, 0)

    @property
    def steady(self) -> bool:
        """Whether every step is like the first: stable, and with the same learning rates."""
        if self.theory is None or self.abc is None:
            return False
        return self.theory.stable and not self.abc.first_steps

    @property
    def gradients_last(self) -> bool:
        """Whether ∂f/∂h keeps its size: the readout begins no smaller than the n^{-1} that a
        steady first step adds to it at most."""
        return self.abc is not None and self.abc.layers[-1].s <= 1

    def spectral(self, layer: str) -> Fraction | None:
        """The exponent of √(n_out/n_in)."""
        place = (self.places or {}).get(layer)
        if place is None or self.abc is None:
            return None
        return Fraction((place == 0) - (place == self.abc.hidden_layers), 2)

    def _of(self, row: tuple[Fraction | None, ...], layer: str, below: int) -> Fraction | None:
        place = (self.places or {}).get(layer)
        if place is None or not 0 <= place - below < len(row):
            return None
        return row[place - below]


def largest(*exponents: Fraction | None) -> Fraction | None:
    """Of a sum: the largest exponent of its parts."""
    known = [e for e in exponents if e is not None]
    return max(known) if known else None


def theory_of(group: Group, fans: Mapping[int, Mapping[str, Fans]]) -> ChainTheory:
    """The predictions for a group, or why there are none.

    Args:
        group: the runs.
        fans: of the layers, in the order in which they are called, by width.
    """
    member = group.members[0]
    if reason := _refusal(group):
        return ChainTheory(None, reason)
    family = _FAMILIES[member.flag("optimizer")]
    roles = _roles(fans)
    chain = _is_chain(list(roles.values()))
    depth = len(roles) - 1 if chain else 2
    at = {"input": 0, "hidden": 1, "readout": 2}
    places = {
        name: index if chain else at[role]
        for index, (name, role) in enumerate(roles.items())
        if chain or role in at
    }
    try:
        abc = _abc(member, family, depth)
    except UserError as error:
        return ChainTheory(None, str(error))
    assert group.lr_exponent is not None
    abc = _with_lr(abc, group.lr_exponent)
    theory = explain(abc, depth, family, bool(member.flag("bias")))
    if not chain and not theory.stable:
        return ChainTheory(None, "the layers are no chain, and the parametrization is not stable")
    return ChainTheory(theory, "", abc, places, chain)


def _refusal(group: Group) -> str:
    """Why the recursions do not hold for these runs; empty if they do."""
    member = group.members[0]
    if member.flag("optimizer") not in _FAMILIES:
        return f"no theory of --optimizer {member.flag('optimizer')}"
    if member.flag("wd"):
        return "weight decay moves weights besides their gradients"
    if member.flag("clip_norm"):
        return "--clip-norm makes steps depend on the size of all gradients together"
    if group.lr_exponent is None:
        return "--lr follows the width, but by no power of it"
    return ""


def _abc(member: Member, family: Family, depth: int) -> ABC:
    return build_parametrization(member.flag("param") or "sp", family, depth)


def _with_lr(abc: ABC, exponent: Fraction) -> ABC:
    """The same with all learning rates times n^exponent."""

    def moved(e: Exponents) -> Exponents:
        first = None if e.first is None else e.first - exponent
        return replace(e, c=e.c - exponent, first=first)

    return replace(
        abc,
        layers=tuple(map(moved, abc.layers)),
        biases=tuple(map(moved, abc.biases)),
        vector=moved(abc.vector),
        finite=moved(abc.finite),
        query=moved(abc.query),
    )


def _roles(fans: Mapping[int, Mapping[str, Fans]]) -> dict[str, str]:
    """Which dimensions of each layer grow from the smallest to the largest width."""
    small, large = fans[min(fans)], fans[max(fans)]
    named = {
        (False, True): "input",
        (True, True): "hidden",
        (True, False): "readout",
        (False, False): "finite",
    }
    return {
        name: named[large[name][0] > small[name][0], large[name][1] > small[name][1]]
        for name in small
        if name in large
    }


def _is_chain(roles: list[str]) -> bool:
    inner = roles[1:-1]
    return (
        len(roles) > 1
        and (roles[0], roles[-1]) == ("input", "readout")
        and set(inner) <= {"hidden"}
    )
