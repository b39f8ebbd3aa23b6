"""How well updates are aligned with what they act on."""

from fractions import Fraction
from math import log

from torch import Tensor

from Metrics.width.metric import PerLayer, Quantity, Values, rms
from Metrics.width.network import Checkpoint
from Metrics.width.norms import operator_norm
from Metrics.width.theory import ChainTheory

RATIO, LOG = "alignment", "log alignment"


class Alignment(PerLayer):
    """Of each layer's ΔW with its inputs x, over the probe batch, with root mean squares:

    alignment      ‖ΔW x‖ / (‖ΔW‖ ‖x‖), between 0 and 1; ‖ΔW‖ the operator norm
    log alignment  log(‖ΔW x‖ / (‖ΔW‖_RMS ‖x‖)) / log n_in, with ‖·‖_RMS the entries' root mean
                   square per output (Everett et al. 2024, arXiv 2407.05872, section 3): ½ for
                   independent ΔW and x, 1 for aligned ones

    Convolutions, whose inputs overlap, have no alignment.
    """

    def measure(self, checkpoint: Checkpoint) -> Values:
        values: dict[Quantity, float] = {}
        if checkpoint.step == 0:
            return values
        for layer in checkpoint.layers:
            moved, inputs = checkpoint.moved(layer), checkpoint.now.inputs[layer]
            if moved.dim() == 2:
                for name, value in alignments(moved, inputs, checkpoint.own(layer)).items():
                    values[Quantity(name, layer)] = value
        return values

    def predicted(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        """An update of finite rank stays aligned with what made it."""
        steady = theory.steady and quantity.layer in (theory.places or {})
        return Fraction(0) if steady and quantity.name == RATIO else None


def alignments(moved: Tensor, inputs: Tensor, product: Tensor) -> dict[str, float]:
    """Both measures; nothing where the weights have not moved, or all inputs are zero.

    Args:
        moved: ΔW [outputs, inputs].
        inputs: x [..., inputs].
        product: ΔW x [..., outputs].
    """
    outputs, fan_in = moved.shape
    norm = operator_norm(moved.double())
    given = rms(inputs)
    if not norm or not given or fan_in < 2:  # of neurons that are all dead
        return {}
    size = rms(product) * outputs**0.5 / (given * fan_in**0.5)
    entries = rms(product) / (rms(moved) * given)
    aligned = {RATIO: size / norm}
    return aligned | ({LOG: log(entries) / log(fan_in)} if entries else {})
