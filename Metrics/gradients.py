"""The last step's gradient: squared norms of units, and single entries beside their weights."""

from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor

from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Curves
from Metrics.network import chosen_entries
from Metrics.units import sums_by_unit, unit_layers


class Gradient(Curves):
    """|g|² of every unit; NaN before the first step."""

    def rows(self, features: StepFeatures) -> Arrays:
        return {
            f"empirical/{layer.name}": np.sum(
                [sums_by_unit(self._squares(features, name)) for name in layer.parameters], axis=0
            )
            for layer in unit_layers(features.parameters)
        }

    def _squares(self, features: StepFeatures, name: str) -> Tensor:
        """From the gradient itself, if it was kept, because float64 squares are more exact."""
        if "grad" in self.context.buffers:
            return features.last_step(name, "grad_buffer").double().square()
        return features.last_step(name, "grad_norm_buffer")


class WeightsGrads(Curves):
    """Entries of weights and biases, and those of the gradient at the same places.

    Gradients are NaN before the first step.
    """

    @property
    def settings(self) -> Mapping[str, int | str]:
        return {"subset": self.context.config.subset}

    def rows(self, features: StepFeatures) -> Arrays:
        names = list(self.parameters(features))
        weights = {f"empirical/{name}": features.parameter(name) for name in names}
        gradients = {f"gradient/{name}": features.last_step(name, "grad_buffer") for name in names}
        return {
            path: chosen_entries(tensor, path.partition("/")[2], self.context)
            for path, tensor in (weights | gradients).items()
        }

    def parameters(self, features: StepFeatures) -> Iterable[str]:
        """Those of layers that connect units: convolutions, linear layers and their biases."""
        layers = unit_layers(features.parameters)
        return (name for layer in layers if layer.connects for name in layer.parameters)


class WeightsGradsFull(WeightsGrads):
    """The same of all parameters, those of normalisations among them."""

    def parameters(self, features: StepFeatures) -> Iterable[str]:
        return features.parameters
