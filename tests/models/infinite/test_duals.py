"""Dual activations against integrals in two dimensions, and the error bounds of the series."""

from collections.abc import Callable
from math import pi

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from Models.infinite.duals.dual import Dual
from Models.infinite.duals.mehler import Mehler
from Models.infinite.duals.piecewise import Angle
from Models.infinite.duals.quadrature import hermite_coefficients
from Models.infinite.duals.registry import DUALS
from Models.infinite.walk.recognition import dual_of
from tests.models.infinite.references import angle_kernels

Function = Callable[[Tensor], Tensor]

CLOSED: list[tuple[str, tuple[object, ...], Function]] = [
    ("piecewise-linear", (0.0, 1.0), torch.relu),
    ("piecewise-linear", (0.1, 1.0), lambda x: F.leaky_relu(x, 0.1)),
    ("piecewise-linear", (-1.0, 1.0), torch.abs),
    ("piecewise-linear", (1.0, 1.0), lambda x: x + 0),
    ("rectified-power", (2, 1.0, 0.0), lambda x: torch.relu(x) ** 2),
    ("rectified-power", (3, 1.0, -0.5), lambda x: torch.relu(x) ** 3 - torch.relu(-x) ** 3 / 2),
    ("erf", (0.5, 0.4, 0.3), lambda x: 0.5 * torch.erf(0.4 * x) + 0.3),
    ("gelu", (), F.gelu),
    ("sin", (1.2, 1.3, 0.4), lambda x: 1.2 * torch.sin(1.3 * x + 0.4)),
    ("cos", (1.2, 1.3, 0.4), lambda x: 1.2 * torch.cos(1.3 * x + 0.4)),
    ("rbf", (0.7,), lambda x: 2**0.5 * torch.sin(1.4**0.5 * x + pi / 4)),
    ("exp", (0.5, 0.5), lambda x: 0.5 * torch.exp(0.5 * x)),
    ("gaussian", (1.1, -0.7), lambda x: 1.1 * torch.exp(-0.7 * x * x)),
    ("polynomial", ((0.3, -1.0, 0.5, 0.2),), lambda x: 0.3 - x + 0.5 * x**2 + 0.2 * x**3),
    ("monomial", (3,), lambda x: x**3),
    ("hermite", (4,), lambda x: (x**4 - 6 * x**2 + 3) / 24**0.5),
]

OTHERS: dict[str, Function] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "mish": F.mish,
    "elu": F.elu,
}


