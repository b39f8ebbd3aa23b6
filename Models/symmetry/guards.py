"""Constants that only guard against a division by zero, such as the ε of a normalisation.

``statistic + ε`` or ``max(statistic, ε)`` breaks the statistic's scale by no more than ε does,
if the result is only divided by. Elsewhere a constant is a scale of its own.
"""

from torch import fx

from Models.symmetry.export import operation

_LARGEST = 1e-3
_STATISTICS = frozenset(("mean", "sum", "var", "std", "amax", "amin", "linalg_vector_norm"))
_PASSING = frozenset(
    ("sqrt", "pow", "square", "mul", "div", "unsqueeze", "view", "expand", "expand_as")
)


def is_guard(node: fx.Node, constant: float) -> bool:
    """Whether a constant only keeps a statistic from being inverted where it vanishes.

    Args:
        node: the operation that combines its first operand with the constant.
        constant: what is added, or the smallest value let through.
    """
    source = node.args[0]
    while isinstance(source, fx.Node) and operation(source).name in _PASSING:
        source = source.args[0]
    statistic = isinstance(source, fx.Node) and operation(source).name in _STATISTICS
    return 0 < constant <= _LARGEST and statistic and _is_inverted(node)


def _is_inverted(node: fx.Node) -> bool:
    """Whether all that is done to a result is to divide by it, or by its root."""
    return all(_inverts(user, node) for user in node.users)


def _inverts(user: fx.Node, node: fx.Node) -> bool:
    name = operation(user).name
    if name == "div":
        return user.args[1] is node and user.args[0] is not node
    if name == "pow" and isinstance(user.args[1], (int, float)) and user.args[1] < 0:
        return True
    return name in ("rsqrt", "reciprocal") or (name in _PASSING and _is_inverted(user))
