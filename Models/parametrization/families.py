"""The parametrizations that have names.

Every builder is called as ``builder(family, hidden_layers, **options)``. Sources: Yang and Hu
2021 (arXiv 2011.14522) for SP, NTK, mean-field and muP under SGD; Yang et al. 2022 (Tensor
Programs V, arXiv 2203.03466), Table 8, for muP under Adam; Yang and Littwin 2023 (Tensor
Programs IVb, arXiv 2308.01814) for the kernel limit of Adam; Hajjar, Chizat and Giraud 2021
(Training integrable parameterizations, arXiv 2110.15596) and their code for IP and IP-LLR.
"""

from fractions import Fraction

from Models.parametrization.exponents import ABC, HALF, ONE, ZERO, Exponents, Family

_NONE = Exponents()


def _by_role(
    hidden_layers: int,
    first: Exponents,
    hidden: Exponents,
    readout: Exponents,
    finite: Exponents = _NONE,
    query: Exponents | None = None,
) -> ABC:
    """The same exponents for all hidden layers; biases are vectors, the last one is finite.

    Vectors are like the first layer, which begins with s = 0: both are Θ(1), and read what is.
    """
    layers = (first, *[hidden] * (hidden_layers - 1), readout)
    biases = (*[first] * hidden_layers, finite)
    return ABC(layers, biases, first, finite, query or hidden)


def standard(family: Family, hidden_layers: int, c: Fraction = ZERO) -> ABC:
    """SP: weights n^{-1/2}, one learning rate η n^{-c} for all."""
    one, half = Exponents(c=c), Exponents(b=HALF, c=c)
    return _by_role(hidden_layers, one, half, half, finite=one)


def standard_lr1n(family: Family, hidden_layers: int) -> ABC:
    """SP with the learning rate η / n: a kernel limit under SGD."""
    return standard(family, hidden_layers, ONE)


def ntk(family: Family, hidden_layers: int) -> ABC:
    """NTK: multipliers n^{-1/2}; with Adam the learning rates of its kernel limit."""
    return hybrid(family, hidden_layers, ZERO)


def hybrid(family: Family, hidden_layers: int, s: Fraction) -> ABC:
    """From NTK, s = 0, to muP, s = 1; r = (1 − s)/2."""
    readout = HALF + s / 2
    if family == "sgd":
        first, hidden, last = -s, -s, -s
    else:  # A = (1 − s)/2, (3 − s)/2, 1: features move by n^{-(1−s)/2}, outputs by Θ(1)
        first, hidden, last = (1 - s) / 2, 1 - s / 2, 1 - readout
    return _by_role(
        hidden_layers, Exponents(c=first), Exponents(a=HALF, c=hidden), Exponents(readout, c=last)
    )


def mup(family: Family, hidden_layers: int) -> ABC:
    """Maximal update parametrization in its abc form: c = 0 under SGD."""
    outer, inner = (ZERO, ZERO) if family == "sgd" else (HALF, ONE)
    abc = _by_role(
        hidden_layers,
        Exponents(-HALF, HALF, outer),
        Exponents(b=HALF, c=inner),
        Exponents(HALF, HALF, outer),
        query=Exponents(HALF, HALF, inner),
    )
    return ABC(**{**vars(abc), "decay": "constant"})


def mup_table8(family: Family, hidden_layers: int) -> ABC:
    """MuP as mup's MuReadout, MuSGD and MuAdam write it: 1/n before the readout."""
    outer, inner = (-ONE, ZERO) if family == "sgd" else (ZERO, ONE)
    abc = _by_role(
        hidden_layers,
        Exponents(c=outer),
        Exponents(b=HALF, c=inner),
        Exponents(ONE, ZERO, outer),
        query=Exponents(HALF, HALF, inner),
    )
    return ABC(**{**vars(abc), "decay": "constant"})


def integrable(family: Family, hidden_layers: int, mean: float = 0.0) -> ABC:
    """IP, mean field in every layer: multipliers 1/n, also of the biases; weights of size 1."""
    outer, inner = (-ONE, Fraction(-2)) if family == "sgd" else (ZERO, ZERO)
    first, hidden, readout = Exponents(c=outer), Exponents(ONE, c=inner), Exponents(ONE, c=outer)
    layers = (first, *[hidden] * (hidden_layers - 1), readout)
    return ABC(layers, layers, first, readout, hidden, mean=mean)


def integrable_non_centered(family: Family, hidden_layers: int) -> ABC:
    """IP with weights of mean 1 after the first layer: nothing vanishes, neurons are alike."""
    return integrable(family, hidden_layers, mean=1.0)


def integrable_large_first_step(family: Family, hidden_layers: int) -> ABC:
    """IP-LLR: learning rates that undo the vanishing in the first step, then those of IP."""
    abc, depth = integrable(family, hidden_layers), hidden_layers
    firsts = [
        -Fraction(depth + (1 if layer in {1, depth + 1} else 2), 2) for layer in range(1, depth + 2)
    ]
    layers = _with_first(abc.layers, firsts)
    return ABC(**{**vars(abc), "layers": layers, "biases": layers, "first_steps": 1})


def integrable_large_first_step_bias(family: Family, hidden_layers: int) -> ABC:
    """IP-LLR with biases of size 1 and without multiplier, which keep the layers alive."""
    abc, depth = integrable(family, hidden_layers), hidden_layers
    inner = [-Fraction(depth - layer + 4, 2) for layer in range(2, depth + 1)]
    layers = _with_first(abc.layers, [-Fraction(depth + 1, 2), *inner, -ONE])
    later = [*[Exponents(c=-ONE)] * depth, _NONE]
    firsts = [*(-Fraction(depth - layer + 2, 2) for layer in range(1, depth + 1)), ZERO]
    biases = _with_first(later, firsts)
    changed = {"layers": layers, "biases": biases, "finite": _NONE}
    return ABC(**{**vars(abc), **changed, "first_steps": 1, "bias_std": 1.0})


def _with_first(
    layers: tuple[Exponents, ...] | list[Exponents], firsts: list[Fraction]
) -> tuple[Exponents, ...]:
    return tuple(Exponents(e.a, e.b, e.c, first) for e, first in zip(layers, firsts, strict=True))
