"""Phase portraits: the squared norm of every unit, and its velocity, in the last step.

With θ the weights after the step and Δ the step, which are in the features, the norm before it
and its change are known exactly, whatever the optimizer::

    x = |θ − Δ|²,   x' − x = 2⟨θ, Δ⟩ − |Δ|²

The velocity is this change over the step's gradient-flow time. Parameters of one unit that are
updated with different learning rates contribute each with its own time.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Curves, Verdict
from Metrics.units import sums_by_unit, unit_layers

_PRECONDITIONED = "the optimizer rescales weight decay with the gradient"


class Phase(Curves):
    """Position before the last step, velocity in it, and what decay alone would make it.

    All are NaN before the first step.
    """

    def rows(self, features: StepFeatures) -> Arrays:
        portraits = {
            layer.name: np.sum([_portrait(features, name) for name in layer.parameters], axis=0)
            for layer in unit_layers(features.parameters)
        }
        return {
            f"{curve}/{layer}": portrait[row]
            for row, curve in enumerate(("position", "empirical", "theoretical"))
            for layer, portrait in portraits.items()
        }

    def verdicts(self, features: StepFeatures) -> Mapping[str, Verdict]:
        """Open where weights without gradient decay at a rate that is known."""
        verdicts = {}
        for layer in unit_layers(features.parameters):
            rates = [features.last_step_number(name, "update_decay") for name in layer.parameters]
            known = features.step == 0 or not np.isnan(rates).any()
            units = features.parameters[layer.parameters[0]][:1] or (1,)
            reason = "" if known else _PRECONDITIONED
            verdicts[layer.name] = Verdict(np.full(units, known), reason)
        return verdicts


def _portrait(features: StepFeatures, name: str) -> NDArray[np.float64]:
    """[3, units] a parameter's share in x, its velocity, and −2λx."""
    after, moved = features.parameter(name).double(), features.last_step(name, "update_buffer")
    before = after - moved
    position = sums_by_unit(before.square())
    change = sums_by_unit(moved.double() * (after + before))
    time, wd = (features.last_step_number(name, f"update_{what}") for what in ("time", "decay"))
    velocity = change / time if time else np.full_like(change, np.nan)
    return np.stack([position, velocity, -2 * wd * position])
