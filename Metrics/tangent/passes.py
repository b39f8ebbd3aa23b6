"""One forward pass over some examples, and what its backward passes give each call."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from Metrics.tangent.network import Network
from Metrics.tangent.pieces import Piece
from Metrics.tangent.recording import Recorder, Use
from Metrics.tangent.rules import Unknown, pieces_of


@dataclass(frozen=True)
class Pass:
    """A recorded forward pass, whose graph is kept.

    Attributes:
        logits: [n, C].
        uses: of parameters, in the order of the calls.
        calls: of functions of data.
        numbers: that they returned.
    """

    logits: Tensor
    uses: list[Use]
    calls: int
    numbers: int

    @cached_property
    def pieces(self) -> list[list[Piece] | None]:
        """Of every use, what the derivatives of its sources are; ``None`` where unknown."""
        return [_known(use, len(self.logits)) for use in self.uses]

    def piece(self, use: int, number: int) -> Piece:
        """One of a use that is known."""
        pieces = self.pieces[use]
        assert pieces is not None
        return pieces[number]

    def derivatives(
        self, wanted: Sequence[GradientEdge], logit: int, last: bool
    ) -> tuple[Tensor | None, ...]:
        """Of the logit ``logit`` of every example, with respect to the calls' outputs.

        Args:
            wanted: edges of uses.
            logit: which.
            last: whether the graph is no longer needed.
        """
        summed = self.logits[:, logit].sum()
        return torch.autograd.grad(summed, wanted, retain_graph=not last, allow_unused=True)


def record(network: Network, inputs: Tensor) -> Pass:
    """A forward pass with its graph.

    Args:
        network: whose parameters are followed.
        inputs: [n, ...].
    """
    inputs = network.laid_out(inputs.detach())
    recorder = Recorder(network.parameters, inputs)
    with torch.set_grad_enabled(True), recorder:
        logits = network.logits(inputs)
    return Pass(logits, recorder.uses, recorder.calls, recorder.numbers)


def _known(use: Use, examples: int) -> list[Piece] | None:
    try:
        return pieces_of(use, examples)
    except Unknown:
        return None
