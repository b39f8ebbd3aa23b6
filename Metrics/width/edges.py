"""What one side that does not grow adds to the norms of independent numbers.

Before exponents of W_0 are fitted it is divided out, and predicted curves have it.
"""

from collections.abc import Mapping

OPERATOR = "operator norm"

POWERS: Mapping[str, int] = {OPERATOR: -1, "spectral ratio": -1, "stable rank": 2}
"""Of W_0's :func:`edge`, by which it is taken out of quantities."""


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


def edges(sides: Mapping[int, tuple[float, float]]) -> dict[int, float]:
    """Of one layer by the network's width, from its outputs and inputs there."""
    grows = len({outputs for outputs, _ in sides.values()}) > 1
    return {
        n: edge(outputs, inputs, outputs if grows else inputs)
        for n, (outputs, inputs) in sides.items()
    }
