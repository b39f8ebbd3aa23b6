"""From an elementwise function to its dual activation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from Models.infinite.duals.closed import Gelu, Sign
from Models.infinite.duals.dual import Dual
from Models.infinite.duals.mehler import Mehler
from Models.infinite.duals.piecewise import PiecewiseLinear
from Models.infinite.duals.polynomial import Polynomial
from Models.infinite.duals.rectified import RectifiedPower
from Models.infinite.duals.registry import DUALS

Function = Callable[[Tensor], Tensor]

_NAMED = {entry.operation: entry for entry in DUALS if entry.operation}

_POINTS = (1e-3, 0.1, 0.7, 1.0, 2.5, 10.0)
_HIGHEST = 6
"""Degree up to which polynomials are looked for."""


def dual_of(
    function: Function, operations: tuple[str, ...], factors: tuple[Any, ...], inner: float = 1.0
) -> Dual:
    """The dual activation in closed form, if one is known, else by Mehler's series.

    Args:
        function: f, elementwise, differentiable by torch.
        operations: of which it is made.
        factors: what else the operations were given.
        inner: what the argument is multiplied by before the first operation.
    """
    if len(operations) == 1 and operations[0] in _NAMED:
        dual: Dual = _NAMED[operations[0]].load()(b=inner)
        return dual
    if operations == ("gelu",) and "tanh" not in factors and inner == 1:
        return Gelu()
    return _homogeneous(function) or _polynomial(function) or Mehler(function)


def _homogeneous(function: Function) -> Dual | None:
    """b x^n for x > 0 and a |x|^n for x < 0, which a few points tell."""
    points = torch.tensor(_POINTS, dtype=torch.float64)
    right, left = function(points.clone()), function(-points)
    b, a = float(right[3]), float(left[3])
    for n in range(4):
        power = points**n
        if torch.allclose(right, b * power, 1e-12, 0) and torch.allclose(left, a * power, 1e-12, 0):
            if a == b == 0:
                return None
            if n == 0 and a == -b == -1:
                return Sign()
            if n == 1:
                return PiecewiseLinear(-a, b, _slope_at_zero(function))
            if a != b or n == 3:
                return RectifiedPower(n, b, a)
    return None


def _slope_at_zero(function: Function) -> float:
    with torch.set_grad_enabled(True):
        zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(function(zero), zero)
    return float(slope)


def _polynomial(function: Function) -> Dual | None:
    x = torch.linspace(-2, 2, 4 * _HIGHEST + 1, dtype=torch.float64)
    powers = torch.stack([x**k for k in range(_HIGHEST + 1)], 1)
    y = function(x.clone())
    found = torch.linalg.lstsq(powers, y[:, None]).solution[:, 0]
    if not torch.allclose(powers @ found, y, 1e-11, 1e-11 * float(y.abs().max())):
        return None
    tiny = 1e-11 * float(found.abs().max())
    return Polynomial([0.0 if abs(c) < tiny else round(c, 12) for c in found.tolist()])
