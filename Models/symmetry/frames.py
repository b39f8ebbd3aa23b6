"""Matrix symmetries: which vectors of activations may every invertible matrix act on?

Where a vector is written by linear maps, read by linear maps, and nothing acts on its entries
one by one in between, the frame it is expressed in does not matter: A W₁ and W₂ A⁻¹ compute the
same. The conserved charges are the matrix W₂ᵀW₂ − W₁W₁ᵀ (Arora et al. 2018, Marcotte et al.
2023), for attention heads W_Q W_Qᵀ − W_K W_Kᵀ and W_V W_Vᵀ − W_Oᵀ W_O.

The walk is that of log-scales with only linear operations allowed: what scales freely there is
a diagonal matrix, and entries that always occur together may be mixed by a full one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from Models.symmetry.export import ExportedGraph
from Models.symmetry.labels import Labels, Solution
from Models.symmetry.propagation import Dims, Value
from Models.symmetry.scale import ScalePropagation, Slot

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """The slices of one parameter that transform with a frame.

    Attributes:
        parameter: its name.
        axis: the axis whose slices they are; −1 for entries of the flattened parameter.
        places: [copies][n], places on that axis.
        sign: of their Gram matrix in the charge.
        reads: whether they read the frame's vector or write it.
    """

    parameter: str
    axis: int
    places: tuple[tuple[int, ...], ...]
    sign: float
    reads: bool


Frame = tuple[Side, ...]
"""All that transforms together under one group GL(n)."""


class FramePropagation(ScalePropagation):
    """Log-scales of a graph in which everything but linear maps fixes the scale.

    Attributes:
        cuts: sets of labels that some operation treats apart from all others.
    """

    quantity: ClassVar[str] = "frame"

    def __init__(self, graph: ExportedGraph):
        super().__init__(graph)
        self.cuts: list[Labels] = []

    def _by_rule(self, name: str, node: Any) -> Value | None:
        rule: Callable[..., Value] | None = getattr(self, f"op_{name}", None)
        if rule is not None and name not in _LINEAR:
            return None
        return super()._by_rule(name, node)

    def op_conv1d(self, x: Value, weight: Value, bias: Value, groups: int, **_: Any) -> Value:
        return super().op_conv1d(x, weight, bias, groups) if groups == 1 else None

    op_conv2d = op_conv3d = op_conv1d

    def op_conv_transpose1d(
        self, x: Value, weight: Value, bias: Value, groups: int, **_: Any
    ) -> Value:
        return super().op_conv_transpose1d(x, weight, bias, groups) if groups == 1 else None

    op_conv_transpose2d = op_conv_transpose3d = op_conv_transpose1d

    def op_mul(self, x: Value, other: Value) -> Value:
        return self.elements(x) if isinstance(other, (int, float)) else None

    def op_div(self, x: Value, other: Value, rounding_mode: str | None = None) -> Value:
        return None if rounding_mode else self.op_mul(x, other)

    def op_dropout(self, x: Value, **options: Any) -> Value:
        return None if options["train"] and options["p"] > 0 else self.elements(x)

    def op_mean(self, x: Value, dim: Dims = None, **_: Any) -> Value:
        return self.reduced(self.elements(x), dim)

    op_sum = op_mean

    def op_scaled_dot_product_attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        attn_mask: Value = None,
        enable_gqa: bool = False,
        **_: Any,
    ) -> Value:
        for part in map(self.elements, (query, key, value)):
            for head in range(part.var.shape[-3]):
                self.cuts.append(Labels(*(tensor[..., head, :, :] for tensor in part)).shrink())
        return super().op_scaled_dot_product_attention(query, key, value, attn_mask, enable_gqa)


_AXES = {"row": 0, "column": 1, "element": -1}

_LINEAR_NAMES = """linear matmul mm conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d embedding neg mul div add sub dropout mean sum avg_pool1d avg_pool2d
    avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d cat stack detach
    zeros_like ones_like scaled_dot_product_attention"""
_LINEAR = frozenset(_LINEAR_NAMES.split())


def find_frames(graph: ExportedGraph) -> list[Frame]:
    """The frames of at least two entries, in the order in which the graph writes them."""
    propagation = FramePropagation(graph)
    propagation.run()
    solution = propagation.system.solve()
    slots = [_SlotLabels.of(slot, solution) for slot in propagation.slots]
    slots = [slot for slot in slots if slot.label.any()]
    cuts = [slot.label for slot in slots]
    cuts += [_single(solution, labels)[0] for labels in propagation.cuts]
    mixed = np.unique(np.concatenate([s.mixed for s in slots])) if slots else np.zeros(0, int)
    frames = (_frame(cell, slots) for cell in _cells(cuts, mixed))
    return [frame for frame in frames if frame]


@dataclass(frozen=True)
class _SlotLabels:
    """A slot's entries as multiples of single free labels.

    Attributes:
        slot: the slot.
        label: [entries] the free label, 0 where there is none.
        factor: [entries] its multiple.
        mixed: labels that occur in combinations, which no frame can have.
    """

    slot: Slot
    label: Ints
    factor: NDArray[np.float64]
    mixed: Ints

    @classmethod
    def of(cls, slot: Slot, solution: Solution) -> "_SlotLabels":
        return cls(slot, *_single(solution, slot.labels))


def _single(solution: Solution, labels: Labels) -> tuple[Ints, NDArray[np.float64], Ints]:
    """Labels as multiples of single free ones; and those that occur in combinations."""
    matrix: sparse.csr_matrix = solution.coefficients(labels)
    terms = np.diff(matrix.indptr)
    label, factor = np.zeros(len(terms), np.int64), np.zeros(len(terms))
    first = matrix.indptr[:-1][terms == 1]
    label[terms == 1], factor[terms == 1] = matrix.indices[first], matrix.data[first]
    in_combinations = np.repeat(terms > 1, terms)
    return label, factor, matrix.indices[in_combinations]


def _cells(cuts: list[Ints], mixed: Ints) -> Iterator[Ints]:
    """The labels that no cut tells apart, in cells of at least two."""
    members: dict[int, list[int]] = {}
    for number, labels in enumerate(cuts):
        for label in np.unique(labels):
            members.setdefault(int(label), []).append(number)
    cells: dict[tuple[int, ...], list[int]] = {}
    for label in sorted(members.keys() - {0, *mixed.tolist()}):
        cells.setdefault(tuple(members[label]), []).append(label)
    return (np.array(cell) for cell in cells.values() if len(cell) > 1)


def _frame(cell: Ints, slots: list[_SlotLabels]) -> Frame:
    """What transforms with a cell; empty if that is no plain set of slices."""
    sides: list[Side] = []
    for slot in slots:
        entries = np.flatnonzero(np.isin(slot.label, cell))
        if not entries.size:
            continue
        copies, rest = divmod(len(entries), len(cell))
        order = entries[np.argsort(slot.label[entries], kind="stable")]
        factors = slot.factor[entries]
        if rest or not np.allclose(np.abs(factors), 1):
            return ()
        places = order.reshape(len(cell), copies).T
        signs = slot.factor[places]
        if (slot.label[places] != cell).any() or (signs != signs[:, :1]).any():
            return ()
        for sign in dict.fromkeys(signs[:, 0].tolist()):
            rows = tuple(tuple(map(int, row)) for row in places[signs[:, 0] == sign])
            axis = _AXES[slot.slot.reduction]
            sides.append(Side(slot.slot.parameter, axis, rows, sign, slot.slot.reads))
    return tuple(sides)
