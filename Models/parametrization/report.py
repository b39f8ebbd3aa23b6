"""What ``train.py --explain`` prints: exponents, verdict and predictions of a parametrization."""

from collections.abc import Iterable, Sequence
from fractions import Fraction

from Models.parametrization.equivalence import recognise
from Models.parametrization.exponents import ABC, Exponents, Family
from Models.parametrization.theory import Theory, explain

_RATE = {"sgd": "C = 2a + c", "adam": "A = a + c"}

Row = tuple[str, Sequence[object]]


def report(name: str, abc: ABC, depth: int, family: Family, bias: bool) -> str:
    """The theory of a parametrization as text; an exponent e stands for width^e.

    Args:
        name: of the parametrization, as the user typed it.
        abc: of depth + 1 layers.
        depth: L, the number of hidden layers.
        family: of the optimizer.
        bias: whether layers have biases.
    """
    theory = explain(abc, depth, family, bias)
    head = ["", "input", *(f"hidden {k}" for k in range(2, depth + 1)), "readout"]
    blocks: list[tuple[str, list[Row]]] = [
        ("exponents", list(_exponents(abc, family))),
        ("at initialisation", list(theory.initial.items())),
        ("after the first step", list(theory.first.items())),
        (_later(abc), list(theory.later.items())),
    ]
    lines = [_verdict(name, theory, depth, family), *_same(abc, family), ""]
    table = [head]
    for title, block in blocks:
        table += [[title], *([f"  {row}", *map(_text, values)] for row, values in block)]
    widths = [max(len(r[k]) for r in table if k < len(r) > 1) for k in range(len(head))]
    for row in table:
        cells = (c.ljust(w) for c, w in zip(row, widths, strict=False))
        lines.append("  ".join(cells).rstrip())
    lines += [
        "",
        f"relative change of the tangent kernel and the features' kernel: {_kernel(theory)}",
    ]
    return "\n".join(lines)


def _kernel(theory: Theory) -> str:
    if theory.relative_kernel is not None:
        return f"width^({theory.relative_kernel})"
    why = "the parametrization is unstable" if theory.regime == "unstable" else "layers vanish"
    return f"no power of the width, as {why}"


def _later(abc: ABC) -> str:
    return "after the second step" if abc.first_steps < 2 else "after one with the later lr"


def _exponents(abc: ABC, family: Family) -> Iterable[Row]:
    layers = abc.layers
    yield "a", [e.a for e in layers]
    yield "b", [e.b for e in layers]
    yield "c", [e.c for e in layers]
    if abc.first_steps:
        steps = "step 1" if abc.first_steps == 1 else f"steps 1 to {abc.first_steps}"
        yield f"c of {steps}", [e.first for e in layers]
    yield "s = a + b", [e.s for e in layers]
    yield _RATE[family], [e.rate(family) for e in layers]
    yield "bias: a, b, c", [_triple(e) for e in abc.biases]


def _triple(e: Exponents) -> str:
    return f"{e.a}, {e.b}, {e.c}"


def _text(value: object) -> str:
    if isinstance(value, Fraction) and value > 0:
        return f"+{value}"
    return "–" if value is None else str(value)


def _verdict(name: str, theory: Theory, depth: int, family: Family) -> str:
    kind = "SGD" if family == "sgd" else "Adam"
    verdict: str = theory.regime
    if theory.stable:
        verdict = f"stable, {verdict}"
    elif verdict != "unstable":
        verdict = f"layers vanish at initialisation, {verdict}"
    layers = "1 hidden layer" if depth == 1 else f"{depth} hidden layers"
    return f"{name}, {kind}, {layers}: {verdict}, r = {theory.r}"


def _same(abc: ABC, family: Family) -> list[str]:
    found = recognise(abc, family)
    named = (f"{name} (θ = {', '.join(map(str, theta))})" for name, theta in found.items())
    return [f"up to the symmetry, layer by layer: {'; '.join(named)}"] if found else []
