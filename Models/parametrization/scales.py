"""What a parametrization says of each parameter: initial size, learning rate, decay and ε.

The multiplier of the abc form is folded away, so that no forward pass changes. With W = n^{-a} w,
∂L/∂w = n^{-a} ∂L/∂W, and from the update rules of w follow those of W:

    SGD, momentum   w ← w − η n^{-c} (∂L/∂w + λ w)      lr' = η n^{-(2a+c)}, λ' = λ n^{2a}
    Adam, RMSprop   w ← w − η n^{-c} m/(√v + ε)         lr' = η n^{-(a+c)},  ε' = ε n^{a};
                    a decay within the gradient         λ' = λ n^{2a}
    AdamW, Lion     w ← (1 − η n^{-c} λ) w − …          λ' = λ n^{a}

(m and √v are n^{-a} times those of ∂L/∂W.) Where the decay is "constant", λ of w is itself
λ n^{c}. All W are the same as in the explicit form, at every step, whatever a is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from Models.parametrization.exponents import ABC, Exponents, Family, WeightDecay
from Models.parametrization.roles import Place


@dataclass(frozen=True)
class Scale:
    """Factors of one parameter.

    Attributes:
        name: of the parameter.
        shape: its own.
        role: its own.
        init: how it begins, in words: a standard deviation, or a factor of its own numbers.
        lr: factor of the learning rate.
        first_lr: the same, in the first steps.
        wd: factor of the weight decay.
        eps: factor of ε.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    init: str
    lr: float = 1.0
    first_lr: float = 1.0
    wd: float = 1.0
    eps: float = 1.0


@dataclass(frozen=True)
class Scales:
    """Of all parameters of a network.

    Attributes:
        parameters: in the model's order.
        first_steps: for how many steps ``first_lr`` holds.
        relative_to: the base width, or in words what it is; "1" where scales are absolute.
    """

    parameters: tuple[Scale, ...]
    first_steps: int
    relative_to: str

    def of(self, name: str) -> Scale:
        """Those of a parameter."""
        return next(scale for scale in self.parameters if scale.name == name)

    def with_first_lrs(self, rates: Mapping[str, float], lr: float) -> "Scales":
        """The same, where the first steps have base learning rates of their own.

        Args:
            rates: by parameter.
            lr: that of the others.
        """
        rows = (replace(s, first_lr=s.first_lr * rates[s.name] / lr) for s in self.parameters)
        return replace(self, parameters=tuple(rows))

    @classmethod
    def from_flat(cls, content: Mapping[str, Any]) -> "Scales":
        """What :meth:`flat` gave.

        Args:
            content: from a file.
        """
        rows = [Scale(**{**row, "shape": tuple(row["shape"])}) for row in content["parameters"]]
        return cls(tuple(rows), content["first_steps"], content["relative_to"])

    def flat(self) -> dict[str, Any]:
        """As JSON types."""
        rows = [asdict(scale) | {"shape": list(scale.shape)} for scale in self.parameters]
        return {
            "relative_to": self.relative_to,
            "first_steps": self.first_steps,
            "parameters": rows,
        }

    def table(self) -> str:
        """What the user sees before training."""
        columns = {"lr ×": "lr", "wd ×": "wd"}
        columns |= {"ε ×": "eps"} if any(s.eps != 1 for s in self.parameters) else {}
        columns |= {"first lr ×": "first_lr"} if self.first_steps else {}
        rows = [("parameter", "shape", "role", "initial", *columns)]
        for s in self.parameters:
            numbers = (f"{getattr(s, field):.4g}" for field in columns.values())
            rows.append((s.name, "x".join(map(str, s.shape)) or "1", s.role, s.init, *numbers))
        return _aligned(rows)


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def exponents_of(place: Place, abc: ABC) -> Exponents:
    """What a parametrization says of a parameter.

    Args:
        place: its own.
        abc: of as many layers as the chain has, or of two hidden layers.
    """
    if place.given or place.kind == "other":
        return abc.of(place.role)
    if place.kind == "weight":
        return abc.of(place.role) if place.layer is None else abc.layers[place.layer]
    if place.layer is not None:
        return abc.biases[place.layer]
    if place.role == "finite":
        return abc.biases[-1]
    bias = abc.biases[0 if place.reads == "input" else 1]
    if place.reads == "query":  # scaled with its weight, as queries are as a whole
        return replace(bias, a=bias.a + abc.query.a - abc.of("hidden").a)
    return bias


def factors(
    e: Exponents, growth: float, family: Family, decay: WeightDecay, constant: bool
) -> dict[str, float]:
    """lr'/η, that of the first steps, λ'/λ and ε'/ε of a parameter.

    Args:
        e: its exponents.
        growth: n, or n/N.
        family: of the optimizer.
        decay: how the optimizer decays weights.
        constant: whether λ of w is λ n^{c}.
    """
    decays = e.a * (2 if decay == "gradient" else 1) + (e.c if constant else 0)
    powers = {
        "lr": -e.rate(family),
        "first_lr": -e.rate(family, first=True),
        "wd": decays,
        "eps": e.a if family == "adam" else 0,
    }
    return {name: growth ** float(power) for name, power in powers.items()}


def scales_of(
    places: Iterable[Place],
    abc: ABC,
    growth: dict[str, float],
    inits: dict[str, str],
    optimizer: tuple[Family, WeightDecay],
    relative_to: str,
) -> Scales:
    """The scales of all parameters.

    Args:
        places: of the parameters.
        abc: the parametrization.
        growth: n or n/N, by name.
        inits: how each begins, in words.
        optimizer: its family and how it decays weights.
        relative_to: the base width.
    """
    constant = abc.decay == "constant"
    rows = tuple(
        Scale(
            p.name,
            p.shape,
            p.role,
            inits[p.name],
            **factors(exponents_of(p, abc), growth[p.name], *optimizer, constant),
        )
        for p in places
    )
    return Scales(rows, abc.first_steps, relative_to)
