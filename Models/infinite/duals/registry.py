"""Dual activations in closed form, and the one for all other nonlinearities."""

from dataclasses import dataclass

from Utils.registry import Entry, Registry


@dataclass(frozen=True)
class DualEntry(Entry):
    """A dual activation; the builder makes it.

    Attributes:
        operation: the operation of torch that is this function at a = 1, c = 0, if one is.
    """

    operation: str = ""


_CHO_SAUL = "Cho and Saul (2009), Kernel methods for deep learning"
_WILLIAMS = "Williams (1997), Computing with infinite networks"
_TSUCHIDA = "Tsuchida et al. (2021), arXiv 2002.08517"
_RAHIMI = "Rahimi and Recht (2007), Random features for large-scale kernel machines"
_MEHLER = "Mehler (1866); Daniely, Frostig and Singer (2016), arXiv 1602.05897"
_HERE = "Models.infinite.duals"

DUALS: Registry[DualEntry] = Registry(
    "dual activation",
    [
        DualEntry(
            "piecewise-linear",
            f"{_HERE}.piecewise:PiecewiseLinear",
            "a min(x, 0) + b max(x, 0): relu, leaky-relu, abs, identity",
            _CHO_SAUL,
        ),
        DualEntry(
            "rectified-power",
            f"{_HERE}.rectified:RectifiedPower",
            "b max(x, 0)^n + a max(-x, 0)^n, n from 0 to 3: relu2, steps",
            _CHO_SAUL,
        ),
        DualEntry("erf", f"{_HERE}.closed:Erf", "a erf(b x) + c", _WILLIAMS, operation="erf"),
        DualEntry("gelu", f"{_HERE}.closed:Gelu", "x Φ(x)", _TSUCHIDA),
        DualEntry("sin", f"{_HERE}.closed:Sin", "a sin(b x + c)", _RAHIMI, operation="sin"),
        DualEntry("cos", f"{_HERE}.closed:Cos", "a cos(b x + c)", _RAHIMI, operation="cos"),
        DualEntry("rbf", f"{_HERE}.closed:Rbf", "√2 sin(√(2γ) x + π/4): Gaussian kernel", _RAHIMI),
        DualEntry("exp", f"{_HERE}.closed:Exp", "a exp(b x)", operation="exp"),
        DualEntry("gaussian", f"{_HERE}.closed:Gaussian", "a exp(b x²)", _WILLIAMS),
        DualEntry("sign", f"{_HERE}.closed:Sign", "sign(x)", _WILLIAMS),
        DualEntry("polynomial", f"{_HERE}.polynomial:Polynomial", "Σ f_m x^m", _MEHLER),
        DualEntry("monomial", f"{_HERE}.polynomial:monomial", "x^n", _MEHLER),
        DualEntry("hermite", f"{_HERE}.polynomial:hermite", "He_n(x)/√n!", _MEHLER),
        DualEntry(
            "mehler",
            f"{_HERE}.mehler:Mehler",
            "any other function, by a series with a bound on its error: tanh, silu, …",
            _MEHLER,
        ),
    ],
)
"""Dual activations by name."""
