"""How much the tangent kernel changes, against the width: the kernel regime by its definition.

The kernel is Θ = Σ_p s_p J_p J_pᵀ on the probe batch, s_p the factors of the parameters' learning
rates under a parametrization, so that it moves the outputs whatever the parametrization is.
"""

from fractions import Fraction

import numpy as np

from Metrics.kernels.measures import Floats, relative_norm
from Metrics.width.infinite import LimitCheckpoint
from Metrics.width.members import Member
from Metrics.width.metric import PerLayer, Quantity, Values
from Metrics.width.network import Checkpoint
from Metrics.width.theory import ChainTheory

SIZE, CHANGE = "kernel", "kernel change"


class KernelChange(PerLayer):
    """At step 0 tr Θ / N, of the network and its layers; afterwards |Θ_t − Θ_0| / |Θ_0|."""

    def measure(self, checkpoint: Checkpoint) -> Values:
        start, values = _parts(checkpoint, checkpoint.initial_kernels), {}
        if checkpoint.step == 0:
            return {Quantity(SIZE, layer): float(k.trace()) / len(k) for layer, k in start.items()}
        for layer, now in _parts(checkpoint, checkpoint.kernels).items():
            change = now - start[layer]
            values[Quantity(CHANGE, layer)] = relative_norm(change, start[layer])
        return values

    def why_no_limit(self, member: Member) -> str:
        return ""

    def measure_limit(self, limit: LimitCheckpoint) -> Values:
        """Of the whole kernel, which does not move."""
        if limit.step:
            return {Quantity(CHANGE): 0.0}
        return {Quantity(SIZE): float(limit.kernel.trace()) / len(limit.kernel)}

    def predicted(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        """Of the whole kernel, for smooth nonlinearities under SGD: max(−2r, −r − ½), or 0."""
        whole = quantity.name == CHANGE and not quantity.layer
        if not whole or not theory.steady or not theory.smooth or theory.family != "sgd":
            return None
        return None if theory.theory is None else theory.theory.relative_kernel


def _parts(checkpoint: Checkpoint, kernels: dict[str, Floats]) -> dict[str, Floats]:
    """Θ_l by layer and, if every layer has one learning rate, their weighted sum as ""."""
    factors = {layer: checkpoint.lr_factors(layer) for layer in kernels}
    if any(len(found) > 1 for found in factors.values()):
        return kernels
    total: Floats = np.sum([factors[layer].pop() * k for layer, k in kernels.items()], axis=0)
    return {"": total, **kernels}
