"""Linear constraints between labels, and their solution space.

A *label* is an unknown real number: the log-scale or the shift of one element of an activation
or parameter. The graph's operations state linear relations between labels; what remains free
when all of them hold is the space of symmetries, one free number per conservation law.

Nearly every relation ties two labels, so the system is solved in two steps: connected
components with a ratio per label (all in arrays), then elimination of the relations between
three or more labels (:mod:`Models.symmetry.elimination`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

from Models.symmetry.elimination import TOLERANCE, Floats, Ints, eliminate, product, scaled_rows


class Labels(NamedTuple):
    """One label per element of a tensor: ``coef * label[var]``; ``var`` 0 is the number 0.

    Both tensors have the tensor's shape and are expanded (stride 0) along the axes on which
    nothing varies, which keeps the label system as small as the number of channels.
    """

    var: Tensor  # int64
    coef: Tensor  # float64

    def times(self, factor: float | Tensor) -> "Labels":
        """The labels multiplied by a number, or by one nonzero number per element."""
        if isinstance(factor, (int, float)) and factor == 0:
            return zeros(self.var.shape)
        if isinstance(factor, Tensor):
            factor = unexpanded(factor)
        return Labels(*broadcast(self.var, unexpanded(self.coef) * factor))

    def constant_along(self, axis: int) -> bool:
        """Whether nothing varies along an axis, as far as strides tell."""
        return self.var.stride(axis) == 0 == self.coef.stride(axis)

    def shrink(self) -> "Labels":
        """The same labels with every axis on which nothing varies narrowed to length 1."""
        index = tuple(
            slice(0, 1) if size > 1 and self.constant_along(axis) else slice(None)
            for axis, size in enumerate(self.var.shape)
        )
        return Labels(self.var[index], self.coef[index])

    @property
    def vanish(self) -> bool:
        """Whether every label is the number 0."""
        return not bool(unexpanded(self.var).any())


def zeros(shape: Sequence[int]) -> Labels:
    """Labels that are all the number 0."""
    return Labels(
        torch.zeros((), dtype=torch.int64).expand(shape),
        torch.ones((), dtype=torch.float64).expand(shape),
    )


_FIXED = "it meets a quantity whose scale or shift is fixed"
_CONFLICT = "the operations around it leave it no freedom"


class LabelSystem:
    """Collects relations between labels; :meth:`solve` finds what stays free."""

    def __init__(self) -> None:
        self._count = 1
        self._ties: list[tuple[Ints, Floats, Ints, Floats]] = []
        self._pins: list[tuple[Ints, int]] = []
        self._sums: list[tuple[Ints, Floats]] = []
        self._reasons = [_FIXED, _CONFLICT]

    def fresh(self, shape: Sequence[int]) -> Labels:
        """New labels, all different."""
        count = int(np.prod(shape))
        var = torch.arange(self._count, self._count + count).reshape(tuple(shape))
        self._count += count
        return Labels(var, torch.ones((), dtype=torch.float64).expand(var.shape))

    @property
    def count(self) -> int:
        """How many labels there are."""
        return self._count

    def pin_since(self, count: int, reason: str) -> None:
        """State that every label made since there were ``count`` is 0."""
        self._pins.append((np.arange(count, self._count), len(self._reasons)))
        self._reasons.append(reason)

    def tie(self, x: Labels, y: Labels) -> None:
        """State that x = y, element by element (the shapes broadcast)."""
        (xv, xc), (yv, yc) = x.shrink(), y.shrink()
        ratio = unexpanded(yc) / unexpanded(xc)
        xv, yv, ratio = broadcast(xv, yv, ratio)
        for axis, strides in enumerate(zip(xv.stride(), yv.stride(), strict=True)):
            if strides == (0, 0) and ratio.shape[axis] > 1:  # the same labels, again and again
                first = ratio.narrow(axis, 0, 1)
                xv, yv = xv.narrow(axis, 0, 1), yv.narrow(axis, 0, 1)
                differs = ~torch.isclose(ratio, first, rtol=TOLERANCE, atol=0).all(axis, True)
                if differs.any():
                    self._conflict(xv, yv, differs)
                ratio = first
        xv, yv, ratio = broadcast(xv, yv, ratio)
        self._ties.append((_flat(xv), np.ones(xv.numel()), _flat(yv), _flat(ratio)))

    def _conflict(self, x: Tensor, y: Tensor, where: Tensor) -> None:
        """State that two labels with two different ratios are both 0."""
        x, y, where = broadcast(x, y, where)
        self._pins.append((_flat(torch.cat([x[where], y[where]])), 1))

    def pin(self, x: Labels, reason: str) -> None:
        """State that x = 0.

        Args:
            x: the labels.
            reason: why, for the table of layers without a law.
        """
        if not x.vanish:
            self._pins.append((_flat(unexpanded(x.var)), len(self._reasons)))
            self._reasons.append(reason)

    def vanishing_sum(self, *terms: Labels) -> None:
        """State that the terms (broadcast together) sum to 0, element by element."""
        parts = broadcast(*(t for x in terms for t in x.shrink()))
        var = np.stack([_flat(v) for v in parts[0::2]], axis=1)
        coef = np.stack([_flat(c) for c in parts[1::2]], axis=1)
        self._sums.append((var, coef))

    def solve(self) -> "Solution":
        """The general solution of all relations."""
        state = _Components(self._count)
        state.tie(*_concatenated(self._ties))
        state.pin(self._pins)
        sums = self._sum_rows()
        while True:
            rows = product(sums, state.matrix())
            terms = np.diff(rows.indptr)
            if not ((terms == 1) | (terms == 2)).any():
                return Solution(state, eliminate(rows[terms > 2]), self._reasons)
            state.pin([(rows[terms == 1].indices, 1)])
            pairs = rows[terms == 2]
            var, coef = pairs.indices.reshape(-1, 2), pairs.data.reshape(-1, 2)
            state.tie(var[:, 0], coef[:, 0], var[:, 1], -coef[:, 1])
            sums = sums[terms > 2]

    def _sum_rows(self) -> sparse.csr_matrix:
        """All sums as one matrix [sums, labels]."""
        blocks = [sparse.csr_matrix((0, self._count))]
        for var, coef in self._sums:
            rows = np.repeat(np.arange(len(var)), var.shape[1])
            entries = (coef.ravel(), (rows, var.ravel()))
            blocks.append(sparse.csr_matrix(entries, shape=(len(var), self._count)))
        return sparse.vstack(blocks, format="csr")


class Solution:
    """Every label as a combination of free labels."""

    def __init__(self, state: "_Components", eliminated: sparse.csr_matrix, reasons: list[str]):
        self._matrix = product(state.matrix(), eliminated)
        self._state = state
        self._reasons = reasons

    def coefficients(self, labels: Labels) -> sparse.csr_matrix:
        """The labels' dependence on the free labels.

        Returns:
            matrix [elements, labels of the system]; the columns of free labels are nonzero.
        """
        return scaled_rows(self._matrix[_flat(labels.var)], _flat(labels.coef))

    def reason(self, labels: Labels) -> str:
        """Why the first of these labels that vanishes does; empty if none does."""
        var = _flat(labels.shrink().var)
        vanishing = var[(var > 0) & (np.diff(self._matrix.indptr)[var] == 0)]
        if not vanishing.size:
            return ""
        reason = self._state.reason[vanishing[0]]
        return self._reasons[reason] if reason >= 0 else _CONFLICT


class _Components:
    """Labels as multiples of their component's representative; representative 0 is pinned."""

    def __init__(self, count: int):
        self.rep: Ints = np.arange(count)
        self.weight: Floats = np.ones(count)
        self.reason: Ints = np.full(count, -1)

    def matrix(self) -> sparse.csr_matrix:
        """[labels, labels]: each label's multiple of its representative, pinned ones zero."""
        free = np.flatnonzero(self.rep)
        size = len(self.rep)
        return sparse.csr_matrix((self.weight[free], (free, self.rep[free])), shape=(size, size))

    def pin(self, pins: list[tuple[Ints, int]]) -> None:
        """Set labels, and all that are multiples of them, to zero; the first reason counts."""
        verdict = np.full(len(self.rep), -1)
        for var, reason in reversed(pins):
            verdict[self.rep[var]] = reason
        self._apply(verdict)

    def tie(self, xv: Ints, xc: Floats, yv: Ints, yc: Floats) -> None:
        """Add the relations ``xc * x = yc * y``."""
        x, y = self.rep[xv], self.rep[yv]
        a, b = xc * self.weight[xv], yc * self.weight[yv]
        verdict = np.full(len(self.rep), -1)
        verdict[x[(x == y) & (np.abs(a - b) > TOLERANCE * np.abs(a))]] = 1
        fixed = (x == 0) != (y == 0)
        verdict[np.maximum(x, y)[fixed]] = 0
        link = (x != y) & ~fixed
        x, a, y, b = x[link], a[link], y[link], b[link]
        root, ratio = _spanning_ratios(len(self.rep), x, a, y, b)
        left, right = a * ratio[x], b * ratio[y]
        verdict[x[np.abs(left - right) > TOLERANCE * np.abs(left)]] = 1
        pinned = np.flatnonzero(verdict >= 0)
        verdict[root[pinned]] = verdict[pinned]
        self.weight = self.weight * ratio[self.rep]
        self.rep = root[self.rep]
        self._apply(verdict)

    def _apply(self, verdict: Ints) -> None:
        """Pin every label whose representative has a verdict (the number of a reason)."""
        verdict[0] = -1
        found = verdict[self.rep]
        pinned = found >= 0
        self.reason[pinned] = found[pinned]
        self.rep = np.where(pinned, 0, self.rep)
        self.weight = np.where(pinned, 1.0, self.weight)


