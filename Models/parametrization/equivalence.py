"""When two parametrizations are one: the symmetry of the abc form.

(a, b, c) → (a + θ, b − θ, c − 2θ) under SGD, and c − θ under Adam, changes no weight W of any
step, with one θ for every layer (Yang and Hu 2021, arXiv 2011.14522; Everett et al. 2024, arXiv
2407.05872). Weight decay and Adam's ε are part of the symmetry only if they are scaled as well
(:mod:`Models.parametrization.scales`).
"""

from fractions import Fraction

from Models.parametrization.exponents import ABC, Exponents, Family
from Models.parametrization.registry import PARAMETRIZATIONS, build_parametrization


def canonical(abc: ABC, family: Family) -> tuple[tuple[Fraction, Fraction, Fraction], ...]:
    """(s, C or A, that of the first steps) of every layer: what no θ changes.

    Args:
        abc: any.
        family: of the optimizer.
    """
    first = abc.first_steps > 0
    return tuple((e.s, e.rate(family), e.rate(family, first)) for e in abc.layers)


def symmetry_between(one: ABC, other: ABC, family: Family) -> tuple[Fraction, ...] | None:
    """θ of every layer that takes one parametrization into another; ``None`` if none does.

    Args:
        one: any.
        other: any.
        family: of the optimizer.
    """
    same = canonical(one, family) == canonical(other, family) and one.mean == other.mean
    if not same or one.bias_std != other.bias_std:
        return None
    return tuple(y.a - x.a for x, y in zip(one.layers, other.layers, strict=True))


def move(abc: ABC, theta: tuple[Fraction, ...], family: Family) -> ABC:
    """The same parametrization in another form.

    Args:
        abc: of L + 1 layers.
        theta: of each.
        family: of the optimizer.
    """
    times = 2 if family == "sgd" else 1
    layers = tuple(
        Exponents(
            e.a + t, e.b - t, e.c - times * t, None if e.first is None else e.first - times * t
        )
        for e, t in zip(abc.layers, theta, strict=True)
    )
    return ABC(**{**vars(abc), "layers": layers})


def recognise(abc: ABC, family: Family) -> dict[str, tuple[Fraction, ...]]:
    """The named parametrizations that ``abc`` equals up to the symmetry, with their θ.

    Args:
        abc: any.
        family: of the optimizer.
    """
    names = {e.name: f"{e.name}:{{}}" if e.option else e.name for e in PARAMETRIZATIONS}
    found = {}
    for entry in PARAMETRIZATIONS:
        if family not in entry.families:
            continue
        text = entry.name
        if entry.option:  # the readout's s = ½ + option/2 tells which one it would be
            number = 2 * abc.layers[-1].s - 1
            if not 0 <= number <= 1:
                continue
            text = names[entry.name].format(number)
        theta = symmetry_between(
            build_parametrization(text, family, abc.hidden_layers), abc, family
        )
        if theta is not None:
            found[text] = theta
    return found
