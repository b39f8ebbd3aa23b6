"""What the terms keep of some examples, from one forward and C backward passes.

Letters in shapes are those of :mod:`Metrics.tangent.contraction`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from Metrics.tangent.factors import Factors, Part, examples_at_once, formed
from Metrics.tangent.network import Network
from Metrics.tangent.passes import Pass, record
from Metrics.tangent.pieces import Product, pull_back
from Metrics.tangent.plan import Plan
from Metrics.tangent.rows import flat, jacobian_rows
from Metrics.tangent.schedule import blocks
from Metrics.tangent.terms import Occurrence, Term

Derivatives = dict[Occurrence, Tensor]
"""By the place where they arrive: [n, C, g, X, O] at products, rows [n, C, ...] at reductions."""


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
    network: Network, inputs: Tensor, plan: Plan, terms: Sequence[Term], chunk: int, logits: int
) -> Store:
    """Differentiate some examples with respect to the parameters of some terms.

    Args:
        network: whose examples are independent.
        inputs: [n, ...].
        plan: of the network.
        terms: of the plan.
        chunk: how many examples go through the network at a time.
        logits: how many have their derivatives held at a time where J is formed from them.
    """
    collector = _Collector(network, len(inputs), plan, terms, logits)
    for part in blocks(len(inputs), chunk):
        collector.add(inputs[part], part)
    return collector.store


class _Collector:
    """A store that is filled by chunks of the examples, in place: joining them needs it twice."""

    def __init__(
        self, network: Network, examples: int, plan: Plan, terms: Sequence[Term], logits: int
    ):
        self.store = Store()
        self._network, self._examples, self._plan = network, examples, plan
        self._logits = logits
        self._again = [term for term in terms if term.kind == "jacobian"]
        self._rows = [t for t in terms if t in plan.rows and t.kind != "jacobian"]
        self._factors = [term for term in terms if term not in plan.rows]
        self._places: dict[int, set[Occurrence]] = {}  # by the index of the use
        for place in (o for term in (*self._rows, *self._factors) for o in term.occurrences):
            self._places.setdefault(place.use, set()).add(place)
        self._kept = {place for term in self._factors for place in term.occurrences}
        self._derivatives: Derivatives = {}
        self._recent: dict[Occurrence, list[Tensor]] = {}

    def add(self, inputs: Tensor, part: slice) -> None:
        """Differentiate a chunk.

        Args:
            inputs: of the chunk.
            part: its place among the examples.
        """
        if self._again:
            names = [name for term in self._again for name in term.names]
            found = jacobian_rows(self._network, inputs, names)
            for term in self._again:
                self._row(term, part, slice(None), flat(found[term.names[0]]))
        if not (self._rows or self._factors):
            return
        here = record(self._network, inputs)
        c = here.logits.shape[1]
        for logits in blocks(c, self._logits if self._rows else c):
            self._differentiate(here, part, logits)
            for term in self._rows:
                self._form(here, term, part, logits)
            self._recent.clear()
        for term in self._factors:
            self._keep(here, term, part)

    def _differentiate(self, here: Pass, part: slice, logits: slice) -> None:
        """Derivatives of some logits: kept ones are put into their place."""
        c = here.logits.shape[1]
        places = [place for places in self._places.values() for place in places]
        self._recent = {place: [] for place in places if place not in self._kept}
        missing: set[int] = set()
        logit = logits.start

        def arrive(use: int, values: Tensor) -> None:
            missing.remove(use)
            for place in self._places[use]:
                found = _arrived(here, place, values)
                if place not in self._kept:
                    self._recent[place].append(found)
                    continue
                if place not in self._derivatives:
                    self._derivatives[place] = _room(found, self._examples, c)
                self._derivatives[place][part, logit] = found

        with here.derivatives(self._places, arrive) as backward:
            for logit in range(logits.start, logits.stop):
                missing |= self._places.keys()
                backward(logit, logit == c - 1)
                for use in list(missing):
                    arrive(use, here.logits.new_zeros(here.uses[use].shape))

    def _found(self, term: Term, part: slice, logits: slice, few: slice) -> Derivatives:
        """Derivatives of a few examples of a chunk and some logits."""
        return {
            place: (
                self._derivatives[place][part, logits][few]
                if place in self._kept
                else _stacked([values[few] for values in self._recent[place]])
            )
            for place in term.occurrences
        }

    def _form(self, here: Pass, term: Term, part: slice, logits: slice) -> None:
        """Rows of J of a chunk and some logits."""
        if not term.product:
            derivatives = self._found(term, part, logits, slice(None))
            self._row(term, part, logits, _summed(self._network, here, term, derivatives))
            return
        products = _products(here, term)
        g, _, k, o = products[0].sizes
        rows = self._room_for_rows(term, here.logits, g * o * k)[part, logits]
        for few in blocks(len(rows), min(map(examples_at_once, products))):
            derivatives = self._found(term, part, logits, few)
            formed(_factors(here, term, derivatives, few), Part(), rows[few])

    def _row(self, term: Term, part: slice, logits: slice, rows: Tensor) -> None:
        self._room_for_rows(term, rows, rows.shape[2])[part, logits] = rows

    def _keep(self, here: Pass, term: Term, part: slice) -> None:
        """Inputs of a chunk; derivatives are at their place already."""
        few = _factors(here, term, {place: self._derivatives[place] for place in term.occurrences})
        if part.stop - part.start == self._examples:
            self.store.factors[term] = few
            return
        if term not in self.store.factors:
            rooms = [_more_of(inputs, self._examples) for inputs in few.inputs]
            self.store.factors[term] = Factors(few.pieces, rooms, few.derivatives)
        for room, inputs in zip(self.store.factors[term].inputs, few.inputs, strict=True):
            room[part] = inputs

    def _room_for_rows(self, term: Term, like: Tensor, numbers: int) -> Tensor:
        if term not in self.store.rows:
            shape = (self._examples, self._plan.logits, numbers)
            self.store.rows[term] = like.new_empty(shape)
        return self.store.rows[term]


def _arrived(here: Pass, place: Occurrence, values: Tensor) -> Tensor:
    """Of what arrives at a call: [n, g, X, O] of a product, [n, ...] of a reduction."""
    piece = here.piece(place.use, place.piece)
    if isinstance(piece, Product):
        return piece.fold(values.reshape(len(here.logits), -1, *values.shape[1:]))
    return piece.reduce(values)


def _room(values: Tensor, examples: int, logits: int) -> Tensor:
    """For what arrives, of all logits: contiguous where each logit is written."""
    order = sorted(range(1, values.dim()), key=values.stride().__getitem__, reverse=True)
    layout = (0, 1, *(dimension + 1 for dimension in order))
    shape = (examples, logits, *values.shape[1:])
    return torch.empty_permuted(shape, layout, dtype=values.dtype, device=values.device)


def _more_of(few: Tensor, examples: int) -> Tensor:
    """Room for inputs of more examples, in the same layout."""
    inner = sorted(range(1, few.dim()), key=few.stride().__getitem__, reverse=True)
    layout = (0, *inner)
    shape = (examples, *few.shape[1:])
    return torch.empty_permuted(shape, layout, dtype=few.dtype, device=few.device)


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """All logits: [n, C, ...] of [n, ...], where they are products such that [X, C O] is a matrix.

    That is, positions outside of logits, or, where they come so, inside of outputs.
    """
    if values[0].dim() != 4:
        return torch.stack(list(values), 1)
    if values[0].stride(-1) == 1:
        return torch.stack([each.transpose(1, 2) for each in values], 2).permute(0, 2, 3, 1, 4)
    return torch.stack([each.transpose(2, 3) for each in values], 1).transpose(3, 4)


def _products(here: Pass, term: Term) -> list[Product]:
    pieces = [here.piece(place.use, place.piece) for place in term.occurrences]
    return [piece for piece in pieces if isinstance(piece, Product)]


def _factors(here: Pass, term: Term, derivatives: Derivatives, few: slice = slice(None)) -> Factors:
    products = _products(here, term)
    inputs = [piece.inputs[few] for piece in products]
    return Factors(products, inputs, [derivatives[place] for place in term.occurrences])


def _summed(network: Network, here: Pass, term: Term, derivatives: Derivatives) -> Tensor:
    """J [n, C, p] of a parameter over all of its uses."""
    parameter = network.parameters[term.names[0]]
    rows: Tensor | None = None
    for place in term.occurrences:
        piece = here.piece(place.use, place.piece)
        found = derivatives[place]
        lead = found.shape[:2]
        if isinstance(piece, Product):
            found = piece.arranged(piece.rows(piece.unfold(piece.inputs), found))
        found = pull_back(piece.source, parameter, found.reshape(*lead, *piece.source.shape))
        found = flat(found)
        rows = found if rows is None else rows + found
    if rows is None:
        rows = parameter.new_zeros(*here.logits.shape, parameter.numel())
    return rows
