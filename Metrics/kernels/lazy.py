"""How far training has left the linear regime: weights, kernel, activations, features, outputs.

Shape letters: N examples, C outputs.
"""

import numpy as np

from Metrics.features import StepFeatures
from Metrics.kernels.activity import Activity
from Metrics.kernels.at import WHOLE, State
from Metrics.kernels.empirical import EmpiricalKernelAt
from Metrics.kernels.linear_network import LinearNetwork
from Metrics.kernels.measures import cka_distance, relative_norm
from Metrics.kernels.metric import Compared
from Metrics.metric import Arrays, Context, vector


class Lazy(Compared):
    """Relative changes since the reference, each zero in the linear regime."""

    def __init__(self, context: Context):
        super().__init__(context)
        assert isinstance(context.kernel_at, EmpiricalKernelAt)
        assert isinstance(context.linear, LinearNetwork)
        self._at, self._linear = context.kernel_at, context.linear
        self._before: Activity | None = None

    def rows(self, features: StepFeatures) -> Arrays:
        """``empirical``: of the weights; ``kernel``, ``patterns``, ``features``, ``gap`` beside."""
        state, start = self.state(features), self.reference
        before, now = self._activity(start), self._at.activity(state)
        rows = {
            f"empirical/{WHOLE}": vector(_moved(state, start)),
            f"kernel/{WHOLE}": _relative(state.kernel.total, start.kernel.total),
            f"gap/{WHOLE}": np.array(self._gap(state, start)),
        }
        if before.patterns:
            flips = [(a != b).mean() for a, b in zip(before.patterns, now.patterns, strict=True)]
            sizes = [pattern.size for pattern in before.patterns]
            rows[f"patterns/{WHOLE}"] = np.array(np.average(flips, weights=sizes))
        for name, part in state.kernel.layers.items():
            rows[f"empirical/{name}"] = vector(_moved(state, start, name))
            rows[f"kernel/{name}"] = _relative(part, start.kernel.layers[name])
        for name, gram in now.features.items():
            rows[f"features/{name}"] = np.array(cka_distance(gram, before.features[name]))
        return rows

    def _activity(self, start: State) -> Activity:
        if self._before is None:
            self._before = self._at.activity(start)
        return self._before

    def _gap(self, state: State, start: State) -> float:
        """|f − f_lin| / |f − f_0| with the network's own weights in f_lin; NaN at the start."""
        linear = self._linear.with_weights(state)
        return relative_norm(state.logits - linear, state.logits - start.logits)


def _moved(state: State, start: State, layer: str = "") -> float:
    """|θ − θ_0| / |θ_0| of all parameters, or of a layer's."""
    names = [n for n in start.parameters if not layer or layer in (n, n.rpartition(".")[0])]
    old, new = (
        np.concatenate([s.parameters[n].double().cpu().numpy().ravel() for n in names])
        for s in (start, state)
    )
    return relative_norm(new - old, old)


def _relative(now: np.ndarray, before: np.ndarray) -> np.ndarray:
    start = np.asarray(before, np.float64)
    return np.array(relative_norm(now - start, start))