def pairs(correlations: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """q₁₂, q₁₁, q₂₂."""
    c = torch.tensor(correlations, dtype=torch.float64)
    q11 = torch.linspace(0.4, 2.0, len(c), dtype=torch.float64)
    q22 = q11.flip(0)
    return c * (q11 * q22).sqrt(), q11, q22


def derivative(f: Function, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(f(x).sum(), x)
    return found


def on_a_grid(f: Function, q12: Tensor, q11: Tensor, q22: Tensor) -> Tensor:
    """E f(x) f(y) by Gauss-Legendre on each quadrant of (x, y): kinks at zero are on its edges."""
    nodes, weights = np.polynomial.legendre.leggauss(90)
    found = []
    for q, a, b in zip(q12.tolist(), q11.tolist(), q22.tolist(), strict=True):
        total, size = 0.0, 9.0
        for side, other in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            x = torch.from_numpy((nodes + 1) / 2 * size * side * a**0.5)
            y = torch.from_numpy((nodes + 1) / 2 * size * other * b**0.5)
            determinant = a * b - q * q
            square = b * x[:, None] ** 2 - 2 * q * x[:, None] * y + a * y**2
            density = torch.exp(-square / (2 * determinant)) / (2 * pi * determinant**0.5)
            w = torch.from_numpy(weights) * size / 2
            values = f(x)[:, None] * f(y) * density
            total += float(w @ values @ w) * (a * b) ** 0.5
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return float((found - expected).abs().max()) <= tolerance * max(1, float(expected.abs().max()))


@pytest.mark.parametrize(("name", "arguments", "function"), CLOSED)
def test_closed_forms_are_the_integrals(
    name: str, arguments: tuple[object, ...], function: Function
) -> None:
    dual: Dual = DUALS[name].load()(*arguments)
    q12, q11, q22 = pairs([-0.8, -0.3, 0.0, 0.4, 0.9])
    kernel, slope = dual(q12, q11, q22)
    assert close(kernel, on_a_grid(function, q12, q11, q22), 1e-9)
    expected = on_a_grid(lambda x: derivative(function, x), q12, q11, q22)
    assert close(slope, expected, 1e-9)
    one = Mehler(function).variance(q11)
    assert close(dual.variance(q11), one, 1e-12)
    assert close(dual(q11, q11, q11)[0], one, 1e-12)


def test_every_closed_form_is_tested() -> None:
    assert {name for name, _, _ in CLOSED} | {"sign", "mehler"} == set(DUALS.names)


def test_sign() -> None:
    kernel, slope = DUALS["sign"].load()()(*pairs([-1.0, -0.5, 0.0, 0.5, 1.0]))
    expected = torch.tensor([-1, -1 / 3, 0, 1 / 3, 1], dtype=torch.float64)
    assert close(kernel, expected, 1e-7)  # arcsin at one: the root of rounding
    assert not slope.any()


@pytest.mark.parametrize("name", OTHERS)
def test_series_are_the_integrals_also_where_cosines_are_one(name: str) -> None:
    function = OTHERS[name]
    dual = Mehler(function)
    q12, q11, q22 = pairs([-0.9, -0.3, 0.0, 0.5, 0.9])
    kernel, slope = dual(q12, q11, q22)
    assert close(kernel, on_a_grid(function, q12, q11, q22), 1e-8)
    assert close(slope, on_a_grid(lambda x: derivative(function, x), q12, q11, q22), 1e-8)
    kernel, slope = dual(q11, q11, q11)
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / (2 * pi) ** 0.5
    for f, found in ((function, kernel), (lambda x: derivative(function, x), slope)):
        values = f(q11[:, None].sqrt() * z) ** 2 * density
        assert close(found, torch.trapezoid(values, z), 1e-8)


def test_near_one_series_are_continued() -> None:
    """Between the last pair that the series does alone and the diagonal nothing jumps."""
    dual = Mehler(F.elu)  # its second derivative jumps, so that the series is slow
    deficit = torch.tensor([1e-2, 1e-3, 1e-4, 1e-6, 1e-9, 0.0], dtype=torch.float64)
    one = torch.full_like(deficit, 2.0)
    kernel, slope = dual(one * (1 - deficit), one, one)
    assert (kernel.diff() >= 0).all()
    # K(1) − K(c) = ∫ K' s dc, with K' nearly constant.
    risen = kernel[-1] - kernel[:-1]
    assert torch.allclose(risen, (slope[:-1] + slope[-1]) / 2 * 2 * deficit[:-1], rtol=1e-3)


@pytest.mark.parametrize("terms", [8, 32])
@pytest.mark.parametrize("name", ["tanh", "silu"])
def test_the_bound_holds_and_is_attained_at_one(name: str, terms: int) -> None:
    dual = Mehler(OTHERS[name])
    for q in (1.0, 4.0):
        variance = torch.tensor([q], dtype=torch.float64)
        coefficients = hermite_coefficients(dual.function, variance, terms)
        error = 1 - float(coefficients.square().sum(0) / dual.variance(variance))
        assert error == pytest.approx(dual.error_bound(q, terms)[0], rel=1e-6, abs=1e-15)


def mean(f: Function) -> Tensor:
    """E f(z); no node is at zero, and they are symmetric, so that jumps there do no harm."""
    z = torch.linspace(-12, 12, 200_000, dtype=torch.float64)
    return torch.trapezoid(f(z) * torch.exp(-(z**2) / 2) / (2 * pi) ** 0.5, z)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh", "gelu"])
def test_where_a_variance_is_zero_the_derivative_is_torchs(name: str) -> None:
    function: Function = getattr(F, name)
    dual = dual_of(function, (name,), ())
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    at_zero = derivative(function, zero)
    assert close(dual(zero, zero, zero)[1], at_zero**2, 1e-12)
    expected = at_zero * mean(lambda z: derivative(function, z))
    assert close(dual(zero, zero, one)[1], expected, 1e-8)
    assert close(dual(zero, one, zero)[1], expected, 1e-8)


STEPS: list[tuple[str, tuple[object, ...], Function]] = [
    ("sign", (), torch.sign),
    ("rectified-power", (0, 1.0, 0.5), lambda x: (x > 0).to(x.dtype) + (x < 0) / 2),
]


@pytest.mark.parametrize(("name", "arguments", "function"), [*CLOSED, *STEPS])
def test_where_a_variance_is_zero_the_function_is_constant(
    name: str, arguments: tuple[object, ...], function: Function
) -> None:
    dual: Dual = DUALS[name].load()(*arguments)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    at_zero = function(zero)
    assert close(dual.variance(zero), at_zero**2, 1e-12)
    assert close(dual(zero, zero, zero)[0], at_zero**2, 1e-12)
    assert close(dual(zero, zero, one)[0], at_zero * mean(function), 1e-8)


def test_slopes_that_hardly_differ_keep_antipodes_apart() -> None:
    """1 + cosine after them, of 1e-6, is found to all digits, not from 1 − cosine."""
    a, p = 0.999, 1e-7
    dual = DUALS["piecewise-linear"].load()(a, 1.0)
    angle = Angle(torch.tensor([2 - p]), lambda: torch.tensor([p]))
    found = dual.turn(angle)[0].p
    kernel, _ = angle_kernels(mp.mpf(1), mp.mpf(float(torch.tensor(p))) - 1, a, 1.0)
    expected = 1 + kernel / ((1 + mp.mpf(a) ** 2) / 2)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (torch.relu, "PiecewiseLinear"),
        (lambda x: x + torch.relu(x) * 0.5, "PiecewiseLinear"),
        (lambda x: torch.relu(x).square(), "RectifiedPower"),
        (lambda x: 1 + x**2 / 3, "Polynomial"),
        (lambda x: x * torch.sigmoid(x), "Mehler"),
    ],
)
def test_functions_are_recognised_by_their_values(function: Function, kind: str) -> None:
    dual = dual_of(function, ("a", "b"), ())
    assert type(dual).__name__ == kind
    q12, q11, q22 = pairs([-0.7, 0.0, 0.6])
    assert close(dual(q12, q11, q22)[0], on_a_grid(function, q12, q11, q22), 1e-9)
