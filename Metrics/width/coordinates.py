"""How large coordinates are, and which part of their change a layer's own weights make.

    h_t − h_0 = ΔW x_t + W_0 (x_t − x_0) + Δb,    ΔW = W_t − W_0

holds exactly: *own*, *propagated* and *bias* parts of the change of a layer's output h = W x + b.
The own part of all steps together uses what the layer reads now, x_t. The propagated part is what
the other parts leave of the change, which rounding makes no worse: Δx is a difference of rounded
numbers as the change is.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np
from scipy.special import erf
from torch import Tensor

from Metrics.width.infinite import LimitCheckpoint, no_ensemble
from Metrics.width.members import Member
from Metrics.width.metric import PerLayer, Quantity, Values, mean_size, rms
from Metrics.width.network import Checkpoint
from Metrics.width.theory import ChainTheory, largest, smallest

_MEAN = "mean "
"""Before the name of a quantity: of its mean absolute value instead of its root mean square."""

_LEAST = 1e-200
"""Of variances that are divided by."""

_SIZES: Mapping[str, Callable[[Tensor], float]] = {"": rms, _MEAN: mean_size}


class Coordinates(PerLayer):
    """Sizes of what layers read and give, of their change since step 0 and of its parts."""

    def measure(self, checkpoint: Checkpoint) -> Values:
        values: dict[Quantity, float] = {}
        for layer in checkpoint.layers:
            for name, tensor in _parts(checkpoint, layer).items():
                for prefix, size in _SIZES.items():
                    values[Quantity(prefix + name, layer)] = size(tensor)
        return values

    def why_no_limit(self, member: Member) -> str:
        return no_ensemble(member)

    def measure_limit(self, limit: LimitCheckpoint) -> Values | None:
        """Of the outputs, N(μ, σ²) over the ensemble's networks: √E f² and E |f|."""
        if limit.ensemble is None:
            return None
        mean, variance = limit.ensemble
        some = np.maximum(variance, _LEAST)
        folded = np.sqrt(2 * some / np.pi) * np.exp(-(mean**2) / (2 * some))
        folded += mean * erf(mean / np.sqrt(2 * some))
        folded = np.where(variance > 0, folded, np.abs(mean))
        sizes = {"": float(np.sqrt((mean**2 + variance).mean())), _MEAN: float(folded.mean())}
        return {Quantity(f"{p}preactivation", limit.readout): s for p, s in sizes.items()}

    def predicted(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        """A size goes as its largest part; rms and mean absolute value go alike."""
        name, layer = quantity.name.removeprefix(_MEAN), quantity.layer
        if name in {"preactivation", "activation"}:
            below = int(name == "activation")
            initial = theory.initial("preactivation", layer, below)
            if step == 0 or initial is None:
                return initial
            change = theory.after("change", layer, step, below)
            return None if change is None else largest(initial, change)
        return theory.after(name, layer, step)

    def least(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        """Changes are sums over the layers below, and later sizes those of beginning and change."""
        name, layer = quantity.name.removeprefix(_MEAN), quantity.layer
        if name == "propagated":
            return theory.least_propagated(layer, step)
        if name == "change":
            return theory.least_change(layer, step)
        at = layer if name == "preactivation" else theory.below(layer)
        if at is None or name not in {"preactivation", "activation"}:
            return None
        start = theory.least_initial(at)
        return smallest(start, theory.least_change(at, step)) if step else start


def _parts(checkpoint: Checkpoint, layer: str) -> dict[str, Tensor]:
    """Those that are not zero by construction."""
    now, start = checkpoint.now, checkpoint.start
    parts = {"preactivation": now.outputs[layer]}
    is_first = layer == next(iter(checkpoint.layers))
    if not is_first:  # which reads data
        parts["activation"] = now.inputs[layer]
    if checkpoint.step == 0:
        return parts
    change = now.outputs[layer] - start.outputs[layer]
    parts |= {"change": change, "own": checkpoint.own(layer)}
    if (bias := checkpoint.bias(layer)) is not None:
        parts["bias"] = bias
    if not is_first:
        parts["propagated"] = change - parts["own"] - parts.get("bias", 0)
    return parts
