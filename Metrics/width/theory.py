"""What theory says of a group of runs: its parametrization's exponents, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from Metrics.width.members import Group, Member
from Models.construct import skeleton
from Models.parametrization import ABC, Exponents, Role, Theory, build_parametrization, explain
from Models.parametrization.network import Parametrized
from Models.parametrization.roles import chain_of
from Training.config import TrainConfig
from Training.rebuild import rebuild_config
from Training.registry import OPTIMIZERS
from Utils.errors import UserError

_SMOOTH = {"tanh", "sigmoid", "gelu", "silu", "softplus", "identity"}

Fans = tuple[int, int]
"""What one output of a layer reads, and how many outputs there are."""


@dataclass(frozen=True)
class ChainTheory:
    """The predictions for a group, by the names of its layers.

    Attributes:
        theory: of the group's parametrization; ``None`` if there is none.
        reason: why not.
        abc: the parametrization.
        family: of the optimizer.
        places: index of each layer in the tables of ``theory``: its own in a chain, else that
            of the layer with the same role in a chain of three.
        chain: whether the layers are input, hidden ones and readout in this order.
        smooth: whether the nonlinearity is known to have two derivatives everywhere.
        torch_biases: whether biases begin as torch draws them, of size 1/√fan-in.
    """

    theory: Theory | None
    reason: str = ""
    abc: ABC | None = None
    family: str = ""
    places: Mapping[str, int] | None = None
    chain: bool = False
    smooth: bool = False
    torch_biases: bool = False

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

    def least_initial(self, layer: str) -> Fraction | None:
        """The smallest exponent of the parts of a layer's first preactivation.

        torch's biases are n^(−½) where inputs grow. Its weights shrink what they read by √3, with
        relu by √6, so that at usual widths biases may be the larger part of deep layers.
        """
        start = self.initial("preactivation", layer)
        if start is None or not self.torch_biases or not (self.places or {})[layer]:
            return start
        return min(start, Fraction(-1, 2))

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

    def least_change(self, layer: str, step: int) -> Fraction | None:
        """The smallest exponent of the parts of a layer's change, made here and below."""
        return smallest(self.after("own", layer, step), self.least_propagated(layer, step))

    def least_propagated(self, layer: str, step: int) -> Fraction | None:
        """The same of the part that the layers below make.

        The readout reads a change that its first weights have made and are aligned with; of
        what they are not aligned with, they sum √n random terms of n.
        """
        below = self.below(layer)
        propagated = self.after("propagated", layer, step)
        if below is None or propagated is None:
            return propagated
        if self.abc is not None and (self.places or {})[layer] == self.abc.hidden_layers:
            propagated -= Fraction(1, 2)
        change, least = self.after("change", below, step), self.least_change(below, step)
        return None if change is None or least is None else propagated - change + least

    def below(self, layer: str) -> str | None:
        """The layer below in a chain."""
        names = list(self.places or {})
        at = names.index(layer) if self.chain and layer in names else 0
        return names[at - 1] if at else None

    def after_first(self, name: str, layer: str, step: int) -> Fraction | None:
        """Likewise, where the theory is about one step, and others like it where it is stable."""
        theory = self.theory
        if theory is None or (step > 1 and not self.steady):
            return None
        return self._of(theory.first.get(name, ()), layer, 0)

    def coordinates(self) -> dict[str, str]:
        """a, b and c of the roles as text, and the family and depth; empty without a theory."""
        if self.abc is None:
            return {}
        roles: tuple[Role, ...] = ("input", "hidden", "readout")
        told = {f"{n} of {role}": getattr(self.abc.of(role), n) for role in roles for n in "abc"}
        return {name: str(value) for name, value in told.items()} | {
            "family": self.family,
            "depth": str(self.abc.hidden_layers),
        }

    @property
    def steady(self) -> bool:
        """Whether every step is like the first: stable, and with the same learning rates."""
        if self.theory is None or self.abc is None:
            return False
        return self.theory.stable and not self.abc.first_steps

    @property
    def maximal(self) -> bool:
        """Whether every layer's own update is Θ(1): learning rates keep their meaning."""
        own = () if self.theory is None else self.theory.first["own"]
        return self.steady and all(exponent == 0 for exponent in own)

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


def smallest(*exponents: Fraction | None) -> Fraction | None:
    """The smallest exponent of the parts of a sum."""
    known = [e for e in exponents if e is not None]
    return min(known) if known else None


def theory_of(group: Group, fans: Mapping[int, Mapping[str, Fans]]) -> ChainTheory:
    """The predictions for a group, or why there are none.

    Args:
        group: the runs.
        fans: of the layers, in the order in which they are called, by width.
    """
    member = group.members[0]
    if reason := _refusal(group):
        return ChainTheory(None, reason)
    family = OPTIMIZERS[member.flag("optimizer")].family
    try:
        config = rebuild_config(member.run, dict(member.hyperparameters))
        abc, chain = _parametrization(member, config)
    except UserError as error:
        return ChainTheory(None, str(error))
    assert family is not None
    assert group.lr_exponent is not None
    abc = _with_lr(abc, group.lr_exponent)
    theory = explain(abc, abc.hidden_layers, family, config.bias)
    if chain is None and not theory.stable:
        return ChainTheory(None, "the layers are no chain, and the parametrization is not stable")
    places = _places(member, chain, fans)
    return ChainTheory(
        theory,
        abc=abc,
        family=family,
        places=places,
        chain=chain is not None,
        smooth=config.nonlinearity in _SMOOTH,
        torch_biases=config.bias and not config.is_parametrized,
    )


def _refusal(group: Group) -> str:
    """Why the recursions do not hold for these runs; empty if they do."""
    member = group.members[0]
    optimizer = OPTIMIZERS[member.flag("optimizer")]
    if optimizer.family is None:
        return f"no theory of --optimizer {optimizer.name}: {optimizer.no_rule}"
    if member.flag("wd"):
        return "weight decay moves weights besides their gradients"
    if member.flag("clip_norm"):
        return "--clip-norm makes steps depend on the size of all gradients together"
    if group.lr_exponent is None:
        return "--lr follows the width, but by no power of it"
    return ""


def _parametrization(member: Member, config: TrainConfig) -> tuple[ABC, list[str] | None]:
    """The exponents, and the names of the layers if they are a chain.

    Without --param, networks count as standard: torch's layers begin so.
    """
    task = member.hyperparameters["task"]
    shape, classes = tuple(task["input_shape"]), task["num_classes"]
    family = OPTIMIZERS[config.optimizer].family
    assert family is not None
    weights = chain_of(skeleton(config, shape, classes, config.finite_width))
    chain = None
    if weights is not None and len(weights) > 1:
        chain = [name.rpartition(".")[0] for name in weights]
    if config.is_parametrized:
        return Parametrized(config, shape, classes).abc(family), chain
    depth = len(chain) - 1 if chain else 2
    return build_parametrization("sp", family, depth), chain


def _places(
    member: Member, chain: list[str] | None, fans: Mapping[int, Mapping[str, Fans]]
) -> dict[str, int]:
    """The index of each layer in the tables of theory."""
    if chain is not None:
        return {name: index for index, name in enumerate(chain)}
    known = member.hyperparameters["task"].get("parametrization", {}).get("parameters", ())
    stored = {row["name"].removesuffix(".weight"): row["role"] for row in known}
    at = {"input": 0, "hidden": 1, "query": 1, "readout": 2}
    roles = _roles(fans) | {name: role for name, role in stored.items() if role in at}
    return {name: at[role] for name, role in roles.items() if role in at}


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
    if not fans:
        return {}
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
