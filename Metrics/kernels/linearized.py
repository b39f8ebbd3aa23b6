"""The network beside the linear model that it is at the reference step, trained the same way.

Shape letters: N examples, C outputs.
"""

from collections.abc import Mapping

import numpy as np

from Metrics.features import StepFeatures
from Metrics.kernels.linear import DESCENT, FLOW, WEIGHTS
from Metrics.kernels.measures import Floats
from Metrics.kernels.metric import Predicted
from Metrics.metric import Arrays, Verdict, vector

LOSS, ACCURACY, OUTPUTS = "loss", "accuracy", "outputs"
"""The "layers": what is measured of the network, and predicted by linear models."""

MEASURED = "measured"


class Linearized(Predicted):
    """Logits, loss and accuracy of the network and of linear models, and how far they part."""

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        return {"logits": ("example", "class")}

    def rows(self, features: StepFeatures) -> Arrays:
        """``empirical`` beside each way's; of ``outputs``, RMS of the change and RMSE of ways."""
        at, state = self.context.kernel_at, self.state(features)
        rows: dict[str, Floats] = {
            f"empirical/{LOSS}": vector(at.loss(state.logits)),
            f"empirical/{ACCURACY}": vector(at.accuracy(state.logits)),
            f"empirical/{OUTPUTS}": vector(_rms(state.logits - self.reference.logits)),
            f"logits/{MEASURED}": state.logits,
        }
        for way in (WEIGHTS, DESCENT, FLOW):
            logits = self.linear.outputs(way, features.step)
            if logits is None:
                logits = np.full_like(state.logits, np.nan)
            rows[f"{way}/{LOSS}"] = np.array(at.loss(logits))
            known = np.isfinite(logits).all()
            rows[f"{way}/{ACCURACY}"] = np.array(at.accuracy(logits) if known else np.nan)
            rows[f"{way}/{OUTPUTS}"] = np.array(_rms(state.logits - logits))
            rows[f"logits/{way}"] = logits
        return rows

    def verdicts(self, features: StepFeatures) -> Mapping[str, Verdict]:
        """Whether function space knows the run's training, and in what it differs from it."""
        reason = self.linear.why_not(DESCENT)
        said = reason or self.linear.remark
        return {layer: Verdict(np.array([not reason]), said) for layer in (LOSS, ACCURACY, OUTPUTS)}


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.square(values).mean()))
