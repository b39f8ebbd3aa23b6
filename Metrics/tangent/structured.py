"""Θ = Σ_l Θ_l, layer by layer, each in the cheaper of two forms.

One forward and C backward passes over the examples give every call's features u and derivatives
g; J = Σ_x g_x u_xᵀ is only ever formed for a part of one parameter. Letters in shapes are those of
:mod:`Metrics.tangent.contraction`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from Metrics.tangent.assembly import Kernels, Place, above_diagonal
from Metrics.tangent.contraction import Gram, Side
from Metrics.tangent.factors import Factors, Part, formed, parts
from Metrics.tangent.network import Network
from Metrics.tangent.passes import Pass, record
from Metrics.tangent.pieces import Product, pull_back
from Metrics.tangent.plan import Plan
from Metrics.tangent.room import Room, more_of, room_for
from Metrics.tangent.rows import jacobian_rows
from Metrics.tangent.schedule import blocks, make_schedule
from Metrics.tangent.terms import Term

_PART = 32 << 20
"""Most bytes of J at a time on a CPU: enough for fast products, and few fresh pages."""


@dataclass
class Store:
    """What the terms keep of some examples.

    Attributes:
        rows: [n, C, p] of J.
        factors: where J is formed later or never.
    """

    rows: dict[Term, Tensor] = field(default_factory=dict)
    factors: dict[Term, Factors] = field(default_factory=dict)

    def forget(self, term: Term) -> None:
        """Free what was kept of a term."""
        self.rows.pop(term, None)
        self.factors.pop(term, None)


def collect(
    network: Network, inputs: Tensor, plan: Plan, terms: Sequence[Term], chunk: int
) -> Store:
    """Differentiate some examples with respect to the parameters of some terms.

    Args:
        network: whose examples are independent.
        inputs: [n, ...].
        plan: of the network.
        terms: of the plan.
        chunk: how many examples go through the network at a time.
    """
    n = len(inputs)
    if chunk >= n:
        return _collect(network, inputs, plan, terms)
    joined = Store()
    for part in blocks(n, chunk):
        store = _collect(network, inputs[part], plan, terms)
        for term, rows in store.rows.items():
            if term not in joined.rows:
                joined.rows[term] = more_of(rows, n)
            joined.rows[term][part] = rows
        for term, few in store.factors.items():
            if term not in joined.factors:
                rooms = ([more_of(each, n) for each in s] for s in (few.inputs, few.derivatives))
                joined.factors[term] = Factors(few.pieces, *rooms)
            kept = joined.factors[term]
            pairs = ((kept.inputs, few.inputs), (kept.derivatives, few.derivatives))
            for whole, piece in (pair for lists in pairs for pair in zip(*lists, strict=True)):
                whole[part] = piece
    return joined


def _collect(network: Network, inputs: Tensor, plan: Plan, terms: Sequence[Term]) -> Store:
    store = Store()
    again = [term for term in terms if term.kind == "jacobian"]
    if again:
        found = jacobian_rows(network, inputs, [name for term in again for name in term.names])
        for term in again:
            store.rows[term] = found[term.names[0]].flatten(2)
    terms = [term for term in terms if term.kind != "jacobian"]
    if not terms:
        return store
    here = record(network, inputs)
    derivatives = _differentiate(here, plan, terms)
    for term in terms:
        if term.product:
            pieces = [here.piece(o.use, o.piece) for o in term.occurrences]
            products = [piece for piece in pieces if isinstance(piece, Product)]
            factors = Factors(
                products,
                [piece.inputs for piece in products],
                [derivatives[o.use, o.piece] for o in term.occurrences],
            )
            kept = sum(t[0].numel() for t in (*factors.inputs, *factors.derivatives))
            if term.kind == "gradients" and plan.stored[term] < kept:
                store.rows[term] = formed(factors, Part(), Room())
            else:
                store.factors[term] = factors
        else:
            store.rows[term] = _summed(network, here, term, derivatives)
    return store


def _differentiate(here: Pass, plan: Plan, terms: Sequence[Term]) -> dict[tuple[int, int], Tensor]:
    """By (use, piece): derivatives [n, C, g, X, O] of products, rows [n, C, ...] of reductions."""
    wanted = sorted({(o.use, o.piece) for term in terms for o in term.occurrences})
    uses = sorted({use for use, _ in wanted})
    edges = [edge for use in uses if (edge := here.uses[use].edge) is not None]
    n, c = here.logits.shape
    found: dict[tuple[int, int], Tensor] = {}
    for logit in range(c):
        arrived = dict(zip(uses, here.derivatives(edges, logit, logit == c - 1), strict=True))
        for use, number in wanted:
            values = arrived[use]
            if values is None:
                values = here.logits.new_zeros(here.uses[use].shape)
            piece = here.piece(use, number)
            if isinstance(piece, Product):
                values = piece.fold(values.reshape(n, -1, *values.shape[1:]))
            else:
                values = piece.reduce(values)
            if (use, number) not in found:
                found[use, number] = _room_for_logits(values, c, isinstance(piece, Product))
            found[use, number][:, logit] = values
    return found


def _room_for_logits(values: Tensor, count: int, product: bool) -> Tensor:
    """For derivatives [n, C, g, X, O] of products, of one logit [n, g, X, O]; or rows [n, C, ...].

    Positions lie outside of logits, or inside of outputs, so that [X, C O] is a matrix.
    """
    shape = (len(values), count, *values.shape[1:])
    if not product:
        return room_for(values, shape)
    return room_for(values, shape, (0, 3, 1, 2, 4) if values.stride(-1) == 1 else (0, 1, 2, 4, 3))


def _summed(
    network: Network, here: Pass, term: Term, derivatives: dict[tuple[int, int], Tensor]
) -> Tensor:
    """J [n, C, p] of a parameter over all of its uses."""
    parameter = network.parameters[term.names[0]]
    rows = parameter.new_zeros(*here.logits.shape, parameter.numel())
    for occurrence in term.occurrences:
        piece = here.piece(occurrence.use, occurrence.piece)
        found = derivatives[occurrence.use, occurrence.piece]
        if isinstance(piece, Product):
            found = piece.arranged(piece.rows(piece.unfold(piece.inputs), found))
        found = found.reshape(*here.logits.shape, *piece.source.shape)
        rows += pull_back(piece.source, parameter, found).flatten(2)
    return rows


# ---------------------------------------------------------------------- contraction


def _contract(
    term: Term, gram: Gram, stores: Sequence[Store], rooms: Sequence[Room], budget: int
) -> None:
    """Add a term's part of the kernel.

    Args:
        term: which.
        gram: is added to.
        stores: of the rows and, if they are others, of the columns.
        rooms: for J of each.
        budget: bytes of J at a time.
    """
    if term in stores[0].rows:
        gram.add_rows(*(store.rows[term] for store in stores))
    elif term.kind == "Kronecker":
        gram.add_product(*(_side(store.factors[term], term) for store in stores))
    else:
        factors = [store.factors[term] for store in stores]
        for part in parts(factors, gram.traced, budget):
            sides = zip(factors, rooms, strict=False)
            gram.add_rows(*(formed(each, part, room) for each, room in sides))


def _side(factors: Factors, term: Term) -> Side:
    """Features and derivatives of all uses, one after the other as positions."""
    pairs = zip(factors.pieces, factors.inputs, strict=True)
    features = [piece.unfold(inputs) for piece, inputs in pairs]
    alone = len(features) == 1
    return Side(
        features[0] if alone else torch.cat(features, 2),
        factors.derivatives[0] if alone else torch.cat(factors.derivatives, 3),
        factors.pieces[0].lookup,
        term.bias,
    )


def _added(
    stores: Sequence[Store],
    names: Mapping[Term, str],
    grams: Mapping[str, Gram],
    rooms: Sequence[Room],
    budget: int,
) -> dict[str, Tensor]:
    """The kernels of some terms on a pair of blocks, each added to the Gram matrix of its name."""
    for term, name in names.items():
        _contract(term, grams[name], stores, rooms, budget)
        if len(stores) == 1:  # the diagonal comes last: nobody needs it any more
            stores[0].forget(term)
    return {name: gram.result() for name, gram in grams.items()}


def structured_kernels(
    network: Network,
    inputs: Tensor,
    others: Tensor | None,
    plan: Plan,
    per_layer: bool,
    memory: int,
) -> dict[str, Tensor]:
    """Θ_l of every layer, or their sum under the name "".

    Args:
        network: whose examples are independent.
        inputs: [N, ...].
        others: [M, ...] or ``None`` for the same.
        plan: of the network.
        per_layer: whether the layers are kept apart.
        memory: bytes for temporaries.
    """
    like = next(iter(network.parameters.values()))
    same, columns = others is None, inputs if others is None else others
    sizes = (len(inputs), len(columns))
    schedule = make_schedule(plan, (sizes[0], None if same else sizes[1]), like, memory)
    traced = plan.sizes.traced
    kernels = Kernels(sizes, traced)
    rooms = [Room(), Room()]
    budget = min(schedule.budget, _PART) if like.device.type == "cpu" else schedule.budget

    def add(stores: Sequence[Store], names: Mapping[Term, str], place: Place) -> None:
        low, high = (part.stop - part.start for part in place)
        grams = {
            name: Gram((low, high), plan.logits, traced, len(stores) == 1, like)
            for name in names.values()
        }
        for name, block in _added(stores, names, grams, rooms, budget).items():
            kernels.add(name, block, place)

    for terms in schedule.groups:
        names = {term: term.layer if per_layer else "" for term in terms}
        for i, low in enumerate(schedule.rows):
            left = collect(network, inputs[low], plan, terms, schedule.chunk)
            for high in schedule.columns[i + 1 if same else 0 :]:
                right = collect(network, columns[high], plan, terms, schedule.chunk)
                add([left, right], names, (low, high))
            if same:
                add([left], names, (low, low))
    if same:
        kernels.mirror(above_diagonal(schedule.rows))
    return kernels.found
