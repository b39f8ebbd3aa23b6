"""Sums of Gram matrices of Jacobian rows, in place, symmetric ones by halves.

Letters in shapes: n examples on the left and m on the right, C logits, p numbers of a parameter,
g groups, X positions, K numbers in and O numbers out at each. R is n in traced kernels, n C in
full ones: the row of logit c of example i is i C + c.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from scipy.linalg import blas
from torch import Tensor

_SYRK = {torch.float32: blas.ssyrk, torch.float64: blas.dsyrk}
_TILE = 512
"""Rows of a product that stays in the processor's cache."""
_STRIP = 128
"""Rows of one that ends at the diagonal: little is computed above it."""


def accumulating(dtype: torch.dtype) -> torch.dtype:
    """The format in which products are summed: half precision has too few digits."""
    return dtype if dtype in _SYRK else torch.float32


@dataclass(frozen=True)
class Side:
    """Of a product, what belongs to one batch: J = Σ_x g_x u_xᵀ.

    Attributes:
        features: u [n, g, X, K]; or indices [n, g, X, 1] of the only 1 in u.
        derivatives: g [n, C, g, X, O].
        lookup: whether the features are indices.
        bias: whether the sum of g is a parameter's derivative, too.
    """

    features: Tensor
    derivatives: Tensor
    lookup: bool = False
    bias: bool = False


class Gram:
    """A kernel that grows by the contributions of parameters.

    Args:
        shape: (n, m) examples.
        logits: C.
        traced: whether only the sum over equal logits is kept.
        symmetric: whether both batches are the same: then only the lower triangle is summed.
        like: a tensor on the device, in the network's number format.
    """

    def __init__(
        self, shape: tuple[int, int], logits: int, traced: bool, symmetric: bool, like: Tensor
    ):
        self.traced, self._logits, self._symmetric = traced, logits, symmetric
        self._width = 1 if traced else logits
        n, m = shape
        size = (n * self._width, m * self._width)
        self.matrix = like.new_zeros(size, dtype=accumulating(like.dtype))

    def result(self) -> Tensor:
        """[n, m], the mean over logits; or [n, m, C, C], a view of the matrix."""
        matrix = self.matrix
        if self._symmetric:
            for low, high in _strips(len(matrix), _TILE):
                block = matrix[low:high, low:high]
                block.tril_().add_(block.tril(-1).T)
                matrix[:low, low:high] = matrix[low:high, :low].T
        if self.traced:
            return matrix / self._logits
        c = self._logits
        return matrix.view(len(matrix) // c, c, -1, c).transpose(1, 2)

    # ------------------------------------------------------------------ contributions

    def add_rows(self, left: Tensor, right: Tensor | None = None) -> None:
        """Σ_p J_p J'_p.

        Args:
            left: [n, C, p].
            right: [m, C, p]; ``None`` if symmetric.
        """
        a = self._flat(left)
        if right is not None:
            self.matrix.addmm_(a, self._flat(right).T)
        elif a.device.type == "cpu":
            c = self.matrix.numpy().T  # column-major, as BLAS reads it
            _SYRK[a.dtype](1.0, a.numpy().T, 1.0, c, trans=1, lower=0, overwrite_c=1)
        else:
            for low, high in _strips(len(a), max(_TILE, len(a) // 8)):
                self.matrix[low:high, :high].addmm_(a[low:high], a[:high].T)

    def _flat(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(len(rows) * self._width, -1)
        return flat.to(self.matrix.dtype).contiguous()

    def add_product(self, left: Side, right: Side | None = None) -> None:
        """⟨J, J'⟩ = Σ_xx' ⟨u_x, u'_x'⟩⟨g_x, g'_x'⟩ without J, group by group.

        Args:
            left: of the rows.
            right: of the columns; ``None`` if symmetric.
        """
        for group in range(left.features.shape[1]):
            a = self._group(left, group)
            b = a if right is None else self._group(right, group)
            if a.derivatives.shape[2] == 1:
                self._add_points(a, b)
            elif self.traced:
                self._add_traced(a, b)
            else:
                self._add_full(a, b)

    def _group(self, side: Side, group: int) -> Side:
        """Features [n, X, K] and derivatives [n, C, X, O] of a group."""
        features, derivatives = side.features[:, group], side.derivatives[:, :, group]
        dtype = self.matrix.dtype
        if not side.lookup:
            features = features.to(dtype)
        return Side(features, derivatives.to(dtype), side.lookup, side.bias)

    def _add_points(self, a: Side, b: Side) -> None:
        """One position: Θ[ic, jd] += (u_i·u_j)(g_ic·g_jd)."""
        width = self._width
        left, right = (s.derivatives.reshape(len(s.derivatives) * width, -1) for s in (a, b))
        columns = len(b.features)
        weights = _pairs(a, b, slice(None), slice(None))
        for low, high in _strips(len(a.features), max(1, _TILE // width)):
            end = high if self._symmetric else columns
            strip = self.matrix[low * width : high * width, : end * width]
            product = left[low * width : high * width] @ right[: end * width].T
            shape = (high - low, width, end, width)
            weight = weights[low:high, None, :end, None].expand(shape)
            strip.view(shape).addcmul_(product.view(shape), weight)

    def _add_traced(self, a: Side, b: Side) -> None:
        """Many positions, summed over equal logits; tile by tile."""
        x, y = a.derivatives.shape[2], b.derivatives.shape[2]
        left, right = (s.derivatives.transpose(1, 2).flatten(2) for s in (a, b))  # [n, X, C O]
        for low, high in _strips(len(left), max(1, (_STRIP if self._symmetric else _TILE) // x)):
            columns = high if self._symmetric else len(right)
            rows = left[low:high].flatten(0, 1)
            for first, last in _strips(columns, max(1, _TILE // y)):
                product = rows @ right[first:last].flatten(0, 1).T
                product *= _pairs(a, b, slice(low, high), slice(first, last))
                summed = product.view(high - low, x, last - first, y).sum((1, 3))
                self.matrix[low:high, first:last] += summed

    def _add_full(self, a: Side, b: Side) -> None:
        """Many positions, all pairs of logits: first g_x by ⟨u_x, u'_x'⟩, then by g'_x'."""
        c, y, o = self._logits, b.derivatives.shape[2], b.derivatives.shape[3]
        right = b.derivatives.transpose(-1, -2).flatten(2)  # [m, C, O X']
        for i in range(len(a.features)):
            columns = i + 1 if self._symmetric else len(right)
            left = a.derivatives[i].transpose(-1, -2).flatten(0, 1)  # [C O, X]
            weights = _pairs(a, b, slice(i, i + 1), slice(0, columns))  # [X, m X']
            spread = (left @ weights).view(c, o, columns, y)
            spread = spread.permute(2, 0, 1, 3).reshape(columns, c, o * y)
            strip = self.matrix[i * c : (i + 1) * c, : columns * c]
            strip.view(c, columns, c).transpose(0, 1).baddbmm_(
                spread, right[:columns].transpose(1, 2)
            )


def _pairs(a: Side, b: Side, rows: slice, columns: slice) -> Tensor:
    """⟨u_x, u'_x'⟩ [n X, m X'], plus 1 where biases count."""
    left, right = a.features[rows].flatten(0, 1), b.features[columns].flatten(0, 1)
    if a.lookup:
        same = (left == right.T) & (left >= 0)
        return same.to(a.derivatives.dtype)
    products = left @ right.T
    return products.add_(1) if a.bias else products


def _strips(length: int, size: int) -> Iterator[tuple[int, int]]:
    for low in range(0, length, size):
        yield low, min(low + size, length)
