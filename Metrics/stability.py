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
p⁻¹H has the eigenvalues of the symmetric p^{-1/2} H p^{-1/2}.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from Training.function_space.stable_rate import stable_edge

Buffers = Callable[[str], Tensor | None]
"""Gives an optimizer's buffer of one parameter by its name; ``None`` if there is none yet."""


@dataclass(frozen=True)
class Stability:
    """What decides whether an optimizer's steps stay bounded.

    Attributes:
        threshold: the largest stable eigenvalue, of the Hessian or, with a preconditioner, of
            p^{-1/2} (H + decay) p^{-1/2}; infinite for a learning rate of zero.
        preconditioner: p of a parameter, from its buffers; ``None`` before the first step.
            ``None`` itself for optimizers without one.
        decay: λ where it is added to the gradient before the preconditioner.
    """

    threshold: float
    preconditioner: Callable[[Buffers], Tensor | None] | None = None
    decay: float = 0.0


def stability(optimizer: Optimizer, lr: float) -> Stability | None:
    """The edge of stability of an optimizer; ``None`` if it is not known.

    Args:
        optimizer: its class and hyper-parameters matter, not its state.
        lr: η of the step in question.
    """
    rule = _RULES.get(type(optimizer))
    return rule(optimizer.param_groups[0], lr) if rule else None


def _sgd(group: dict[str, Any], lr: float) -> Stability:
    edge = stable_edge(group["momentum"], group["dampening"], group["nesterov"])
    return Stability(_over(edge, lr) - group["weight_decay"])


def _adam(group: dict[str, Any], lr: float) -> Stability:
    beta1, beta2 = group["betas"]
    decoupled = group["decoupled_weight_decay"]
    decay: float = group["weight_decay"]

    def preconditioner(buffer: Buffers) -> Tensor | None:
        squares, steps = buffer("exp_avg_sq"), buffer("step")
        if squares is None or steps is None:
            return None
        t = float(steps)
        root = (squares / (1 - beta2**t)).sqrt()
        p: Tensor = (1 - beta1**t) * (root + group["eps"])
        return p

    edge = _over(2.0, lr) - decay * decoupled
    threshold = edge * (1 + beta1) / (1 - beta1)
    return Stability(threshold, preconditioner, 0.0 if decoupled else decay)


def _rmsprop(group: dict[str, Any], lr: float) -> Stability:
    def preconditioner(buffer: Buffers) -> Tensor | None:
        squares = buffer("square_avg")
        if squares is None:
            return None
        if group["centered"] and (mean := buffer("grad_avg")) is not None:
            squares = squares - mean.square()
        p: Tensor = squares.sqrt() + group["eps"]
        return p

    threshold = _over(2 * (1 + group["momentum"]), lr)
    return Stability(threshold, preconditioner, group["weight_decay"])


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.inf


_RULES: dict[type[Optimizer], Callable[[dict[str, Any], float], Stability]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
    RMSprop: _rmsprop,
}
