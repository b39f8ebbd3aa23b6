"""How charges move: the exact discrete laws of SGD, and the paper's continuous ones.

One step of ``torch.optim.SGD`` (g the gradient, clipped or not)::

    d = g + λθ,   v' = βv + a d,   u = v'  (or d + βv' with Nesterov, or d without momentum)
    θ' = θ − ηu

with a = 1 − α (dampening), but a = 1 in a buffer's first step. For a symmetry S every charge
``q = ⟨θ, θ⟩_S`` follows from measured squares of the update alone, because ``⟨θ, g⟩_S = ℓ``
vanishes. Where a symmetry is slightly broken (the ε of a normalisation) the measured leak ℓ is
the law's source; it enters every formula beside λq.

All functions are element-wise over laws [K] in float64, and coefficients are those of the
step, so that schedules, warm-up and momentum cycling need no code. A run that diverges does not
stop here: squares are written as products, as Python's ``**`` would raise where they overflow.
"""

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

Values = TypeVar("Values", Floats, Tensor)
"""The laws' on the host, or tensors of any shape, in float64."""


@dataclass(frozen=True)
class Coefficients:
    """The hyper-parameters of one step.

    Attributes:
        lr: η.
        wd: λ, coupled weight decay.
        momentum: β; 0 means no momentum buffer.
        dampening: α.
        nesterov: whether u = d + βv'.
        first: whether the momentum buffer was made in this step.
    """

    lr: float
    wd: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    first: bool = False

    def with_rate(self, rate: float) -> "Coefficients":
        """The same step of θ' = θ − η s g as one of φ = θ/√s, along ∂L/∂φ = √s g.

        Args:
            rate: s, which is a part of :attr:`lr`.
        """
        return self if rate == 1 else replace(self, lr=self.lr / rate, wd=self.wd * rate)

    def is_like(self, other: "Coefficients") -> bool:
        """Whether both make the same steps, but for rounding and weight decay."""
        rule, others = replace(self, lr=1.0, wd=0.0), replace(other, lr=1.0, wd=0.0)
        return rule == others and math.isclose(self.lr, other.lr, rel_tol=1e-12)

    @property
    def gain(self) -> float:
        """a: the weight with which d enters the momentum buffer."""
        return 1.0 if self.first else 1.0 - self.dampening

    @property
    def effective_lr(self) -> float:
        """The time of gradient flow that one step covers, η(1−α)/(1−β)."""
        return self.lr * (1 - self.dampening) / (1 - self.momentum)


def quadratic_step(
    q: Floats, m: Floats, c: Coefficients, uu: Floats, uv: Floats, leak: Floats
) -> tuple[Floats, Floats]:
    """The exact law of ``q = ⟨θ, θ⟩_S`` and ``m = ⟨θ, v⟩_S`` over one step.

    Args:
        q, m: before the step, [K].
        c: the step's coefficients.
        uu: without momentum ⟨g, g⟩_S; with momentum ⟨u, u⟩_S, [K].
        uv: ⟨u, v'⟩_S, which is ``uu`` without Nesterov, [K].
        leak: ℓ = ⟨θ, g⟩_S before the step, [K].

    Returns:
        q and m after the step.
    """
    eta, lam, beta = c.lr, c.wd, c.momentum
    if beta == 0:
        decay = 1 - eta * lam
        return decay * decay * q - 2 * eta * decay * leak + eta * eta * uu, m
    pull = lam * q + leak
    r = beta * m + c.gain * pull
    along = pull + beta * r if c.nesterov else r
    return q - 2 * eta * along + eta * eta * uu, r - eta * uv


def linear_step(
    s: Values, p: Values, c: Coefficients, leak: Values | float
) -> tuple[Values, Values]:
    """The exact law of ``s = ⟨c, θ⟩`` and ``p = ⟨c, v⟩`` over one step.

    Args:
        s, p: before the step, [K].
        c: the step's coefficients.
        leak: ⟨c, g⟩, [K].
    """
    pull = c.wd * s + leak
    if c.momentum == 0:
        return s - c.lr * pull, p
    p = c.momentum * p + c.gain * pull
    return s - c.lr * (pull + c.momentum * p if c.nesterov else p), p


