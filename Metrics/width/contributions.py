"""What initial weights and training contribute to each layer, and the ranks of both.

After Hajjar, Chizat and Giraud 2021 (arXiv 2110.15596) and the notebooks of their code.
"""

from fractions import Fraction

import torch
from torch import Tensor

from Metrics.width.metric import PerLayer, Quantity, Values, mean_size
from Metrics.width.network import Checkpoint, apply
from Metrics.width.theory import ChainTheory, largest, smallest

INITIAL, UPDATE, SHARE = "initial part", "update part", "update share"


class Contributions(PerLayer):
    """Mean absolute values of W_0 x_t and ΔW x_t, and the latter's share of their sum."""

    def measure(self, checkpoint: Checkpoint) -> Values:
        values: dict[Quantity, float] = {}
        for layer, module in checkpoint.layers.items():
            inputs = checkpoint.now.inputs[layer]
            initial = mean_size(apply(module, checkpoint.initial(layer), inputs))
            values[Quantity(INITIAL, layer)] = initial
            if checkpoint.step:
                update = mean_size(checkpoint.own(layer))
                values[Quantity(UPDATE, layer)] = update
                values[Quantity(SHARE, layer)] = update / ((initial + update) or float("nan"))
        return values

    def predicted(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        """W_0 x_t = W_0 x_0 + W_0 Δx; a share is predicted where no part wins in the end."""
        name, layer = quantity
        start = theory.initial("preactivation", layer)
        if step == 0 or start is None:
            return start
        initial = largest(start, theory.after("propagated", layer, step))
        update = theory.after("own", layer, step)
        if initial is None or update is None:
            return None
        if name == SHARE:
            return min(update - initial, Fraction(0))
        return initial if name == INITIAL else update

    def least(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        """W_0 x_t is a sum, and the share follows it."""
        name, layer = quantity
        if name == UPDATE:
            return None
        if step == 0:
            return theory.least_initial(layer)
        least = smallest(theory.least_initial(layer), theory.least_propagated(layer, step))
        update = theory.after("own", layer, step)
        if name == INITIAL or least is None or update is None:
            return least
        return smallest(update - least, self.predicted(quantity, step, theory))


class Ranks(PerLayer):
    """Of W_0 at step 0, of ΔW afterwards, and of what layers give on the probe batch:

    rank                the singular values above the largest times the longer side times ε
    stable rank         Σσ² / max σ²
    squared-trace rank  (Σσ²)² / Σσ⁴
    argmax diversity    how many neurons are some example's largest
    """

    def measure(self, checkpoint: Checkpoint) -> Values:
        values: dict[Quantity, float] = {}
        for layer in checkpoint.layers:
            at_start = checkpoint.step == 0
            weight = checkpoint.initial(layer) if at_start else checkpoint.moved(layer)
            output = checkpoint.now.outputs[layer]
            matrices = {"weight" if at_start else "update": weight.flatten(1)}
            if output.dim() == 2:
                matrices["output"] = output
                diversity = len(set(output.argmax(1).tolist()))
                values[Quantity("argmax diversity", layer)] = float(diversity)
            for name, matrix in matrices.items():
                for kind, value in ranks(matrix).items():
                    values[Quantity(f"{name} {kind}", layer)] = value
        return values

    def predicted(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        return None


def ranks(matrix: Tensor) -> dict[str, float]:
    """The three ranks of a matrix; nothing for zero."""
    epsilon = torch.finfo(matrix.dtype).eps
    square = torch.linalg.svdvals(matrix.double()).square()
    largest_one = float(square.max())
    if not largest_one:
        return {}
    threshold = largest_one * (max(matrix.shape) * epsilon) ** 2
    return {
        "rank": float((square > threshold).sum()),
        "stable rank": float(square.sum()) / largest_one,
        "squared-trace rank": float(square.sum() ** 2 / square.square().sum()),
    }
