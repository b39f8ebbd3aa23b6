"""Walks a model's exported graph and carries labels through it.

:class:`Propagation` knows what holds for every kind of label: where parameters enter, which
operations only move elements around, what in-place operations do, and that an operation nobody
described pins what it touches. Its subclasses add the rules of scales and of shifts, each a
method ``op_<aten name>`` whose arguments are the operator's own, by name.

Labels describe gradients: a quantity through which no gradient flows (integers, booleans,
detached tensors) is a constant whose labels are zero, whatever it was computed from.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from Models.symmetry.export import (
    IDENTITIES,
    MOVES,
    TRANSPOSES,
    VIEWS,
    ExportedGraph,
    Parameter,
    operation,
    written_operands,
)
from Models.symmetry.labels import Labels, LabelSystem, unexpanded, zeros

Value = Any
"""What a node holds: Labels, a Parameter, a list of these, or a number or None."""

Dims = int | list[int] | None
"""The axes of a reduction, as ATen passes them."""

_FIRST = {"self": "x", "input": "x"}  # every rule calls its first operand x

_MOST_PLACES = 1024  # where more places have labels of their own, a pooling ties them all

_PLAIN_NAMES = {  # of operations whose own names would not help a user
    "wrap_with_set_grad_enabled": "a block without gradients",
    "wrap_with_autocast": "an autocast block",
    "learning_mechanics.custom_gradient.default": "a custom gradient",
    "scaled_dot_product_attention": "softmax attention",
}


class Propagation:
    """One pass of labels through a graph.

    Attributes:
        system: the relations collected so far.
    """

    #: what these labels measure, for the reasons given to the user
    quantity: ClassVar[str]

    def __init__(self, graph: ExportedGraph):
        self.system = LabelSystem()
        self.graph = graph
        self._values: dict[fx.Node, Value] = {}
        self._node: fx.Node

    def run(self) -> None:
        """Carry labels from the inputs to the outputs, collecting relations."""
        for node in self.graph.nodes:
            self.visit(node)

    def visit(self, node: fx.Node) -> None:
        """Carry labels through one node."""
        self._node = node
        if node.op == "call_function":
            self._values[self.graph.origin(node)] = self._call(node)
        elif node.op == "output":
            for result in node.all_input_nodes:
                if result.name in self.graph.outputs:
                    self.output(self.elements(self.value(result)))

    # ------------------------------------------------------------------ for the rules

    @property
    def shape(self) -> torch.Size:
        """The shape of the current node's result, the first if it has several."""
        value = self._node.meta["val"]
        shape: torch.Size = (value if isinstance(value, Tensor) else value[0]).shape
        return shape

    def elements(self, value: Value) -> Labels:
        """Labels of each element of an operand; parameters get theirs here."""
        if isinstance(value, Parameter):
            labels = self.vector(value)
            return Labels(labels.var.t(), labels.coef.t()) if value.transposed else labels
        if isinstance(value, Labels):
            return value
        return zeros(())

    def vector(self, parameter: Parameter) -> Labels:
        """Labels of a parameter that is used element by element."""
        raise NotImplementedError

    def output(self, x: Labels) -> None:
        """State what the loss asks of the model's output."""
        raise NotImplementedError

    def pin(self, x: Labels, reason: str = "") -> Labels:
        """State that these labels vanish; returns labels that do."""
        self.system.pin(x, reason or self._reason())
        return zeros(x.var.shape)

    def common(self, x: Labels, dims: Iterable[int]) -> Labels:
        """Tie the labels along some axes; returns one label per remaining place (axes of 1)."""
        first, small = x, x.shrink()
        for dim in dims:
            first = Labels(*(part.narrow(dim, 0, 1) for part in first))
        first = first.shrink()
        if small.var.shape != first.var.shape:
            self.system.tie(small, first)
            self._replace(x, Labels(*(part.expand(x.var.shape) for part in first)))
        return first

    def _replace(self, x: Labels, tied: Labels) -> None:
        """Let later operations see an operand's labels as fewer different ones."""
        for node in map(self.graph.origin, self._node.all_input_nodes):
            if self._values.get(node) is x:
                self._values[node] = tied

    def per_channel(self, x: Labels, dim: int) -> Labels:
        """Tie the labels along every axis but ``dim``; returns a vector [channels]."""
        dim %= x.var.dim()
        tied = self.common(x, (d for d in range(x.var.dim()) if d != dim))
        size = x.var.shape[dim]
        return Labels(*(part.reshape(-1).expand(size) for part in tied))

    def along(self, vector: Labels, dim: int) -> Labels:
        """Labels of the current result's shape that vary along ``dim`` alone."""
        sizes = [1] * len(self.shape)
        sizes[dim] = -1
        return Labels(*(part.reshape(sizes).expand(self.shape) for part in vector))

    def expanded(self, x: Labels) -> Labels:
        """The labels broadcast to the current result's shape."""
        return Labels(*(part.expand(self.shape) for part in x))

    def reduced(self, x: Labels, dim: Dims) -> Labels:
        """Tie the labels along the reduced axes; returns labels of the result's shape."""
        sizes = list(x.var.shape)
        dims = [dim] if isinstance(dim, int) else list(dim or range(len(sizes)))
        tied = self.common(x, dims)
        for d in dims:
            sizes[d] = 1
        return Labels(*(part.expand(sizes).reshape(self.shape) for part in tied))

    def pooled(self, x: Labels, **options: Any) -> Labels:
        """Tie the labels of all places that a place of the result depends on.

        Args:
            x: of the current pooling's or resampling's operand.
            options: the operation's other arguments.
        """
        axes = self.spatial_axes()
        count = x.var.shape[-axes:].numel()
        alike = all(x.constant_along(-axis) for axis in range(1, axes + 1))
        if alike or count > _MOST_PLACES:
            return self.expanded(self.common(x, range(-axes, 0)))
        target: Any = self._node.target
        one_place_each = torch.eye(count).reshape(count, 1, *x.var.shape[-axes:])
        reached = pytree.tree_leaves(target(one_place_each, **options))[0]
        reads = reached.reshape(count, -1) != 0  # [places, places of the result]
        first = reads.int().argmax(0)
        source, result = reads.nonzero(as_tuple=True)
        flat = Labels(*(part.flatten(-axes) for part in x))
        places = (Labels(*(part[..., i] for part in flat)) for i in (source, first[result], first))
        self.system.tie(next(places), next(places))
        return Labels(*(part.reshape(self.shape) for part in next(places)))

    def for_each_query(self, part: Labels, query: Value) -> Labels:
        """Heads of keys or values [H, …, …], repeated for the query heads that share them."""
        times = self.elements(query).var.shape[-3] // part.var.shape[-3]
        return Labels(*(torch.repeat_interleave(x, times, -3) for x in part))

    def spatial_axes(self) -> int:
        """Of a convolution or pooling, by its name: the channels come right before these."""
        found = re.search(r"(\d)d", operation(self._node).name)
        return int(found[1])  # type: ignore[index]

    def op_cat(self, tensors: list[Value], dim: int = 0) -> Value:
        dim %= len(self.shape)
        parts = [self.elements(tensor) for tensor in tensors]
        return Labels(*(self._concatenated(same, dim) for same in zip(*parts, strict=True)))

    def _concatenated(self, tensors: Iterable[Tensor], dim: int) -> Tensor:
        """The tensors side by side; axes on which none of them varies stay expanded."""
        small = [unexpanded(tensor, but=dim) for tensor in tensors]
        sizes = [max(sizes) for sizes in zip(*(x.shape for x in small), strict=True)]
        aligned = (x.expand([*sizes[:dim], x.shape[dim], *sizes[dim + 1 :]]) for x in small)
        return torch.cat(list(aligned), dim).expand(self.shape)

    def op_stack(self, tensors: list[Value], dim: int = 0) -> Value:
        dim %= len(self.shape)
        parts = (self.elements(tensor) for tensor in tensors)
        return self.op_cat([Labels(*(x.unsqueeze(dim) for x in part)) for part in parts], dim)

    def op_amax(self, x: Value, dim: Dims = None, **_: Any) -> Value:
        return self.reduced(self.elements(x), dim)

    op_amin = op_amax

    def op_max(self, x: Value, dim: int | None = None, **others: Any) -> Value:
        if "other" in others:
            return getattr(self, "op_maximum", lambda *_: None)(x, others["other"])
        largest = self.op_amax(x, dim)
        return largest if dim is None else [largest, None]  # beside the places

    op_min = op_max

    def op_detach(self, *_: Value, **__: Value) -> Value:
        """Whatever lets no gradient through."""
        return zeros(self.shape)

    op_zeros_like = op_ones_like = op_full_like = op_empty_like = op_detach
    op_rand_like = op_randn_like = op_detach
    op_new_zeros = op_new_ones = op_new_full = op_new_empty = op_detach

    # ------------------------------------------------------------------ the walk

    def _placeholder(self, node: fx.Node) -> Value:
        if node.name in self.graph.parameters:
            return self.graph.parameters[node.name]
        return self._zero_like(node.meta.get("val"))

    def value(self, node: fx.Node) -> Value:
        """What a node holds now: zeros where nothing was carried, None for what is no tensor."""
        node = self.graph.origin(node)
        if node not in self._values:
            self._values[node] = self._placeholder(node)
        return self._values[node]

    def _call(self, node: fx.Node) -> Value:
        if node in self.graph.exposed:  # it changes elements that other nodes also hold
            self._pin_values(self.graph.exposed[node])
            result = self._unknown(node)
            for written in written_operands(node):
                self._values[self.graph.origin(written)] = self._zero_like(written.meta.get("val"))
            return result
        return self._apply(operation(node).name, node)

    def _apply(self, name: str, node: fx.Node) -> Value:
        """The result of an operation by its rule, or as unknown where no rule fits."""
        value, schema = node.meta.get("val"), getattr(node.target, "_schema", None)
        if schema is not None and not schema.returns:
            return None  # an assertion
        if isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()):
            return zeros(value.shape)
        before = self.system.count
        try:
            result = self._by_rule(name, node)
        except Exception:  # operands of a shape or kind that the rule does not foresee
            self.system.pin_since(before, self._reason())
            result = None
        return self._unknown(node) if result is None else result

    def _by_rule(self, name: str, node: fx.Node) -> Value | None:
        """The result of a described operation; None if it, or this use of it, is not described."""
        if "getitem" in name:
            return self.value(node.args[0])[node.args[1]]  # type: ignore[arg-type]
        arguments = self._arguments(node)
        if name in IDENTITIES:
            return next(iter(arguments.values()))
        if name in VIEWS:
            if "dtype" in arguments:
                return None
            return self._moved(next(iter(arguments.values())), lambda x: x.reshape(self.shape))
        if name in MOVES:
            return self._structural(name, node, arguments)
        rule: Callable[..., Value] | None = getattr(self, f"op_{name}", None)
        return None if rule is None else rule(**arguments)

    def _arguments(self, node: fx.Node) -> dict[str, Value]:
        """The operands by the names of the operator's schema, defaults included."""
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return {}
        given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
        given |= node.kwargs
        bound = {a.name: given.get(a.name, a.default_value) for a in schema.arguments}
        return {
            _FIRST.get(name, name): fx.map_arg(value, self.value) for name, value in bound.items()
        }

    def _structural(self, name: str, node: fx.Node, arguments: dict[str, Value]) -> Value:
        (_, value), *rest = arguments.items()
        target: Any = node.target
        if isinstance(value, Parameter) and len(value.shape) == 2 and name in TRANSPOSES:
            probe = torch.empty(1, 2, device="meta")
            swapped = target(probe, **dict(rest)).shape != probe.shape
            return replace(value, transposed=value.transposed != swapped)
        if "other" in dict(rest):  # of expand_as
            return self._moved(value, lambda x: x.expand(self.shape))
        return self._moved(value, lambda x: target(x, **dict(rest)))

    def _moved(self, value: Value, move: Callable[[Tensor], Any]) -> Value:
        labels = self.elements(value)
        var, coef = move(labels.var), move(labels.coef)
        if isinstance(var, Tensor):
            return Labels(var, coef)
        return [Labels(v, c) for v, c in zip(var, coef, strict=True)]

    def _unknown(self, node: fx.Node) -> Value:
        """Pin every operand: what is not understood can only lose laws, never invent them."""
        self._pin_values(node.all_input_nodes)
        return self._zero_like(node.meta.get("val"))

    def _pin_values(self, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            held = self.value(node)
            for value in held if isinstance(held, list) else [held]:
                if isinstance(value, (Labels, Parameter)):
                    self.pin(self.elements(value))

    def _reason(self) -> str:
        """Why the current operation pins a label."""
        name = operation(self._node).name
        return f"{_PLAIN_NAMES.get(name, name)} does not preserve its {self.quantity}"

    def _zero_like(self, value: Any) -> Value:
        if isinstance(value, Tensor):
            return zeros(value.shape)
        if isinstance(value, (list, tuple)):
            return [self._zero_like(v) for v in value]
        return None
