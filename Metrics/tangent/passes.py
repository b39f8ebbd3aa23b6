"""One forward pass over some examples, and what its backward passes give each call."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.autograd.graph import Node

from Metrics.tangent.network import Network
from Metrics.tangent.pieces import Piece
from Metrics.tangent.recording import Recorder, Use
from Metrics.tangent.rules import Unknown, pieces_of

Arrive = Callable[[int, Tensor], None]
Backward = Callable[[int, bool], None]


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

    @contextmanager
    def derivatives(self, wanted: Iterable[int], arrive: Arrive) -> Iterator[Backward]:
        """Derivatives of one logit after another with respect to the outputs of calls.

        Each is handed over as soon as it is there, while it lies in the processor's cache, and is
        free to go before the next one comes.

        Args:
            wanted: indices of uses.
            arrive: is called with the index of a use and what arrives at it.

        Yields:
            The pass back for a logit; with whether the graph is no longer needed after it.
        """
        edges = {use: edge for use in wanted if (edge := self.uses[use].edge) is not None}
        ends = _ends({edge.node for edge in edges.values()})
        last = {use: edge for use, edge in edges.items() if edge.node in ends}

        def on_its_way(use: int, output: int, arrived: Sequence[Tensor | None]) -> None:
            if (values := arrived[output]) is not None:
                arrive(use, values)

        def backward(logit: int, done: bool) -> None:
            found = torch.autograd.grad(
                self.logits[:, logit].sum(),
                list(last.values()),
                retain_graph=not done,
                allow_unused=True,
            )
            for use, values in zip(last, found, strict=True):
                if values is not None:
                    arrive(use, values)

        with ExitStack() as hooks:
            for use, edge in edges.items():
                if use not in last:
                    hook = partial(on_its_way, use, edge.output_nr)
                    hooks.callback(edge.node.register_prehook(hook).remove)
            yield backward


def _ends(nodes: set[Node]) -> set[Node]:
    """Those that no backward pass to the others runs through: they lead to none of them."""
    leads: dict[Node, bool] = {}
    stack = [(node, False) for node in nodes]
    while stack:
        node, seen = stack.pop()
        following = [after for after, _ in node.next_functions if after is not None]
        if seen:
            leads[node] = any(after in nodes or leads[after] for after in following)
        elif node not in leads:
            leads[node] = False
            stack.append((node, True))
            stack += [(after, False) for after in following if after not in leads]
    return {node for node in nodes if not leads[node]}


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