def paper_quadratic_step(
    u: Values, rate: Values, c: Coefficients, uu: Values, pull: Values | float = 0.0
) -> tuple[Values, Values]:
    """The modified flow's prediction of q (Kunin et al. 2021, section 6), over one step.

    Without momentum ``e^{−2λt}q₀ + η∫e^{−2λ(t−τ)}|g|²dτ``; with momentum the forced oscillator
    ``q̈ + 2γq̇ + ω²q = 2|θ̇|²`` of their appendix; both as left Riemann sums, in a form that
    neither overflows nor assumes constant coefficients. Nesterov's correction is not part of
    their theory.

    Args:
        u, rate: the prediction and its time derivative, [K].
        c: the step's coefficients.
        uu: without momentum ⟨g, g⟩_S; with momentum ⟨v', v'⟩_S, [K].
        pull: ⟨θ, (Λ − λ)θ⟩_S where weight decay Λ differs from λ, a forcing of their equations.
    """
    if c.momentum == 0:
        return math.exp(-2 * c.wd * c.lr) * (u + c.lr * (c.lr * uu - 2 * pull)), rate
    kick = 2 * c.lr * uu / (1 - c.dampening) - 4 * pull / (1 + c.momentum)
    return _oscillate(u, rate + kick, c, 4 * c.wd)


def paper_linear_step(
    u: Floats, rate: Floats, c: Coefficients, pull: Floats | float = 0.0
) -> tuple[Floats, Floats]:
    """The modified flow's prediction of s (Kunin et al. 2021, section 6), over one step.

    Without momentum ``e^{−λt}s₀``; with momentum the free oscillator.

    Args:
        u, rate: the prediction and its time derivative, [K].
        c: the step's coefficients.
        pull: ⟨c, (Λ − λ)θ⟩ where weight decay Λ differs from λ.
    """
    if c.momentum == 0:
        return math.exp(-c.wd * c.lr) * (u - c.lr * pull), rate
    return _oscillate(u, rate - 2 * pull / (1 + c.momentum), c, 2 * c.wd)


def _oscillate(u: Values, rate: Values, c: Coefficients, pull: float) -> tuple[Values, Values]:
    """Solve ``ü + 2γu̇ + ω²u = 0`` over the time η(1−α), for any damping.

    γ = (1−β)/D and ω² = pull/D with D = η(1−α)(1+β).
    """
    h = c.lr * (1 - c.dampening)
    if h == 0:
        return u, rate
    d = h * (1 + c.momentum)
    gamma, omega2 = (1 - c.momentum) / d, pull / d
    cosine, sine = _damped_pair(gamma, omega2, h)
    moved = (cosine + gamma * sine) * u + sine * rate
    return moved, -omega2 * sine * u + (cosine - gamma * sine) * rate


def _damped_pair(gamma: float, omega2: float, h: float) -> tuple[float, float]:
    """e^{−γh}cosh√x and h e^{−γh} sinh√x/√x at x = h²(γ² − ω²), of either sign."""
    x = h * h * (gamma * gamma - omega2)
    if not math.isfinite(x):  # learning rates whose squares are no numbers
        return math.nan, math.nan
    if x > 1e-8:
        root = math.sqrt(x)
        grow, fall = math.exp(root - gamma * h), math.exp(-root - gamma * h)
        return (grow + fall) / 2, h * (grow - fall) / (2 * root)
    envelope = math.exp(-gamma * h)
    if x < -1e-8:
        root = math.sqrt(-x)
        return envelope * math.cos(root), h * envelope * math.sin(root) / root
    return envelope * (1 + x / 2), h * envelope * (1 + x / 6)
