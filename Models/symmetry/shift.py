"""Shift labels: by how much may every parameter be moved, so that the loss stays the same?

An activation may move where everything that reads it ignores the move: a softmax over classes
ignores a common shift of the logits, layer and group normalisation one of their group, batch
normalisation a constant per channel. A direction c along which the loss is flat has
``⟨c, g⟩ = 0`` and the charge ``s = ⟨c, θ⟩`` (Kunin et al. 2021, section 3).

Two kinds of writers move an activation. A bias moves it by a constant. A column ``W[:, j]``
moves it by a multiple of its input ``x_j``, different for every example and place: a function
that stands here as independent random numbers φ, so that a relation holds for them only if it
holds for all inputs. Different weights read different functions, hence one pass for each.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx, nn

from Models.symmetry.export import ExportedGraph, Parameter
from Models.symmetry.labels import Labels, broadcast, zeros
from Models.symmetry.propagation import Dims, Propagation, Value


@dataclass(frozen=True)
class Written:
    """Shifts that a parameter can write.

    Attributes:
        parameter: its name.
        axis: the parameter's axis that the labels run over; None where each element has one.
        labels: one per entry of that axis, or per element.
    """

    parameter: str
    axis: int | None
    labels: Labels


class ShiftPropagation(Propagation):
    """Shifts of every activation, with one set of parameters allowed to move.

    Args:
        graph: the exported model.
        invariant_logits: whether the loss ignores a common shift of the logits.
        weight: the node of the one weight that moves; without it, all biases move.

    Attributes:
        written: the parameters that move, in the graph's order.
    """

    quantity: ClassVar[str] = "shift"

    def __init__(self, graph: ExportedGraph, invariant_logits: bool, weight: fx.Node | None = None):
        super().__init__(graph)
        self.written: list[Written] = []
        self._invariant_logits = invariant_logits
        self._weight = weight
        self._vectors: dict[str, Labels] = {}
        self._held: set[str] = set()

    def output(self, x: Labels) -> None:
        if self._invariant_logits and x.var.dim() > 1 and len(self.graph.outputs) == 1:
            self.common(x, [1])
        else:
            self.pin(x, "the loss fixes the model's output")

    def run(self) -> None:
        """Carry labels through the graph; in the pass of one weight, from there on."""
        if self._weight is None:
            super().run()
            return
        moving: set[fx.Node] = set()
        for node in self.graph.nodes[self.graph.position[self._weight] :]:
            if node is self._weight or not moving.isdisjoint(node.all_input_nodes):
                self.visit(node)
                if node.op == "call_function" and self._moves(self.value(node)):
                    moving |= {node, self.graph.origin(node)}

    @staticmethod
    def _moves(value: Value) -> bool:
        parts = value if isinstance(value, list) else [value]
        return any(isinstance(part, Labels) and not part.vanish for part in parts)

    # ------------------------------------------------------------------ writers

    def vector(self, parameter: Parameter) -> Labels:
        name = parameter.name
        if not parameter.trainable or self._weight is not None or name in self._held:
            return zeros(parameter.shape)
        if name not in self._vectors:
            self._vectors[name] = self.system.fresh(parameter.shape)
            flat = Labels(*(part.reshape(-1) for part in self._vectors[name]))
            self.written.append(Written(name, None, flat))
        return self._vectors[name]

    def _hold(self, *values: Value) -> None:
        """State that operands do not move: parameters not anywhere, others not here."""
        for value in values:
            if isinstance(value, Parameter):
                self._held.add(value.name)
                value = self._vectors.get(value.name)
            if isinstance(value, Labels):
                self.pin(value)

    def _bias(self, bias: Value, dim: int) -> Labels:
        """What a bias along one axis writes on the current result."""
        if bias is None:
            return zeros(self.shape)
        return self.along(self.elements(bias), dim)

    def _weight_column(self, weight: Parameter, axis: int, dim: int, groups: int) -> Labels:
        """What moving a weight's column writes: a coefficient per channel times φ."""
        if not weight.trainable or weight.uses > 1:
            return zeros(self.shape)
        dim %= len(self.shape)
        channels = self.shape[dim]
        coefficients = self.system.fresh((channels,))
        self.written.append(Written(weight.name, axis, coefficients))
        sizes = list(self.shape)
        sizes[dim] = groups
        generator = torch.Generator().manual_seed(0)
        phi = torch.rand(sizes, generator=generator, dtype=torch.float64) + 0.5
        if groups > 1:
            phi = phi.repeat_interleave(channels // groups, dim)
        return self.along(coefficients, dim).times(phi)

    def _linear_map(
        self, x: Value, weight: Value, bias: Value, axis: int, dim: int, groups: int = 1
    ) -> Value:
        self.pin(self.elements(x))
        if self._node is self._weight and isinstance(weight, Parameter):
            return self._weight_column(weight, axis, dim, groups)
        self._hold(weight)
        return self._bias(bias, dim)

    def op_linear(self, x: Value, weight: Value, bias: Value) -> Value:
        if isinstance(weight, Parameter) and len(weight.shape) != 2:
            return None
        axis = int(isinstance(weight, Parameter) and weight.transposed)
        return self._linear_map(x, weight, bias, axis, -1)

    def op_matmul(self, x: Value, other: Value) -> Value:
        if isinstance(other, Parameter) and len(other.shape) == 2 and len(self.shape) > 1:
            return self._linear_map(x, other, None, int(not other.transposed), -1)
        return self.op_bmm(x, other)

    def op_bmm(self, x: Value, mat2: Value) -> Value:
        """Where all columns of the second factor move alike, so do those of the product.

        By how much depends on the first factor, which stands here as random numbers.
        """
        if isinstance(x, Parameter) or isinstance(mat2, Parameter):
            return None
        left, right = self.elements(x), self.elements(mat2)
        if not right.constant_along(-1):
            return None
        self.pin(left)
        rows, terms = left.var.shape[-2:]
        generator = torch.Generator().manual_seed(0)
        phi = torch.rand((rows, terms), generator=generator, dtype=torch.float64) + 0.5
        moves = [Labels(*(part[..., i : i + 1, :1] for part in right)) for i in range(terms)]
        sizes = [*broadcast(moves[0].var, phi[:, :1])[0].shape]
        product = self.system.fresh(sizes)
        moved = (move.times(phi[:, i : i + 1]) for i, move in enumerate(moves))
        self.system.vanishing_sum(*moved, product.times(-1))
        return self.expanded(product)

    def op_mm(self, x: Value, mat2: Value) -> Value:
        return self.op_matmul(x, mat2)

    def op_conv1d(self, x: Value, weight: Value, bias: Value, groups: int, **_: Any) -> Value:
        return self._linear_map(x, weight, bias, 0, -1 - self.spatial_axes(), groups)

    op_conv2d = op_conv3d = op_conv1d

    def op_conv_transpose1d(
        self, x: Value, weight: Value, bias: Value, groups: int, **_: Any
    ) -> Value:
        if groups != 1 and self._node is self._weight:
            return zeros(self.shape)
        return self._linear_map(x, weight, bias, 1, -1 - self.spatial_axes())

    op_conv_transpose2d = op_conv_transpose3d = op_conv_transpose1d

    def op_embedding(
        self, weight: Value, indices: Value, padding_idx: int, scale_grad_by_freq: bool, **_: Any
    ) -> Value:
        if not isinstance(weight, Parameter) or weight.transposed:
            return None
        if self._node is self._weight:
            return self._weight_column(weight, 1, -1, 1)
        self._hold(weight)
        whole = padding_idx < 0 and not scale_grad_by_freq  # every row has its true gradient
        if self._weight is not None or not weight.trainable or weight.uses > 1 or not whole:
            return zeros(self.shape)
        columns = self.system.fresh(self.shape[-1:])
        self.written.append(Written(weight.name, 1, columns))
        return self.along(columns, -1)

    # ------------------------------------------------------------------ what ignores shifts

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
        labels = self.elements(x)
        self._hold(weight)
        if training:
            self.per_channel(labels, 1)
        else:
            self._hold(labels, running_mean, running_var)
        return self._bias(bias, 1)

    def op_instance_norm(
        self,
        x: Value,
        weight: Value,
        bias: Value,
        running_mean: Value,
        running_var: Value,
        use_input_stats: bool,
        **_: Any,
    ) -> Value:
        labels = self.elements(x)
        self._hold(weight)
        if use_input_stats:
            self.common(labels, range(2, labels.var.dim()))
        else:
            self._hold(labels, running_mean, running_var)
        return self._bias(bias, 1)

    def op_layer_norm(
        self, x: Value, normalized_shape: list[int], weight: Value, bias: Value, **_: Any
    ) -> Value:
        self._hold(weight)
        self.common(self.elements(x), range(-len(normalized_shape), 0))
        return self.expanded(self.elements(bias))

    def op_group_norm(
        self, x: Value, num_groups: int, weight: Value, bias: Value, **_: Any
    ) -> Value:
        self._hold(weight)
        labels = self.elements(x).shrink()
        batch, channels, *_places = labels.var.shape
        if channels == self.shape[1]:
            self.common(Labels(*(p.reshape(batch, num_groups, -1) for p in labels)), [2])
        else:  # nothing varies over channels
            self.common(labels, range(2, labels.var.dim()))
        return self._bias(bias, 1)

    def op_rms_norm(self, x: Value, weight: Value, **_: Any) -> Value:
        self._hold(weight)
        return self.pin(self.elements(x))

    def op_scaled_dot_product_attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        attn_mask: Value = None,
        dropout_p: float = 0.0,
        enable_gqa: bool = False,
        **_: Any,
    ) -> Value:
        """Moving all keys alike moves all scores of a query alike, which the softmax ignores;
        moving all values alike moves every weighted mean of them."""
        self._hold(query, attn_mask)
        if dropout_p:
            self._hold(value)
        self.common(self.elements(key), [-2])
        means = self.common(self.elements(value), [-2])
        return self.expanded(self.for_each_query(means, query) if enable_gqa else means)

    def op_softmax(self, x: Value, dim: int, **_: Any) -> Value:
        self.common(self.elements(x), [dim])
        return zeros(self.shape)

    op_log_softmax = op_softmax

    def op_var(self, x: Value, dim: Dims = None, **_: Any) -> Value:
        self.reduced(self.elements(x), dim)
        return zeros(self.shape)

    op_std = op_var

    # ------------------------------------------------------------------ what passes shifts on

    def op_add(self, x: Value, other: Value, alpha: float = 1, **_: Any) -> Value:
        return self._sum(self.elements(x), self.elements(other).times(alpha))

    def op_sub(self, x: Value, other: Value, alpha: float = 1, **_: Any) -> Value:
        return self._sum(self.elements(x), self.elements(other).times(-alpha))

    def _sum(self, left: Labels, right: Labels) -> Labels:
        if right.vanish:
            return self.expanded(left)
        if left.vanish:
            return self.expanded(right)
        left, right = left.shrink(), right.shrink()
        total = self.system.fresh(broadcast(left.var, right.var)[0].shape)
        self.system.vanishing_sum(left, right, total.times(-1))
        return self.expanded(total)

    def op_neg(self, x: Value) -> Value:
        return self.elements(x).times(-1)

    def op_mul(self, x: Value, other: Value) -> Value:
        return self.elements(x).times(other) if isinstance(other, (int, float)) else None

    def op_div(self, x: Value, other: Value, rounding_mode: str | None = None) -> Value:
        plain = isinstance(other, (int, float)) and not rounding_mode
        return self.elements(x).times(1 / other) if plain else None

    def op_dropout(self, x: Value, p: float, train: bool, **_: Any) -> Value:
        return None if train and p > 0 else self.elements(x)

    op_feature_dropout = op_dropout

    def op_mean(self, x: Value, dim: Dims = None, **_: Any) -> Value:
        labels = self.elements(x)
        axes = range(labels.var.dim()) if dim in (None, []) else _as_list(dim)
        dims = [d % labels.var.dim() for d in axes]
        small = labels.shrink()
        moved = [part.movedim(dims, list(range(len(dims)))) for part in small]
        var, coef = (part.flatten(0, len(dims) - 1) for part in moved)
        mean = self.system.fresh(var.shape[1:])
        terms = [Labels(v, c / len(var)) for v, c in zip(var, coef, strict=True)]
        self.system.vanishing_sum(*terms, mean.times(-1))
        sizes = [1 if d in dims else n for d, n in enumerate(small.var.shape)]
        full = [1 if d in dims else n for d, n in enumerate(labels.var.shape)]
        return Labels(*(part.reshape(sizes).expand(full).reshape(self.shape) for part in mean))

    def op_sum(self, x: Value, dim: Dims = None, **_: Any) -> Value:
        labels = self.elements(x)
        return self.op_mean(labels, dim).times(labels.var.numel() / self.shape.numel())

    def op_max_pool2d(self, x: Value, **options: Any) -> Value:
        """The largest of several moves with them if they move together."""
        return self.pooled(self.elements(x), **options)

    op_max_pool1d = op_max_pool3d = op_max_pool2d

    def op_adaptive_max_pool2d(self, x: Value, **options: Any) -> Value:
        return [self.pooled(self.elements(x), **options), None]  # beside the places

    op_adaptive_max_pool1d = op_adaptive_max_pool3d = op_adaptive_max_pool2d
    op_max_pool2d_with_indices = op_adaptive_max_pool2d
    op_max_pool1d_with_indices = op_max_pool3d_with_indices = op_adaptive_max_pool2d

    def op_avg_pool2d(
        self, x: Value, padding: list[int], divisor_override: int | None = None, **options: Any
    ) -> Value:
        whole = not any(padding) and not divisor_override
        return self.pooled(self.elements(x), padding=padding, **options) if whole else None

    op_avg_pool1d = op_avg_pool3d = op_avg_pool2d

    def op_adaptive_avg_pool2d(self, x: Value, output_size: list[int]) -> Value:
        if all(size == 1 for size in output_size):
            return self.op_mean(x, list(range(-len(output_size), 0)))
        return self.pooled(self.elements(x), output_size=output_size)

    op_adaptive_avg_pool1d = op_adaptive_avg_pool3d = op_adaptive_avg_pool2d

    def op_pad(
        self, x: Value, pad: list[int], mode: str = "constant", value: Value = None
    ) -> Value:
        if mode != "constant":
            return None
        labels = self.elements(x)
        var = nn.functional.pad(labels.var, pad)
        return Labels(var, nn.functional.pad(labels.coef, pad, value=1.0))

    op_constant_pad_nd = op_pad


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
