"""The constant beside powers of the width: what a nonlinearity takes, weights give back."""

from functools import lru_cache
from math import sqrt

import torch

from Models.config import ModelConfig
from Models.registry import NONLINEARITIES

_USERS_GAIN = sqrt(2)
"""That of relu, for models whose nonlinearities are not known."""


def gain_of(config: ModelConfig) -> float:
    """Of input and hidden weights: √2 for relu; 1 in transformers, whose sums are normalised.

    Args:
        config: of the model.
    """
    if config.is_user_model:
        return _USERS_GAIN
    if "heads" in config.entry.options or config.nonlinearity is None:
        return 1.0
    return nonlinearity_gain(config.nonlinearity)


@lru_cache
def nonlinearity_gain(name: str) -> float:
    """1/√E[f(z)²] over standard normal z, which keeps the size of preactivations in depth.

    He et al. (2015, arXiv 1502.01852) for relu; computed here by the trapezoidal rule, to
    about 1e-9.

    Args:
        name: in :data:`NONLINEARITIES`.
    """
    z = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / (2 * torch.pi) ** 0.5
    square = NONLINEARITIES[name].load()()(z.clone()) ** 2
    return 1 / sqrt(float(torch.trapezoid(square * density, z)))
