"""How parameters are contracted, and what each form costs.

Letters in shapes: g groups, X positions, K numbers in and O numbers out at each, C logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from Metrics.tangent.network import Network
from Metrics.tangent.passes import Pass
from Metrics.tangent.pieces import Product, Reduction

Kind = Literal["gradients", "Kronecker", "jacobian"]

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


def cheapest_term(
    network: Network,
    probe: Pass,
    name: str,
    found: Mapping[str, list[Occurrence] | None],
    sizes: Sizes,
) -> Term:
    """The form in which a parameter takes the least work.

    Args:
        network: that it belongs to.
        probe: a pass over a few examples.
        name: of the parameter.
        found: the uses of all parameters whose derivatives are known.
        sizes: of the kernel.
    """
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


@dataclass(frozen=True)
class Costs:
    """Of a term.

    Attributes:
        stored: numbers to keep of each example.
        rows: whether they are rows of J, or what J is made of.
        work: multiply-adds of the whole kernel.
    """

    stored: int
    rows: bool
    work: float


def costs(probe: Pass, term: Term, numbers: int, sizes: Sizes) -> Costs:
    """What a term costs.

    Args:
        probe: a pass over a few examples.
        term: whose costs they are.
        numbers: of its first parameter.
        sizes: of the kernel.
    """
    c = sizes.logits
    blocks = c if sizes.traced else c * c
    if not term.product:
        return Costs(c * numbers, True, sizes.pairs * blocks * numbers)
    pieces = [probe.piece(o.use, o.piece) for o in term.occurrences]
    products = [p for p in pieces if isinstance(p, Product)]
    positions = sum(p.sizes[1] for p in products)
    gradients, kronecker = _works(products[0], positions, sizes)
    factors = sum(p.inputs[0].numel() + c * p.sizes[0] * p.sizes[1] * p.sizes[3] for p in products)
    if term.kind == "gradients":
        return Costs(min(factors, c * numbers), c * numbers < factors, gradients)
    return Costs(factors, False, kronecker)