def _spanning_ratios(count: int, x: Ints, a: Floats, y: Ints, b: Floats) -> tuple[Ints, Floats]:
    """Follow the relations ``a * v[x] = b * v[y]`` along a spanning forest.

    Returns:
        for each of ``count`` labels its component's first label and the ratio to it.
    """
    root, ratio = np.arange(count), np.ones(count)
    if not x.size:
        return root, ratio
    nodes, ends = np.unique(np.concatenate([x, y]), return_inverse=True)
    n = len(nodes)
    u, v = ends[: len(x)], ends[len(x) :]
    key, edge = np.unique(np.minimum(u, v) * n + np.maximum(u, v), return_index=True)
    graph = sparse.csr_matrix((np.ones(len(key)), (key // n, key % n)), shape=(n + 1, n + 1))
    _, component = csgraph.connected_components(graph, directed=False)
    _, first = np.unique(component[:n], return_index=True)
    trunk = sparse.csr_matrix((np.ones(len(first)), (np.full(len(first), n), first)), graph.shape)
    _, parent = csgraph.breadth_first_order(graph + trunk, n, directed=False)
    parent, child = parent[:n].astype(np.int64), np.arange(n)
    is_root = parent == n
    parent = np.where(is_root, child, parent)
    pair = np.minimum(parent, child) * n + np.maximum(parent, child)
    link = edge[np.searchsorted(key, pair[~is_root])]
    forward = u[link] == parent[~is_root]
    local = np.ones(n)
    local[~is_root] = np.where(forward, a[link] / b[link], b[link] / a[link])
    while (parent != parent[parent]).any():
        local, parent = local * local[parent], parent[parent]
    root[nodes], ratio[nodes] = nodes[parent], local
    return root, ratio


def _concatenated(
    ties: list[tuple[Ints, Floats, Ints, Floats]],
) -> tuple[Ints, Floats, Ints, Floats]:
    none: tuple[Ints, Floats, Ints, Floats] = (
        np.zeros(0, np.int64),
        np.zeros(0),
        np.zeros(0, np.int64),
        np.zeros(0),
    )
    xv, xc, yv, yc = (np.concatenate(part) for part in zip(*ties, none, strict=True))
    return xv, xc, yv, yc


def unexpanded(tensor: Tensor, but: int | None = None) -> Tensor:
    """The tensor with every expanded axis, but one perhaps, narrowed to length 1."""
    strides = enumerate(tensor.stride())
    return tensor[tuple(slice(0, 1) if s == 0 and d != but else slice(None) for d, s in strides)]


def broadcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors expanded (stride 0, no copy) to their common shape."""
    return tuple(torch.broadcast_tensors(*tensors))  # type: ignore[no-untyped-call]


def _flat(x: Tensor) -> NDArray[Any]:
    return x.reshape(-1).numpy()
