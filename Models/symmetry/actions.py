"""The groups behind the laws: how a symmetry moves the parameters, and with them the charges.

Every kind of law has its action, chosen by :data:`_ACTIONS`. All units of a family act at once,
each with a parameter τ_k of its own; the coefficients of law k are s_k (quadratic) or c_k.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from Models.symmetry.charges import Charges
from Models.symmetry.laws import Family, Kind, Laws

Floats = NDArray[np.float64]
Tensors = Mapping[str, Tensor]
"""Parameter-shaped tensors by the parameters' names."""

_LARGEST_EXPONENT = 0.5
"""Parameters of a scale or rescale law with exponent 1 are multiplied by 0.6 to 1.6."""


@dataclass(frozen=True)
class Moved:
    """Where a group element takes the parameters of a family.

    Attributes:
        parameters: the moved ones by name, in their own number format, on their own device.
        charges: [units] what the family's charges become, in closed form, in float64.
    """

    parameters: dict[str, Tensor]
    charges: Floats


def act(laws: Laws, family: Family, parameters: Tensors, draws: np.random.Generator) -> Moved:
    """Move the parameters by a random element of a family's group.

    Args:
        laws: of the model.
        family: one of its families.
        parameters: all parameters of the model, detached.
        draws: gives the element.
    """
    return _ACTIONS[family.kind](laws, family, parameters, draws)


def generators(laws: Laws, parameters: Tensors, gradients: Tensors) -> tuple[Floats, Floats]:
    """The derivative of a function along every law's symmetry, at the identity.

    Args:
        laws: of the model.
        parameters: of the model, detached.
        gradients: of the function.

    Returns:
        ⟨θ, g⟩_S or ⟨c, g⟩ [K]; and the same [K] with every term taken by its size.
    """

    def theta(name: str) -> Tensor:
        return parameters[name].double()

    def g(name: str) -> Tensor:
        return gradients[name].double()

    value = [laws.quadratic.form(theta, g), laws.linear.evaluate(g)]
    size = [
        laws.quadratic.form(lambda n: theta(n).abs(), lambda n: g(n).abs(), True),
        laws.linear.evaluate(lambda n: g(n).abs(), True),
    ]
    return np.concatenate(value), np.concatenate(size)


def _dilate(laws: Laws, family: Family, parameters: Tensors, draws: np.random.Generator) -> Moved:
    """θ_i → e^{x_i} θ_i with x = Σ_k τ_k s_k; q_j → Σ_i s_ji e^{2 x_i} θ_i²."""
    tau = draws.uniform(-_LARGEST_EXPONENT, _LARGEST_EXPONENT, len(family))
    exponents = _combined(laws.quadratic, family.start, tau, parameters)

    def moved(name: str) -> Tensor:
        theta = parameters[name].double()
        return theta * exponents[name].exp() if name in exponents else theta

    return Moved(
        {n: (parameters[n] * x.exp()).to(parameters[n].dtype) for n, x in exponents.items()},
        laws.quadratic.form(moved, moved)[family.units],
    )


def _mix(laws: Laws, family: Family, parameters: Tensors, draws: np.random.Generator) -> Moved:
    """X → A X where the Gram matrix X Xᵀ counts positively, X → A⁻ᵀ X where negatively.

    The Gram matrices G become A G Aᵀ and A⁻ᵀ G A⁻¹; A is a random matrix near the identity.
    """
    n = round(((8 * len(family) + 1) ** 0.5 - 1) / 2)
    mixing = np.eye(n) + draws.uniform(-_LARGEST_EXPONENT, _LARGEST_EXPONENT, (n, n)) / n
    triangle = np.triu_indices(n)
    row = laws.quadratic.matrix[family.start]
    moved: dict[str, Tensor] = {}
    charges, start = np.zeros(len(family)), 0
    for reduction in laws.quadratic.reductions:
        name = reduction.parameter
        stop = start + reduction.outputs(parameters[name].shape)
        for place, sign in zip(row.indices, row.data, strict=True):
            if start <= place < stop:
                frame, factor = (place - start) // len(family), mixing
                if sign < 0:
                    factor = np.linalg.inv(mixing).T
                theta = parameters[name].double()
                triangles = reduction.form(theta, theta).view(-1, len(family))
                gram = np.zeros((n, n))
                gram[triangle] = triangles[frame].cpu().numpy()
                gram += np.triu(gram, 1).T
                charges += sign * (factor @ gram @ factor.T)[triangle]
                matrix = torch.from_numpy(factor).to(theta.device)
                moved[name] = reduction.mixed(moved.get(name, theta), int(frame), matrix)
        start = stop
    return Moved({name: x.to(parameters[name].dtype) for name, x in moved.items()}, charges)


def _shift(laws: Laws, family: Family, parameters: Tensors, draws: np.random.Generator) -> Moved:
    """θ → θ + x with x = Σ_k τ_k c_k; s_j → s_j + Σ_k ⟨c_j, c_k⟩ τ_k.

    τ is of the size of the family's parameters (1 if they are all zero), so that shifts are
    neither lost in them nor drown them.
    """
    mine = slice(family.start - len(laws.quadratic), family.stop - len(laws.quadratic))
    entries = torch.cat([parameters[name].double().reshape(-1) for name in family.parameters])
    size = float(entries.square().mean().sqrt()) or 1.0
    tau = draws.uniform(-size, size, len(family))
    shifts = _combined(laws.linear, mine.start, tau, parameters)
    before = laws.linear.evaluate(lambda name: parameters[name].double())
    change = laws.linear.evaluate(
        lambda name: shifts.get(name, torch.zeros_like(parameters[name], dtype=torch.float64))
    )
    return Moved(
        {n: (parameters[n] + x).to(parameters[n].dtype) for n, x in shifts.items()},
        (before + change)[mine],
    )


def _combined(charges: Charges, start: int, tau: Floats, parameters: Tensors) -> dict[str, Tensor]:
    """Σ_k τ_k × the coefficients of the charges from ``start`` on, where the parameters are."""
    y = np.zeros(len(charges))
    y[start : start + len(tau)] = tau
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    combined = charges.transpose(y, shapes)
    return {name: x.to(parameters[name].device) for name, x in combined.items()}


_Action = Callable[[Laws, Family, Tensors, np.random.Generator], Moved]

_ACTIONS: dict[Kind, _Action] = {
    "scale": _dilate,
    "rescale": _dilate,
    "balance": _mix,
    "translation": _shift,
}
"""A kind of law that moves parameters in another way brings its own action."""
