"""What every parameter's part of the kernel is; found and checked on two examples."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from Metrics.tangent.network import Network
from Metrics.tangent.passes import Pass, record
from Metrics.tangent.pieces import Product, pull_back
from Metrics.tangent.terms import Costs, Occurrence, Sizes, Term, cheapest_term, costs

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
_HALF = 0.1
"""The tolerance of formats with less digits."""


@dataclass(frozen=True)
class Plan:
    """What two examples tell about all.

    Attributes:
        terms: that the kernel is the sum of.
        sizes: of the kernel.
        calls: of a forward pass.
        numbers: that they return for each example.
        formed: those of them from whose derivatives rows of J are formed at once.
        flops: multiply-adds of a forward pass for each example.
        stored: numbers that each term keeps of each example.
        rows: terms for which they are rows of J.
        work: multiply-adds of each term, of the whole kernel.
    """

    terms: list[Term]
    sizes: Sizes
    calls: int
    numbers: int
    formed: int
    flops: float
    stored: Mapping[Term, int]
    rows: frozenset[Term]
    work: Mapping[Term, float]

    @property
    def logits(self) -> int:
        """C."""
        return self.sizes.logits


def make_plan(
    network: Network, inputs: Tensor, columns: int | None, traced: bool, count: bool = False
) -> Plan:
    """The cheapest form for every parameter.

    Args:
        network: whose examples are independent.
        inputs: [N, ...].
        columns: M; ``None`` for the same examples.
        traced: whether only the trace over logits is wanted.
        count: whether to count the operations of a forward pass.
    """
    counter = FlopCounterMode(display=False)
    with counter if count else nullcontext():
        probe = record(network, inputs[:2])
    n = len(probe.logits)
    logits = probe.logits.shape[1]
    sizes = Sizes(len(inputs), columns or len(inputs), columns is None, traced, logits)
    found = _occurrences(network, probe)
    trusted = set() if network.couples_examples else _trusted(network, probe, found)
    terms: list[Term] = []
    found_costs: dict[Term, Costs] = {}
    done: set[str] = set()
    for name, parameter in network.parameters.items():
        if name in done:
            continue
        uses = found[name] if name in trusted else None
        term = Term(network.layer_of[name], (name,), "jacobian")
        if uses is not None:
            term = cheapest_term(network, probe, name, {n: found[n] for n in trusted}, sizes)
        done.update(term.names)
        found_costs[term] = costs(probe, term, parameter.numel(), sizes)
        terms.append(term)
    rows = frozenset(term for term, cost in found_costs.items() if cost.rows)
    return Plan(
        terms=terms,
        sizes=sizes,
        calls=probe.calls,
        numbers=probe.numbers // n,
        formed=_formed(probe, rows),
        flops=counter.get_total_flops() / 2 / n if count else 0.0,
        stored={term: cost.stored for term, cost in found_costs.items()},
        rows=rows,
        work={term: cost.work for term, cost in found_costs.items()},
    )


def _formed(probe: Pass, rows: Iterable[Term]) -> int:
    """Numbers of an example at the products from whose derivatives rows of J are formed."""
    uses = {
        place.use
        for term in rows
        for place in term.occurrences
        if isinstance(probe.piece(place.use, place.piece), Product)
    }
    return sum(probe.uses[use].shape.numel() for use in uses) // len(probe.logits)


def _occurrences(network: Network, probe: Pass) -> dict[str, list[Occurrence] | None]:
    """Of every parameter; ``None`` if one of its uses is not understood."""
    found: dict[str, list[Occurrence] | None] = {name: [] for name in network.parameters}
    for index, (use, pieces) in enumerate(zip(probe.uses, probe.pieces, strict=True)):
        if pieces is None:
            for roots in use.roots:
                found |= dict.fromkeys(roots, None)
            continue
        for number, piece in enumerate(pieces):
            place = next(i for i, s in enumerate(use.sources) if s is piece.source)
            for name in use.roots[place]:
                known = found[name]
                if known is not None:
                    form = _form(piece.source, network.parameters[name])
                    known.append(Occurrence(index, number, form))
    return found


def _form(source: Tensor, parameter: Tensor) -> Literal["itself", "rearranged", "derived"]:
    if source is parameter:
        return "itself"
    whole = source.numel() == parameter.numel()
    return "rearranged" if source._base is parameter and whole else "derived"


def _trusted(
    network: Network, probe: Pass, found: Mapping[str, list[Occurrence] | None]
) -> set[str]:
    """The parameters whose pieces add up to their gradient, for a random mixture of the logits.

    The gradient is that of the first example alone, so that a layout that mixes examples is
    found out, too.
    """
    logits = probe.logits
    generator = torch.Generator().manual_seed(0)
    mixture = torch.randn(logits.shape[1], generator=generator, dtype=torch.float64).to(logits)
    edges = [use.edge for use in probe.uses if use.edge is not None]
    wanted: Any = [*edges, *network.parameters.values()]
    gradients = iter(
        torch.autograd.grad(
            logits[0] @ mixture,
            wanted,
            retain_graph=True,
            allow_unused=True,
        )
    )
    arriving = [None if use.edge is None else next(gradients) for use in probe.uses]
    tolerance = _TOLERANCE.get(logits.dtype, _HALF)
    trusted = set()
    for (name, parameter), gradient in zip(network.parameters.items(), gradients, strict=True):
        uses = found[name]
        if uses is None or any(_leaks(arriving[o.use], len(logits)) for o in uses):
            continue
        row = torch.zeros_like(parameter)
        for use in uses:
            arrived = arriving[use.use]
            if arrived is not None:
                row += _row(probe, use, arrived, parameter)
        exact = torch.zeros_like(row) if gradient is None else gradient.to_dense()
        if (row - exact).norm() <= tolerance * exact.norm():
            trusted.add(name)
    return trusted


def _leaks(arrived: Tensor | None, examples: int) -> bool:
    """Whether derivatives of the first example reach places of others."""
    if arrived is None or examples == 1:
        return False
    return bool(arrived[len(arrived) // examples :].count_nonzero())


def _row(probe: Pass, occurrence: Occurrence, arrived: Tensor, parameter: Tensor) -> Tensor:
    """The gradient of the first example with respect to a parameter through one of its uses."""
    piece = probe.piece(occurrence.use, occurrence.piece)
    n = len(probe.logits)
    if isinstance(piece, Product):
        folded = piece.fold(arrived.reshape(n, -1, *arrived.shape[1:])[:1])
        row = piece.arranged(piece.rows(piece.unfold(piece.inputs[:1]), folded[:, None]))[:, 0]
    else:
        row = piece.reduce(arrived)[:1].view(1, *piece.source.shape)
    return pull_back(piece.source, parameter, row)[0]
