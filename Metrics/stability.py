"""The edge of stability: the largest curvature at which an optimizer's steps stay bounded.

On a quadratic loss with the eigenvalue h (a full batch, no clipping, frozen buffers of squares)
every eigendirection of a step is a 2x2 linear map with trace T and determinant D, and powers of
it stay bounded while |T| ≤ 1 + D and D ≤ 1. It is T = −1 − D that curvature violates first.
With η the learning rate, λ the weight decay, κ = h + λ:

============  ===================================  =======================================
SGD           θ' = (1 − ηκ) θ                      h ≤ 2/η − λ
heavy ball    v' = βv + (1−α)κθ, θ' = θ − ηv'      h ≤ 2(1+β)/(η(1−α)) − λ
Nesterov      v' = βv + κθ, θ' = θ − η(κθ + βv')   h ≤ 2(1+β)/(η(1+2β)) − λ
Adam          heavy ball, α = β₁, κ = p⁻¹(h+λ)     p⁻¹(h+λ) ≤ 2(1+β₁)/(η(1−β₁))
AdamW         the same, θ also multiplied by 1−ηλ  p⁻¹h ≤ (2/η − λ)(1+β₁)/(1−β₁)
RMSprop       heavy ball, α = 0, κ = p⁻¹(h+λ)      p⁻¹(h+λ) ≤ 2(1+β)/η
============  ===================================  =======================================

2/η, 2(1+β)/η and Nesterov's threshold are those of Cohen et al. 2021 (equation 1 and appendix
B), Adam's is 38/η at β₁ = 0.9 (Cohen et al. 2022). The preconditioner p acts on each parameter;
p⁻¹H has the eigenvalues of the symmetric p^{-1/2} H p^{-1/2}. Where parameters take steps of sη, as
in a parametrization, s/p stands for p⁻¹, and every optimizer has a preconditioner.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from Training.function_space.stable_rate import stable_edge

Buffers = Callable[[str], Tensor | None]
"""Gives an optimizer's buffer of one parameter by its name; ``None`` if there is none yet."""

Group = Mapping[str, Any]
"""Hyper-parameters of some parameters, by torch's names."""


@dataclass(frozen=True)
class Preconditioning:
    """What one parameter makes of its gradient.

    Attributes:
        factor: s, by which its learning rate is multiplied.
        decay: λ where it is added to the gradient before the preconditioner.
        divisor: p from its buffers, ``None`` before the first step; ``None`` itself for 1.
    """

    factor: float
    decay: float
    divisor: Callable[[Buffers], Tensor | None] | None = None

    def inverse(self, buffers: Buffers) -> Tensor | None:
        """s/p, of the parameter's shape or a single number; ``None`` if it is not known."""
        if self.divisor is None:
            return torch.tensor(self.factor, dtype=torch.float64)
        p = self.divisor(buffers)
        return None if p is None else self.factor / p.double()


@dataclass(frozen=True)
class Stability:
    """What decides whether an optimizer's steps stay bounded.

    Attributes:
        threshold: the largest stable eigenvalue, of the Hessian or, where parameters are
            preconditioned, of (s/p)^{1/2} (H + decay) (s/p)^{1/2}; infinite for a learning rate
            of zero.
        preconditioned: how each parameter is; ``None`` where all are alike and p = 1.
    """

    threshold: float
    preconditioned: Mapping[Tensor, Preconditioning] | None = None


@dataclass(frozen=True)
class _Rule:
    """Of an optimizer.

    Attributes:
        edge: the largest stable ηκ.
        divisor: p of a parameter of a group.
    """

    edge: Callable[[Group], float]
    divisor: Callable[[Group, Buffers], Tensor | None] | None = None


def stability(optimizer: Optimizer, lr: float, first: bool = False) -> Stability | None:
    """The edge of stability of an optimizer; ``None`` if it is not known.

    Args:
        optimizer: its class and hyper-parameters matter, not its state. Learning rates of its
            groups count relative to its default one.
        lr: η of the step in question, for parameters that take it as it is.
        first: whether it is one of the first steps, which a group's ``first_lr`` multiplies.
    """
    rule = _RULES.get(type(optimizer))
    if rule is None:
        return None
    groups: list[dict[str, Any]] = optimizer.param_groups
    firsts = [group.get("first_lr", 1.0) if first else 1.0 for group in groups]
    factors = [g["lr"] / optimizer.defaults["lr"] * f for g, f in zip(groups, firsts, strict=True)]
    decays = [group["weight_decay"] for group in groups]
    edge, decoupled = rule.edge(groups[0]), bool(groups[0].get("decoupled_weight_decay"))
    threshold = edge / lr if lr else math.inf
    if decoupled:  # the edge of the parameters with the largest decay, which is the lowest
        threshold -= edge / 2 * max(s * decay for s, decay in zip(factors, decays, strict=True))
    elif rule.divisor is None and {*factors} == {1.0} and len({*decays}) == 1:
        return Stability(threshold - decays[0])
    preconditioned = {
        parameter: Preconditioning(
            factor,
            0.0 if decoupled else decay,
            None if rule.divisor is None else partial(rule.divisor, group),
        )
        for group, factor, decay in zip(groups, factors, decays, strict=True)
        for parameter in group["params"]
    }
    return Stability(threshold, preconditioned)


def _edge_of_sgd(group: Group) -> float:
    return stable_edge(group["momentum"], group["dampening"], group["nesterov"])


def _edge_of_adam(group: Group) -> float:
    beta1: float = group["betas"][0]
    return 2 * (1 + beta1) / (1 - beta1)


def _divisor_of_adam(group: Group, buffer: Buffers) -> Tensor | None:
    squares, steps = buffer("exp_avg_sq"), buffer("step")
    if squares is None or steps is None:
        return None
    (beta1, beta2), t = group["betas"], float(steps)
    root = (squares / (1 - beta2**t)).sqrt()
    p: Tensor = (1 - beta1**t) * (root + group["eps"])
    return p


def _edge_of_rmsprop(group: Group) -> float:
    return 2 * (1 + float(group["momentum"]))


def _divisor_of_rmsprop(group: Group, buffer: Buffers) -> Tensor | None:
    squares = buffer("square_avg")
    if squares is None:
        return None
    if group["centered"] and (mean := buffer("grad_avg")) is not None:
        squares = squares - mean.square()
    p: Tensor = squares.sqrt() + group["eps"]
    return p


_RULES: dict[type[Optimizer], _Rule] = {
    SGD: _Rule(_edge_of_sgd),
    Adam: _Rule(_edge_of_adam, _divisor_of_adam),
    AdamW: _Rule(_edge_of_adam, _divisor_of_adam),
    RMSprop: _Rule(_edge_of_rmsprop, _divisor_of_rmsprop),
}
