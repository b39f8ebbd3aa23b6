"""Log-scale labels: by which power of e^s may every parameter be multiplied, so that the
model's output stays the same?

Every element of a weight gets the exponent ``row − column``: what it writes minus what it
reads. The operations tie the exponents of activations; a free combination is a one-parameter
scaling symmetry, and ``q = Σ s θ²`` its charge (Kunin et al. 2021, section 3).
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from Models.symmetry.contractions import Contractions
from Models.symmetry.export import ExportedGraph, Parameter
from Models.symmetry.guards import is_guard
from Models.symmetry.labels import Labels, broadcast, zeros
from Models.symmetry.propagation import Dims, Value


@dataclass(frozen=True)
class Slot:
    """A reduction of one parameter, with the exponent of each of its entries.

    Attributes:
        parameter: its name.
        reduction: "row" sums over all axes but the first; "column" over all but the second,
            per group; "element" does not sum.
        groups: groups of a grouped convolution (1 elsewhere).
        labels: exponents, one per entry; a parameter element's exponent is the sum of its
            row's and its column's.
        reads: whether these entries read an activation (columns of a weight) or write one.
    """

    parameter: str
    reduction: Literal["row", "column", "element"]
    groups: int
    labels: Labels
    reads: bool


class ScalePropagation(Contractions):
    """Log-scales of every activation and parameter.

    Attributes:
        slots: where parameters meet labels, in the graph's order.
    """

    quantity: ClassVar[str] = "scale"

    def __init__(self, graph: ExportedGraph):
        super().__init__(graph)
        self.slots: list[Slot] = []
        self._matrices: dict[str, tuple[Labels, Labels]] = {}
        self._vectors: dict[str, Labels] = {}

    def output(self, x: Labels) -> None:
        self.pin(x, "it feeds the model's output, whose scale the loss fixes")

    # ------------------------------------------------------------------ parameters

    def vector(self, parameter: Parameter) -> Labels:
        name = parameter.name
        if not parameter.trainable:
            return zeros(parameter.shape)
        if name in self._matrices:
            rows, columns = self._matrices[name]
            self.pin(rows, "its parameter is used in two different ways")
            self.pin(columns, "its parameter is used in two different ways")
            return zeros(parameter.shape)
        if name not in self._vectors:
            self._vectors[name] = self.system.fresh(parameter.shape)
            labels = Labels(*(part.reshape(-1) for part in self._vectors[name]))
            self.slots.append(Slot(name, "element", 1, labels, reads=False))
        return self._vectors[name]

    def matrix(
        self, parameter: Parameter, rows: Labels, columns: Labels, rows_read: bool = False
    ) -> None:
        """State that element (i, j, …) of a parameter scales as rows[i] + columns[g, j].

        Args:
            parameter: of shape [I, J, …].
            rows: [I].
            columns: [G, J], the group of row i being g.
            rows_read: whether the first axis is what the parameter reads.
        """
        name, groups = parameter.name, columns.var.shape[0]
        if name in self._vectors:
            for part in (rows, columns, self._vectors[name]):
                self.pin(part, "its parameter is used in two different ways")
        elif name in self._matrices:
            self._tie_uses(self._matrices[name], (rows, columns))
        elif parameter.trainable:
            self._matrices[name] = rows, columns
            flat = Labels(*(part.reshape(-1) for part in columns))
            self.slots.append(Slot(name, "row", 1, rows, reads=rows_read))
            self.slots.append(Slot(name, "column", groups, flat, reads=not rows_read))
        else:
            self._tie_uses((zeros(rows.var.shape), zeros(columns.var.shape)), (rows, columns))

    def _tie_uses(self, first: tuple[Labels, Labels], second: tuple[Labels, Labels]) -> None:
        """rows + columns agree for all i, j, g: they may differ by a number traded per group."""
        if first[1].var.shape != second[1].var.shape:
            for part in (*first, *second):
                self.pin(part, "its parameter is used in two different ways")
            return
        groups = second[1].var.shape[0]
        traded = self.system.fresh((groups, 1))
        per_group = [Labels(*(p.reshape(groups, -1) for p in use[0])) for use in (first, second)]
        self.system.vanishing_sum(per_group[0], per_group[1].times(-1), traded.times(-1))
        self.system.vanishing_sum(first[1], second[1].times(-1), traded)

    def _affine(self, weight: Value, bias: Value, shape: torch.Size | list[int]) -> Labels:
        """Output labels of a normalisation: those of its gain, which its bias must share."""
        labels = self.elements(weight) if weight is not None else zeros(shape)
        if bias is not None:
            self.system.tie(labels, self.elements(bias))
        return labels

    # ------------------------------------------------------------------ linear maps

    def op_linear(self, x: Value, weight: Value, bias: Value) -> Value:
        x = self.elements(x)
        if not isinstance(weight, Parameter) or len(weight.shape) != 2:
            return self._weight_from_elsewhere(x, weight, bias)
        columns = self.per_channel(x, -1).times(-1)
        out = self.system.fresh(self.shape[-1:])
        if weight.transposed:
            self.matrix(weight, columns, _row(out), rows_read=True)
        else:
            self.matrix(weight, out, _row(columns))
        self._bias(bias, out)
        return self.along(out, -1)

    def op_matmul(self, x: Value, other: Value) -> Value:
        if isinstance(other, Parameter) and len(other.shape) == 2 and len(self.shape) > 1:
            return self.op_linear(x, replace(other, transposed=not other.transposed), None)
        return self.op_bmm(x, other)

    def op_mm(self, x: Value, mat2: Value) -> Value:
        return self.op_matmul(x, mat2)

    def op_conv1d(self, x: Value, weight: Value, bias: Value, groups: int, **_: Any) -> Value:
        x, channels = self.elements(x), -1 - self.spatial_axes()
        if not isinstance(weight, Parameter):
            return self._weight_from_elsewhere(x, weight, bias)
        columns = self.per_channel(x, channels).times(-1)
        out = self.system.fresh(self.shape[channels : channels + 1])
        self.matrix(weight, out, Labels(*(part.reshape(groups, -1) for part in columns)))
        self._bias(bias, out)
        return self.along(out, channels)

    op_conv2d = op_conv3d = op_conv1d

    def op_conv_transpose1d(
        self, x: Value, weight: Value, bias: Value, groups: int, **_: Any
    ) -> Value:
        x, channels = self.elements(x), -1 - self.spatial_axes()
        if not isinstance(weight, Parameter):
            return self._weight_from_elsewhere(x, weight, bias)
        rows = self.per_channel(x, channels).times(-1)
        out = self.system.fresh(self.shape[channels : channels + 1])
        columns = Labels(*(part.reshape(groups, -1) for part in out))
        self.matrix(weight, rows, columns, rows_read=True)
        self._bias(bias, out)
        return self.along(out, channels)

    op_conv_transpose2d = op_conv_transpose3d = op_conv_transpose1d

    def op_embedding(
        self, weight: Value, indices: Value, padding_idx: int, scale_grad_by_freq: bool, **_: Any
    ) -> Value:
        if not isinstance(weight, Parameter) or weight.transposed or scale_grad_by_freq:
            return None
        if padding_idx >= 0 and not self._padding_stays_zero(weight, padding_idx):
            return None
        out = self.system.fresh(self.shape[-1:])
        self.matrix(weight, zeros(weight.shape[:1]), _row(out), rows_read=True)
        return self.along(out, -1)

    def _padding_stays_zero(self, weight: Parameter, row: int) -> bool:
        """Whether a row that gets no gradient is zero and thus has any scale."""
        return weight.uses == 1 and not bool(self.graph.weights[weight.name][row].any())

    def _bias(self, bias: Value, out: Labels) -> None:
        if bias is not None:
            self.system.tie(self.elements(bias), out)

    def _weight_from_elsewhere(self, x: Labels, weight: Value, bias: Value) -> Value:
        """A weight that is computed, not a parameter itself."""
        self.pin(x, "the weight that reads it is not a plain parameter")
        for part in (weight, bias):
            self.pin(self.elements(part), "it is part of a weight that is computed")
        return zeros(self.shape)

    # ------------------------------------------------------------------ normalisation

    def op_batch_norm(
        self,
        x: Value,
        weight: Value,
        bias: Value,
        running_mean: Value,
        running_var: Value,
        training: bool,
        **_: Any,
    ) -> Value:
        self.per_channel(self.elements(x), 1)
        if not training:
            for part in (x, running_mean, running_var):
                self.pin(self.elements(part), "normalisation with fixed statistics keeps scales")
        return self.along(self._affine(weight, bias, self.shape[1:2]), 1)

    def op_instance_norm(self, use_input_stats: bool, **operands: Any) -> Value:
        return self.op_batch_norm(training=use_input_stats, **operands)

    def op_layer_norm(
        self, x: Value, normalized_shape: list[int], weight: Value, bias: Value, **_: Any
    ) -> Value:
        axes = len(normalized_shape)
        self.common(self.elements(x), range(-axes, 0))
        return self.expanded(self._affine(weight, bias, normalized_shape))

    def op_rms_norm(self, x: Value, normalized_shape: list[int], weight: Value, **_: Any) -> Value:
        return self.op_layer_norm(x, normalized_shape, weight, None)

    def op_group_norm(
        self, x: Value, num_groups: int, weight: Value, bias: Value, **_: Any
    ) -> Value:
        channels = self.per_channel(self.elements(x), 1)
        groups = Labels(*(part.reshape(num_groups, -1) for part in channels))
        self.common(groups, [1])
        return self.along(self._affine(weight, bias, self.shape[1:2]), 1)

    # ------------------------------------------------------------------ element-wise maps

    def op_relu(self, x: Value, **_: Any) -> Value:
        """Every positively homogeneous map of degree 1."""
        return self.elements(x)

    op_leaky_relu = op_abs = op_neg = op_dropout = op_feature_dropout = op_relu

    def op_prelu(self, x: Value, weight: Value) -> Value:
        self.pin(self.elements(weight), "the slope of an activation has no scale of its own")
        return self.elements(x)

    def op_square(self, x: Value) -> Value:
        return self.elements(x).times(2)

    def op_sqrt(self, x: Value) -> Value:
        return self.elements(x).times(0.5)

    def op_rsqrt(self, x: Value) -> Value:
        return self.elements(x).times(-0.5)

    def op_reciprocal(self, x: Value) -> Value:
        return self.elements(x).times(-1)

    def op_pow(self, x: Value, exponent: Value) -> Value:
        if not isinstance(exponent, (int, float)) or isinstance(x, (int, float)):
            return None
        return self.elements(x).times(exponent)

    def op_clamp(self, x: Value, min: Value = None, max: Value = None) -> Value:
        bounds = [bound for bound in (min, max) if bound is not None]
        if not all(isinstance(bound, (int, float)) for bound in bounds):
            return None
        guard = max is None and is_guard(self._node, min)
        return self.elements(x) if guard or not any(bounds) else None

    op_clamp_min = op_clamp_max = op_clamp

    def op_add(self, x: Value, other: Value, alpha: float = 1) -> Value:
        if isinstance(other, (int, float)):
            harmless = other * alpha == 0 or is_guard(self._node, other * alpha)
            return self.elements(x) if harmless else None
        return self.op_maximum(x, other)

    def op_sub(self, x: Value, other: Value, **_: Any) -> Value:
        if isinstance(other, (int, float)):
            return self.elements(x) if other == 0 else None
        return self.op_maximum(x, other)

    def op_maximum(self, x: Value, other: Value) -> Value:
        left, right = self.expanded(self.elements(x)), self.expanded(self.elements(other))
        self.system.tie(left, right)
        return left

    op_minimum = op_maximum

    def op_mul(self, x: Value, other: Value) -> Value:
        return self._product(x, other, 1)

    def op_div(self, x: Value, other: Value, rounding_mode: str | None = None) -> Value:
        return None if rounding_mode else self._product(x, other, -1)

    def _product(self, x: Value, other: Value, power: int) -> Value:
        left, right = self.elements(x), self.elements(other).times(power)
        if isinstance(other, (int, float)) or right.vanish:
            return self.expanded(left)
        if left.vanish:
            return self.expanded(right)
        left, right = left.shrink(), right.shrink()
        product = self.system.fresh(broadcast(left.var, right.var)[0].shape)
        self.system.vanishing_sum(left, right, product.times(-1))
        return self.expanded(product)

    # ------------------------------------------------------------------ reductions, joins

    def op_mean(self, x: Value, dim: Dims = None, **_: Any) -> Value:
        return self.reduced(self.elements(x), dim)

    op_sum = op_std = op_mean

    def op_var(self, x: Value, dim: Dims = None, **_: Any) -> Value:
        return self.reduced(self.elements(x), dim).times(2)

    def op_linalg_vector_norm(self, x: Value, ord: float = 2, dim: Dims = None, **_: Any) -> Value:
        return self.reduced(self.elements(x), dim) if ord != 0 else zeros(self.shape)

    def op_max_pool2d(self, x: Value, **options: Any) -> Value:
        """Every pooling and resampling that mixes places but not channels."""
        return self.pooled(self.elements(x), **options)

    op_max_pool1d = op_max_pool3d = op_avg_pool1d = op_avg_pool2d = op_avg_pool3d = op_max_pool2d
    op_adaptive_avg_pool1d = op_adaptive_avg_pool2d = op_adaptive_avg_pool3d = op_max_pool2d
    op_upsample_nearest2d = op_upsample_bilinear2d = op_max_pool2d

    def op_adaptive_max_pool2d(self, x: Value, **options: Any) -> Value:
        return [self.pooled(self.elements(x), **options), None]  # beside the places

    op_adaptive_max_pool1d = op_adaptive_max_pool3d = op_adaptive_max_pool2d
    op_max_pool2d_with_indices = op_adaptive_max_pool2d
    op_max_pool1d_with_indices = op_max_pool3d_with_indices = op_adaptive_max_pool2d

    def op_pad(
        self, x: Value, pad: list[int], mode: str = "constant", value: Value = None
    ) -> Value:
        if mode != "constant" or value not in (None, 0):
            return None
        labels = self.elements(x)
        var = nn.functional.pad(labels.var, pad, value=-1)
        border = var == -1  # the zeros there may be scaled by anything
        free = self.system.fresh((int(border.sum()),)).var
        return Labels(
            var.masked_scatter(border, free), nn.functional.pad(labels.coef, pad, value=1.0)
        )

    op_constant_pad_nd = op_pad


def _row(vector: Labels) -> Labels:
    """[J] as [1, J]: the columns of a weight without groups."""
    return Labels(*(part[None] for part in vector))
