"""Rotational equilibrium: where weight decay and the random walk of the updates balance.

A group of weights θ whose norm the network does not see gets gradients g ⟂ θ. If these are
noise, a filter of the past ones, as momentum is, moves the weights like a random walk:
each gradient is passed on with weights w_0, w_1, … in this step and the following ones, in sum
T = Σw, and the updates u have the mean square S|g|² with S = Σw². Per step::

    |θ|² grows by η²T²|g|²   and shrinks by 2ηλT|θ|² (2ηλ|θ|² if the decay is decoupled)

and θ turns by φ = η√S|g| / |θ|. Where both cancel, |g| drops out of φ (Kosson, Messmer and
Jaggi, ICML 2024; for momentum Wan et al., NeurIPS 2021).
"""

import math
from dataclasses import dataclass

import numpy as np

from Models.parametrization.scales import Scales
from Training.config import TrainConfig
from Training.registry import SGDS

_NO_DECAY = "no equilibrium without weight decay"

_UNKNOWN = {
    "adam": "no prediction for adam, whose second moment divides the decay too",
    "rms": "no prediction for rms, whose second moment divides the decay too",
    "lamb": "no prediction for lamb, which turns each parameter by lr whatever its norm",
    "muon": "no prediction for muon, whose updates are orthogonalized over all groups together",
}

_NEGLIGIBLE = 1e-15


@dataclass(frozen=True)
class Equilibrium:
    """What an optimizer makes of noise.

    Attributes:
        turn: φ² / (2ηλ).
        gain: T, by which learning rate and coupled decay are multiplied in the long run.
        walk: by how much η steps of a weight diffuse, as variance per step / η², where the
            update does not depend on the gradient's size; ``None`` where it does.
    """

    turn: float
    gain: float = 1.0
    walk: float | None = None

    def angle(self, lr: float, wd: float) -> float:
        """φ, the angle in radians by which a step turns the weights."""
        return math.sqrt(2 * lr * wd * self.turn)


def equilibrium(config: TrainConfig, scales: Scales | None = None) -> Equilibrium | str:
    """The equilibrium under a run's optimizer, or why there is none to predict.

    Args:
        config: of the run.
        scales: of its parametrization. Under SGD θ/√s then has the learning rate of ``config``, and
            the decay sλ_p, which must be the same for all parameters: see :func:`decay`.
    """
    if not config.wd:
        return _NO_DECAY
    if scales is not None and config.optimizer not in SGDS:
        return "the parametrization gives parameters different learning rates"
    if scales is not None and (scales.first_steps or math.isnan(decay(config, scales))):
        return "the parametrization gives parameters different weight decay or first steps"
    if config.optimizer in _UNKNOWN:
        return _UNKNOWN[config.optimizer]
    return _BY_OPTIMIZER[config.optimizer](config)


def decay(config: TrainConfig, scales: Scales | None) -> float:
    """λ of the weights that :func:`equilibrium` is about; NaN if it is not the same for all."""
    wd = config.wd or 0.0
    if scales is None:
        return wd
    factors = [scale.lr * scale.wd for scale in scales.parameters]
    return wd * factors[0] if np.allclose(factors, factors[0], rtol=1e-12, atol=0) else math.nan


def _sgd(config: TrainConfig) -> Equilibrium:
    """φ² = 2ηλ S/T: 2ηλ for plain SGD, 2ηλ(1−α)/(1+β) with momentum β and dampening α."""
    beta, gain = config.momentum or 0.0, 1 - (config.dampening or 0.0)
    squares = gain**2 / (1 - beta**2)
    if config.nesterov:  # the newest gradient counts 1 + β, the one k steps ago β^(k+1)
        squares = (1 + beta) ** 2 + beta**4 / (1 - beta**2)
    total = gain / (1 - beta)
    return Equilibrium(squares / total, total)


def _adamw(config: TrainConfig) -> Equilibrium:
    """φ² = 2ηλ S/T² with T = 1 and S = (1−β₁)/(1+β₁); normalised gradients have squares of 1."""
    assert config.beta1 is not None
    return Equilibrium((1 - config.beta1) / (1 + config.beta1), walk=1.0)


def _lion(config: TrainConfig) -> Equilibrium:
    """φ² = 2ηλ/D: every weight moves by η, and its signs are correlated in time.

    The signed momentum is Gaussian with correlations ρ_k = ρ_1 β₂^(k−1), so that the signs have
    (2/π) arcsin ρ_k (Van Vleck and Middleton 1966) and D = 1 + (4/π) Σ arcsin ρ_k. The usual
    D = (2/π)/V is its first order, for small ρ_k.
    """
    assert config.beta1 is not None
    assert config.beta2 is not None
    old, beta = config.beta1, config.beta2
    passed = old**2 * (1 - beta) / (1 + beta)
    variance = (1 - old) ** 2 + passed  # V
    first = ((1 - old) * old * (1 - beta) + beta * passed) / variance
    lags = 1 if beta == 0 else 1 + math.ceil(math.log(_NEGLIGIBLE) / math.log(beta))
    signs = 2 / math.pi * np.arcsin(first * beta ** np.arange(lags))
    walk = 1 + 2 * float(signs.sum())
    return Equilibrium(1 / walk, walk=walk)


_BY_OPTIMIZER = {"sgd": _sgd, "momentum": _sgd, "adamw": _adamw, "lion": _lion}
