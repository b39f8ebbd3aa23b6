"""Θ = Σ_l Θ_l, layer by layer, each in the cheaper of two forms.

One forward and C backward passes over the examples give every call's features u and derivatives
g; J = Σ_x g_x u_xᵀ is only ever formed for a part of one parameter. Letters in shapes are those of
:mod:`Metrics.tangent.contraction`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from Metrics.tangent.assembly import Kernels, Place, above_diagonal
from Metrics.tangent.collecting import Store, collect
from Metrics.tangent.contraction import Gram, Side
from Metrics.tangent.factors import Factors, Room, formed, parts
from Metrics.tangent.network import Network
from Metrics.tangent.plan import Plan
from Metrics.tangent.schedule import make_schedule
from Metrics.tangent.terms import Term


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
            gram.add_rows(*(formed(each, part, room.take(each, part)) for each, room in sides))


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

    def add(stores: Sequence[Store], names: Mapping[Term, str], place: Place) -> None:
        low, high = (part.stop - part.start for part in place)
        grams = {
            name: Gram((low, high), plan.logits, traced, len(stores) == 1, like)
            for name in names.values()
        }
        for name, block in _added(stores, names, grams, rooms, schedule.budget).items():
            kernels.add(name, block, place)

    for terms in schedule.groups:
        names = {term: term.layer if per_layer else "" for term in terms}
        for i, low in enumerate(schedule.rows):
            left = collect(network, inputs[low], plan, terms, schedule.chunk, schedule.logits)
            for high in schedule.columns[i + 1 if same else 0 :]:
                right = collect(
                    network, columns[high], plan, terms, schedule.chunk, schedule.logits
                )
                add([left, right], names, (low, high))
            if same:
                add([left], names, (low, low))
    if same:
        kernels.mirror(above_diagonal(schedule.rows))
    return kernels.found
