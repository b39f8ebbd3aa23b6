"""Matrix laws: the charges of free frames, and their angular momentum under momentum."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from Metrics.charges import ChargeMetric
from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Context


class Balance(ChargeMetric):
    """The charges of balance laws and, under momentum, the angular momentum of the frames."""

    def __init__(self, context: Context):
        super().__init__("balance", context)
        self._quadratic = context.laws.quadratic
        h = context.hyperparameters
        self._has_angular_law = h["optimizer"] == "momentum" and not h["nesterov"]

    def rows(self, features: StepFeatures) -> Arrays:
        """The charges, and per layer ``asymmetry``, a number, under momentum."""
        charges = super().rows(features)
        if not self._has_angular_law or not self._families:
            return charges
        asymmetry = self._asymmetry(features)
        return {
            **charges,
            **{
                f"asymmetry/{family.layer}": np.array(relative)
                for (_, family), relative in zip(self._families, asymmetry, strict=True)
            },
        }

    def _asymmetry(self, features: StepFeatures) -> list[float]:
        """The largest entry of J = Σ (W Vᵀ − V Wᵀ)/2 by layer, relative to that of Σ |W| |V|ᵀ.

        The sums are over the sides W of the frame and their momentum buffers V. NaN before
        there are any.
        """
        weight = lru_cache(1)(lambda name: features.parameter(name).double())
        velocity = lru_cache(1)(lambda name: self._velocity(features, name))
        turning = self._quadratic.turning(weight, velocity)
        size = self._quadratic.form(
            lambda name: weight(name).abs(), lambda name: velocity(name).abs(), absolute=True
        )
        return [_ratio(turning[f.units], size[f.units]) for _, f in self._families]

    def _velocity(self, features: StepFeatures, name: str) -> Tensor:
        """The momentum buffer of a parameter, 0 before its first update."""
        buffer = features.buffer(name, "momentum_buffer")
        shape = features.parameters[name]
        return torch.zeros(shape, dtype=torch.float64) if buffer is None else buffer.double()


def _ratio(values: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    size = float(sizes.max())
    return float(np.abs(values).max()) / size if size > 0 else float("nan")
