"""What elementwise operations mean for infinitely wide networks: functions, factors, sums.

Handlers are called as ``handler(builder, node, *args, **kwargs)`` with the arguments of the
operation, nodes replaced by symbols.
"""

from typing import Any

from torch import Tensor, fx

from Models.infinite.layers.pointwise import Dropout, Scale
from Models.infinite.walk.builder import Builder
from Models.infinite.walk.values import (
    Expression,
    Handler,
    Input,
    NoLimitError,
    Scores,
    Symbol,
    Value,
    Weight,
)
from Models.symmetry.export import IDENTITIES, operation

ELEMENTWISE: dict[str, Handler] = {}
"""By the operation's name."""

_UNARY = """relu leaky_relu abs gelu erf sin cos exp sign sgn tanh sigmoid silu softplus mish elu
    selu celu hardtanh hardsigmoid hardswish relu6 softsign log_sigmoid square pow sqrt rsqrt
    reciprocal log log1p expm1 clamp clamp_min clamp_max tan atan asinh sinh cosh logsigmoid
    hardshrink softshrink tanhshrink threshold rrelu heaviside sinc"""


def _unary(builder: Builder, node: fx.Node, x: Symbol, *args: Any, **kwargs: Any) -> Symbol:
    name, target = operation(node).name, node.target
    if any(isinstance(a, (Value, Input, Expression, Weight)) for a in (*args, *kwargs.values())):
        raise NoLimitError("no infinite-width limit of it is known")
    if isinstance(x, Scores):
        return x.then(lambda z: target(z, *args, **kwargs))  # type: ignore[operator]
    before = _expression(builder, x, name)

    def function(z: Tensor) -> Tensor:
        found: Tensor = target(before.function(z).clone(), *args, **kwargs)  # type: ignore[operator]
        return found

    factors = (*before.factors, *args, *kwargs.values())
    inner = before.inner if before.factor is None else before.factor
    return Expression(before.source, function, (*before.operations, name), factors, inner=inner)


ELEMENTWISE |= dict.fromkeys(_UNARY.split(), _unary)


def _expression(builder: Builder, x: Symbol, what: str) -> Expression:
    """A symbol as a function of a Gaussian value."""
    if isinstance(x, Expression):
        return x
    return Expression(builder.gaussian(x, what), lambda z: z, (), factor=1.0)


def _arithmetic(builder: Builder, node: fx.Node, x: Any, y: Any, **kwargs: Any) -> Symbol:
    """Sums of branches, factors, and functions of one value put together."""
    name = operation(node).name
    if any(isinstance(z, Weight) for z in (x, y)):
        raise NoLimitError("a parameter is added or multiplied outside of a layer")
    if kwargs.get("alpha", 1) != 1:
        y = (
            y * kwargs["alpha"]
            if isinstance(y, (int, float))
            else scaled(builder, y, float(kwargs["alpha"]))
        )
    numbers = [isinstance(z, (int, float)) for z in (x, y)]
    if all(_source(z) is not None for z in (x, y)) and _source(x) == _source(y):
        return _together(builder, node, x, y)
    if not any(numbers):
        if name == "mul":
            return builder.product(x, y)
        if name not in {"add", "sub"}:
            raise NoLimitError("a quotient of two branches has no limit that is known")
        return builder.sum(x, y if name == "add" else scaled(builder, y, -1.0))
    symbol, number = (y, x) if numbers[0] else (x, y)
    if isinstance(symbol, Scores):
        if name not in {"mul", "div"} or (name == "div" and numbers[0]):
            raise NoLimitError("products of keys can be multiplied by numbers, not added to them")
        return symbol.scaled(float(number) if name == "mul" else 1 / float(number))
    if number == 0 and (name == "add" or (name == "sub" and numbers[1])):
        same: Symbol = symbol  # as Python's sum begins
        return same
    if name == "mul" or (name == "div" and numbers[1]):
        factor = float(number) if name == "mul" else 1 / float(number)
        return scaled(builder, symbol, factor)
    return _together(builder, node, x, y)


def _source(x: Any) -> Value | None:
    if isinstance(x, Expression):
        return x.source
    return x if isinstance(x, Value) and x.gaussian else None


def _together(builder: Builder, node: fx.Node, x: Any, y: Any) -> Expression:
    """A function of one value, made of two or of one and a number."""
    name, target = operation(node).name, node.target
    parts = [z if isinstance(z, (int, float)) else _expression(builder, z, name) for z in (x, y)]
    known = [part for part in parts if isinstance(part, Expression)]

    def function(z: Tensor) -> Tensor:
        one, other = (p.function(z).clone() if isinstance(p, Expression) else p for p in parts)
        found: Tensor = target(one, other)  # type: ignore[operator]
        return found

    numbers = tuple(z for z in (x, y) if isinstance(z, (int, float)))
    operations = (*(o for part in known for o in part.operations), name)
    factors = [part.factor for part in known if part.factor is not None]
    factor = None
    if name in {"add", "sub"} and len(factors) == 2:  # x + 2x is linear
        factor = factors[0] + factors[1] if name == "add" else factors[0] - factors[1]
    return Expression(known[0].source, function, operations, numbers, factor)


def scaled(builder: Builder, x: Symbol, factor: float) -> Symbol:
    """A value times a number.

    Args:
        builder: of the program.
        x: any.
        factor: the number.
    """
    if isinstance(x, Expression) or (isinstance(x, Value) and x.gaussian):
        before = _expression(builder, x, "mul")

        def function(z: Tensor) -> Tensor:
            return before.function(z) * factor

        operations = (*before.operations, "mul")
        if factor == 0:
            return Expression(before.source, function, operations)
        if before.factor is not None:
            return Expression(before.source, function, (), factor=before.factor * factor)
        return Expression(before.source, function, operations, outer=(before, factor))
    if factor == 0:
        raise NoLimitError("everything is multiplied by zero")
    return builder.step("scale", Scale(factor), builder.value(x))


def _neg(builder: Builder, node: fx.Node, x: Symbol) -> Symbol:
    return scaled(builder, x, -1.0)


ELEMENTWISE |= dict.fromkeys(("add", "sub", "mul", "div"), _arithmetic)
ELEMENTWISE["neg"] = _neg


def _identity(builder: Builder, node: fx.Node, x: Symbol, *_: Any, **__: Any) -> Symbol:
    return x


ELEMENTWISE |= dict.fromkeys(IDENTITIES, _identity)


def _dropout(builder: Builder, node: fx.Node, x: Symbol, p: float, train: bool) -> Symbol:
    if not train or p == 0:
        return x
    return builder.step("dropout", Dropout(1 - p), builder.value(x), gaussian=False)


ELEMENTWISE["dropout"] = _dropout
