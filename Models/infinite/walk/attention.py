"""What self-attention means for infinitely wide networks.

Handlers are called as ``handler(builder, node, *args, **kwargs)`` with the arguments of the
operation, nodes replaced by symbols.
"""

from math import isclose, sqrt
from typing import Any

from torch import Tensor, fx

from Models.infinite.layers.attention import Attention
from Models.infinite.walk.builder import Builder
from Models.infinite.walk.spatial import SPATIAL
from Models.infinite.walk.values import (
    CHANNEL,
    Handler,
    NoLimitError,
    Scores,
    Symbol,
    Value,
    shape_of,
)

RANDOM = (
    "softmax attention with 1/√d has a random limit, not a kernel in closed form; divide the "
    "products of keys that are their own queries by d"
)


def _matmul(builder: Builder, node: fx.Node, x: Symbol, y: Symbol) -> Symbol:
    if isinstance(x, Scores) and not isinstance(y, Scores):
        return _attention(builder, x, builder.value(y))
    if isinstance(x, Value) and isinstance(y, Value):
        if x.index == y.index and x.axes == (0, CHANNEL) and y.axes == (CHANNEL, 0):
            return Scores(x, shape_of(node.all_input_nodes[0])[-1])
        raise NoLimitError(
            "products of different branches, as of queries and keys of their own, have no kernel "
            "in closed form; only keys that are their own queries have"
        )
    return SPATIAL["matmul"](builder, node, x, y)


def _attention(builder: Builder, scores: Scores, value: Value) -> Value:
    if value.axes != (0, CHANNEL):
        raise NoLimitError("attention over axes in another order than positions, channels")
    total = scores.factor * scores.width
    if scores.width > 1 and (scores.factor == 1 or isclose(total, sqrt(scores.width))):
        raise NoLimitError(RANDOM)
    function = scores.function

    def weights(covariance: Tensor) -> Tensor:
        z = covariance * total
        return z if function is None else function(z)

    return builder.step("attention", Attention(weights), value, scores.keys)


def _softmax(builder: Builder, node: fx.Node, x: Symbol, dim: int, *_: Any) -> Symbol:
    if not isinstance(x, Scores) or dim % len(shape_of(node)) != len(shape_of(node)) - 1:
        raise NoLimitError(RANDOM)
    return x.then(lambda z: z.softmax(-1))


ATTENTION: dict[str, Handler] = {
    **dict.fromkeys(("matmul", "bmm"), _matmul),
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
}
"""By the operation's name."""
