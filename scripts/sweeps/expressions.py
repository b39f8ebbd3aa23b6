"""Numbers written as arithmetic over other flags, ``0.1 * width**-1``, and ranges, ``2**(6..9)``.

Nothing is ever executed: an expression is parsed, and the few kinds of nodes that arithmetic
consists of are worked out one by one.
"""

import ast
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping

from Utils.errors import UserError

Number = int | float

_LONGEST = 300
_MOST_VALUES = 10_000
_RANGE = re.compile(r"^\s*(-?\d+)\.\.(-?\d+)\s*$|\(\s*(-?\d+)\.\.(-?\d+)\s*\)")


def _power(base: Number, exponent: Number) -> Number:
    result: object = float(base) ** float(exponent)  # of integers it could take all memory
    if not isinstance(result, float):
        raise ValueError(f"{base}**{exponent} is not real")
    return result


_BINARY: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Number], Number]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
FUNCTIONS: Mapping[str, Callable[..., Number]] = {
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "floor": math.floor,
    "ceil": math.ceil,
    "round": round,
    "min": min,
    "max": max,
}


def ranges(text: str) -> list[str]:
    """The expressions that one with ranges stands for; ``a..b`` includes both ends.

    ``0..2`` gives 0, 1, 2 and ``2**(6..8)`` gives 2**(6), 2**(7), 2**(8); with several ranges,
    every combination, the last one varying fastest.

    Raises:
        UserError: a range that goes down, or that is too long to be meant.
    """
    parts, values, position = [], [], 0
    for match in _RANGE.finditer(text):
        first, last = (int(bound) for bound in match.groups() if bound is not None)
        if first > last:
            raise UserError(f"range {first}..{last} goes down; write {last}..{first}")
        parts.append(text[position : match.start()])
        values.append(range(first, last + 1))
        position = match.end()
    if not values:
        return [text]
    if math.prod(map(len, values)) > _MOST_VALUES:
        raise UserError(f"'{text}' has more than {_MOST_VALUES} values; choose a smaller range")
    tail = text[position:]
    return [
        "".join(f"{part}({v})" for part, v in zip(parts, chosen, strict=True)) + tail
        for chosen in itertools.product(*values)
    ]


def parse(text: str) -> ast.expr:
    """The expression that ``text`` is.

    Raises:
        UserError: it is no arithmetic.
    """
    if len(text) > _LONGEST:
        raise UserError(f"'{text[:20]}…' is longer than {_LONGEST} characters")
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f"'{text}' is neither a number nor arithmetic over other flags") from None
    for node in ast.walk(body):
        _check(node, text)
    return body


def _check(node: ast.AST, text: str) -> None:
    allowed: bool
    if isinstance(node, ast.Constant):
        allowed = type(node.value) in {int, float}
    elif isinstance(node, ast.Call):
        allowed = isinstance(node.func, ast.Name) and not node.keywords
        if isinstance(node.func, ast.Name) and node.func.id not in FUNCTIONS:
            known = ", ".join(FUNCTIONS)
            raise UserError(f"'{text}': no function '{node.func.id}'; there are {known}")
    else:
        plain = (ast.BinOp, ast.UnaryOp, ast.Name, ast.Load, *_BINARY, *_UNARY)
        allowed = isinstance(node, plain)
    if not allowed:
        raise UserError(f"'{text}' is neither a number nor arithmetic over other flags")


def names(expression: ast.expr) -> Iterator[str]:
    """The flags that an expression reads."""
    called = {id(node.func) for node in ast.walk(expression) if isinstance(node, ast.Call)}
    for node in ast.walk(expression):
        if isinstance(node, ast.Name) and id(node) not in called:
            yield node.id


def evaluate(expression: ast.expr, values: Mapping[str, Number]) -> Number:
    """The value of an expression that :func:`parse` gave.

    Args:
        expression: what to work out.
        values: of the flags that it reads.

    Raises:
        UserError: it has no finite value.
    """
    try:
        result = _value(expression, values)
        if math.isfinite(result):
            return result
        reason = "it is not finite"
    except (ArithmeticError, ValueError, TypeError, RecursionError) as error:
        reason = str(error)
    raise UserError(f"'{ast.unparse(expression)}' has no value: {reason}")


def _value(node: ast.expr, values: Mapping[str, Number]) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left, values), _value(right, values))
        case ast.UnaryOp(op=sign, operand=operand):
            return _UNARY[type(sign)](_value(operand, values))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return FUNCTIONS[name](*(_value(argument, values) for argument in arguments))
    raise TypeError(f"no arithmetic: {ast.unparse(node)}")
