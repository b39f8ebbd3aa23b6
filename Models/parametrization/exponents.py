"""Exponents of the width n that make up a parametrization, as exact fractions.

In the abc form (Yang and Hu 2021, Tensor Programs IV, arXiv 2011.14522) the network computes
with W = n^{-a} w, where w is drawn with standard deviation n^{-b} times a constant and trained
with the learning rate η n^{-c}. What W does depends on two sums alone:

    s = a + b                    W₀ ~ n^{-s}
    C = 2a + c  (SGD)            ΔW = −η n^{-C} ∂L/∂W
    A = a + c   (Adam, ε → 0)    the entries of ΔW are η n^{-A}

L is the number of hidden layers of a chain; layer l = 1 … L+1 is its l-th weight.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Family = Literal["sgd", "adam"]
"""Optimizers whose step grows with the gradient, and those that divide its size out."""

Role = Literal["input", "hidden", "query", "readout", "vector", "finite"]
"""Which dimensions of a parameter grow with the width: the output's (input); both (hidden, and
query, the hidden weights that make attention's queries); the input's (readout); the only one
there is, or that of something added (vector); none (finite)."""

Decay = Literal["literal", "constant"]
"""What --wd is in an abc form: the decay of w, or one whose product with the learning rate of w
does not depend on the width, as in mup's optimizers."""

WeightDecay = Literal["gradient", "decoupled"]
"""Where an optimizer puts --wd: λw in the gradient, or a factor 1 − lr λ."""

ZERO, HALF, ONE = Fraction(0), Fraction(1, 2), Fraction(1)


@dataclass(frozen=True)
class Exponents:
    """Of one parameter.

    Attributes:
        a: of the multiplier, n^{-a}.
        b: of the initial standard deviation, n^{-b}.
        c: of the learning rate, n^{-c}.
        first: c of the first steps, where it is another.
    """

    a: Fraction = ZERO
    b: Fraction = ZERO
    c: Fraction = ZERO
    first: Fraction | None = None

    @property
    def s(self) -> Fraction:
        """a + b."""
        return self.a + self.b

    def rate(self, family: Family, first: bool = False) -> Fraction:
        """C = 2a + c, or A = a + c for Adam.

        Args:
            family: of the optimizer.
            first: whether in the first steps.
        """
        c = self.first if first and self.first is not None else self.c
        return (2 * self.a if family == "sgd" else self.a) + c


@dataclass(frozen=True)
class ABC:
    """A parametrization of a chain with L hidden layers, and so of its roles.

    Attributes:
        layers: of the weights 1 … L+1; (input, hidden, readout) where L = 2.
        biases: of the biases 1 … L+1.
        vector: of gains of normalisations, and of what is added to a layer without being its bias.
        finite: of parameters without a width.
        query: of the hidden weights that make queries.
        first_steps: how many steps have the learning rates of ``first``.
        mean: μ, where hidden and readout weights are drawn from n^{-s} N(μ, σ²).
        bias_std: standard deviation of biases before n^{-s}.
        decay: the meaning of --wd.
    """

    layers: tuple[Exponents, ...]
    biases: tuple[Exponents, ...]
    vector: Exponents
    finite: Exponents
    query: Exponents
    first_steps: int = 0
    mean: float = 0.0
    bias_std: float = 0.0
    decay: Decay = "literal"

    @property
    def hidden_layers(self) -> int:
        """L."""
        return len(self.layers) - 1

    def of(self, role: Role) -> Exponents:
        """Those of a role, where they are the same for all hidden layers.

        Args:
            role: of a parameter; biases have the role vector or finite.
        """
        chain = {"input": 0, "hidden": min(1, self.hidden_layers - 1), "readout": -1}
        if role in chain:
            return self.layers[chain[role]]
        return {"vector": self.vector, "finite": self.finite, "query": self.query}[role]


def fraction(value: object) -> Fraction:
    """An exponent as people write it: 1, -0.5, "1/2".

    Args:
        value: a number, or text.

    Raises:
        ValueError: it is none.
    """
    try:
        return Fraction(str(value)).limit_denominator(1000)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is no number such as 1, -0.5 or 1/2") from None
