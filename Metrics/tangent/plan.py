"""Which parameters are contracted in which form; found and checked on two examples."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from Metrics.tangent.network import Network
from Metrics.tangent.passes import Pass, record
from Metrics.tangent.pieces import Product, Reduction, pull_back

Kind = Literal["gradients", "Kronecker", "jacobian"]

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
_HALF = 0.1
_ELEMENTWISE = 16
"""Multiply-adds that a processor makes while it passes over a number in its cache."""


@dataclass(frozen=True)
class Occurrence:
    """A use of a parameter.

    Attributes:
        use: index of the call in its pass.
        piece: index of the piece in the call.
        form: whether the call reads the parameter itself, a rearrangement of it, which has the
            same inner products, or something else that is made of it.
    """

    use: int
    piece: int
    form: Literal["itself", "rearranged", "derived"]


@dataclass(frozen=True)
class Term:
    """Parameters of a layer that are contracted together.

    Attributes:
        layer: that owns them.
        names: of the parameters; a weight, and in the Kronecker form perhaps its bias.
        kind: "gradients" forms J and multiplies it by itself, "Kronecker" multiplies features
            and derivatives, "jacobian" differentiates the network anew.
        occurrences: of the first of them; empty for "jacobian".
        product: whether every occurrence is a product, all of the same sizes.
    """

    layer: str
    names: tuple[str, ...]
    kind: Kind
    occurrences: tuple[Occurrence, ...] = ()
    product: bool = False

    @property
    def bias(self) -> bool:
        """Whether a bias is contracted with its weight."""
        return len(self.names) > 1


@dataclass(frozen=True)
class Plan:
    """What two examples tell about all.

    Attributes:
        terms: that the kernel is the sum of.
        sizes: of the kernel.
        calls: of a forward pass.
        numbers: that they return for each example.
        flops: multiply-adds of a forward pass for each example.
        stored: numbers that each term keeps of each example.
        work: multiply-adds of each term, of the whole kernel.
    """

    terms: list[Term]
    sizes: "Sizes"
    calls: int
    numbers: int
    flops: float
    stored: Mapping[Term, int]
    work: Mapping[Term, float]

    @property
    def logits(self) -> int:
        """C."""
        return self.sizes.logits


@dataclass(frozen=True)
class Sizes:
    """Of the kernel: N and M examples, C logits; whether M are the same, and only the trace."""

    rows: int
    columns: int
    symmetric: bool
    traced: bool
    logits: int

    @property
    def pairs(self) -> float:
        """Of examples that are contracted."""
        return self.rows * self.columns / (2 if self.symmetric else 1)

    @property
    def examples(self) -> int:
        """That are differentiated."""
        return self.rows + (0 if self.symmetric else self.columns)


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
    stored: dict[Term, int] = {}
    work: dict[Term, float] = {}
    done: set[str] = set()
    for name, parameter in network.parameters.items():
        if name in done:
            continue
        uses = found[name] if name in trusted else None
        term = Term(network.layer_of[name], (name,), "jacobian")
        if uses is not None:
            term = _term(network, probe, name, {n: found[n] for n in trusted}, sizes)
        done.update(term.names)
        stored[term], work[term] = _costs(probe, term, parameter.numel(), sizes)
        terms.append(term)
    flops = counter.get_total_flops() / 2 / n if count else 0.0
    return Plan(terms, sizes, probe.calls, probe.numbers // n, flops, stored, work)


# ---------------------------------------------------------------------- what is used where


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
    gradients = iter(
        torch.autograd.grad(
            logits[0] @ mixture,
            [*edges, *network.parameters.values()],
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
        folded = piece.fold(arrived.reshape(n, 1, -1, *arrived.shape[1:])[:1])
        row = piece.rows(piece.unfold(piece.inputs[:1]), folded)
    else:
        row = piece.reduce(arrived)[:1]
    return pull_back(piece.source, parameter, row.view(1, *piece.source.shape))[0]


# ---------------------------------------------------------------------- how it is contracted


def _term(
    network: Network,
    probe: Pass,
    name: str,
    found: Mapping[str, list[Occurrence] | None],
    sizes: Sizes,
) -> Term:
    uses = tuple(found[name] or ())
    layer = network.layer_of[name]
    products = [probe.piece(o.use, o.piece) for o in uses]
    if not _alike(uses, products):
        return Term(layer, (name,), "gradients", uses)
    positions = sum(p.sizes[1] for p in products if isinstance(p, Product))
    gradients, kronecker = _works(products[0], positions, sizes)
    if gradients <= kronecker:
        return Term(layer, (name,), "gradients", uses, True)
    bias = _bias(network, probe, uses, layer, found)
    return Term(layer, (name, *bias), "Kronecker", uses, True)


def _alike(uses: Sequence[Occurrence], pieces: Sequence[Product | Reduction]) -> bool:
    """Whether all are products that differ in their positions only."""
    kinds = {
        (p.sizes[0], *p.sizes[2:], p.transposed, p.lookup, p.source.stride())
        for p in pieces
        if isinstance(p, Product)
    }
    products = all(isinstance(p, Product) for p in pieces)
    return products and len(kinds) == 1 and all(use.form != "derived" for use in uses)


def _works(piece: Product | Reduction, positions: int, sizes: Sizes) -> tuple[float, float]:
    """Multiply-adds of the form by gradients, and of the Kronecker form."""
    assert isinstance(piece, Product)
    g, _, k, o = piece.sizes
    x, c, pairs = positions, sizes.logits, sizes.pairs
    blocks = c if sizes.traced else c * c
    gradients = sizes.examples * c * g * o * k * x + pairs * blocks * g * o * k
    if x == 1:
        return gradients, pairs * g * (k + blocks * (o + _ELEMENTWISE))
    inner = c * o + _ELEMENTWISE if sizes.traced else c * o + c * c * o / x + _ELEMENTWISE / x
    return gradients, pairs * g * x * x * (k + inner)


def _bias(
    network: Network,
    probe: Pass,
    uses: Sequence[Occurrence],
    layer: str,
    found: Mapping[str, list[Occurrence] | None],
) -> tuple[str, ...]:
    """The parameter of the same layer that is added wherever the weight multiplies."""
    for name in network.layers[layer]:
        others = found.get(name)
        pieces = [probe.piece(o.use, o.piece) for o in others or ()]
        if (
            others
            and [o.use for o in others] == [o.use for o in uses]
            and all(isinstance(p, Reduction) and p.shift for p in pieces)
            and all(o.form == "itself" for o in others)
        ):
            return (name,)
    return ()


def _costs(probe: Pass, term: Term, numbers: int, sizes: Sizes) -> tuple[int, float]:
    """Numbers to keep per example, and multiply-adds."""
    c = sizes.logits
    blocks = c if sizes.traced else c * c
    if not term.product:
        return c * numbers, sizes.pairs * blocks * numbers
    pieces = [probe.piece(o.use, o.piece) for o in term.occurrences]
    products = [p for p in pieces if isinstance(p, Product)]
    positions = sum(p.sizes[1] for p in products)
    gradients, kronecker = _works(products[0], positions, sizes)
    factors = sum(p.inputs[0].numel() + c * p.sizes[0] * p.sizes[1] * p.sizes[3] for p in products)
    if term.kind == "gradients":
        return min(factors, c * numbers), gradients
    return factors, kronecker
