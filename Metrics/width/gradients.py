"""How strongly the outputs depend on every layer's output: ∂f/∂h, and on the loss: ∂L/∂f."""

from fractions import Fraction

import torch

from Metrics.width.metric import PerLayer, Quantity, Values, rms
from Metrics.width.network import Checkpoint
from Metrics.width.theory import ChainTheory

_MOST_OUTPUTS = 16
"""Of a network with more outputs, evenly spaced ones are differentiated."""

OUTPUT = "output gradient"
LOSS = "loss gradient"


class Gradients(PerLayer):
    """Root mean squares of ∂f_k/∂h over outputs k, examples and coordinates of h.

    The loss's gradient is that of every example's own loss, ∂L/∂f, root mean square over
    examples and outputs.
    """

    def measure(self, checkpoint: Checkpoint) -> Values:
        passed = checkpoint.graph()
        hidden = [layer for layer in checkpoint.layers if layer != checkpoint.last]
        outputs = [passed.outputs[layer] for layer in hidden]
        count = passed.logits.shape[1]
        chosen = range(0, count, -(-count // _MOST_OUTPUTS))
        squares = dict.fromkeys(hidden, 0.0)
        for k in chosen if hidden else ():
            f = passed.logits[:, k].sum()
            for layer, gradient in zip(
                hidden, torch.autograd.grad(f, outputs, retain_graph=True), strict=True
            ):
                squares[layer] += rms(gradient) ** 2 / len(chosen)
        values = {Quantity(OUTPUT, layer): square**0.5 for layer, square in squares.items()}
        values[Quantity(LOSS, checkpoint.last)] = rms(checkpoint.loss_gradient())
        return values

    def predicted(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        if quantity.name == LOSS:
            return None
        if step == 0 or (theory.steady and theory.gradients_last):
            return theory.initial("gradient", quantity.layer)
        return None
