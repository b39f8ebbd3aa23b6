"""Walks a model's exported graph and carries labels through it.

:class:`Propagation` knows what holds for every kind of label: where parameters enter, which
operations only move elements around, what in-place operations do, and that an operation nobody
described pins what it touches. Its subclasses add the rules of scales and of shifts, each a
method ``op_<aten name>`` whose arguments are the operator's own, by name.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from Models.symmetry.labels import Labels, LabelSystem, zeros


@dataclass(frozen=True)
class Parameter:
    """A parameter as the graph uses it.

    Attributes:
        name: as in ``named_parameters``.
        shape: as in ``named_parameters``.
        trainable: whether it changes in training.
        uses: how many operations read it.
        transposed: whether the graph reads the transpose of the matrix.
    """

    name: str
    shape: torch.Size
    trainable: bool
    uses: int
    transposed: bool = False


Value = Any
"""What a node holds: Labels, a Parameter, a list of these, or a number or None."""

Dims = int | list[int] | None
"""The axes of a reduction, as ATen passes them."""

# Operations that only move elements: executed on the label tensors themselves.
_MOVES = """flatten permute transpose t unsqueeze squeeze expand slice select unbind split chunk
    split_with_sizes narrow movedim swapaxes repeat roll flip unflatten pixel_shuffle
    pixel_unshuffle channel_shuffle"""
_STRUCTURAL = frozenset(_MOVES.split())
_TRANSPOSES = frozenset(("t", "transpose", "permute"))
_VIEWS = frozenset(("view", "reshape", "_unsafe_view", "view_as", "reshape_as"))
_FIRST = {"self": "x", "input": "x"}  # every rule calls its first operand x
_IDENTITY = frozenset(
    ["clone", "contiguous", "to", "_to_copy", "alias", "type_as", "lift_fresh_copy"]
)


class ExportedGraph:
    """A model's ATen graph in training mode, with its parameters.

    Args:
        model: the network; left unchanged.
        example: an input batch of at least two examples, float or integer.

    Raises:
        Exception: whatever ``torch.export`` raises for a model it cannot trace.
    """

    def __init__(self, model: nn.Module, example: Tensor):
        program = torch.export.export(model, (example,), strict=False)
        signature = program.graph_signature
        self.nodes = list(program.graph.nodes)
        self.outputs = set(signature.user_outputs)
        trainable = {name: p.requires_grad for name, p in model.named_parameters()}
        self.parameters: dict[str, Parameter] = {}
        for node in self.nodes:
            name = signature.inputs_to_parameters.get(node.name)
            if name is not None:
                shape, uses = node.meta["val"].shape, len(node.users)
                self.parameters[node.name] = Parameter(name, shape, trainable[name], uses)


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
            self._node = node
            if node.op == "placeholder":
                self._values[node] = self._placeholder(node)
            elif node.op == "call_function":
                self._values[node] = self._call(node)
            elif node.op == "output":
                for argument in node.args[0]:
                    if isinstance(argument, fx.Node) and argument.name in self.graph.outputs:
                        self.output(self.elements(self._values[argument]))

    # ------------------------------------------------------------------ for the rules

    @property
    def shape(self) -> torch.Size:
        """The shape of the current node's result."""
        shape: torch.Size = self._node.meta["val"].shape
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
        name = self.operation(self._node)[0]
        self.system.pin(x, reason or f"{name} does not preserve its {self.quantity}")
        return zeros(x.var.shape)

    def common(self, x: Labels, dims: Iterable[int]) -> Labels:
        """Tie the labels along some axes; returns one label per remaining place (axes of 1)."""
        first, small = x, x.shrink()
        for dim in dims:
            first = Labels(*(part.narrow(dim, 0, 1) for part in first))
        first = first.shrink()
        if small.var.shape != first.var.shape:
            self.system.tie(small, first)
        return Labels(first.var, first.coef)

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

    def op_cat(self, tensors: list[Value], dim: int = 0) -> Value:
        parts = [self.elements(tensor) for tensor in tensors]
        var, coef = (torch.cat(same, dim) for same in zip(*parts, strict=True))
        return Labels(var, coef)

    def op_stack(self, tensors: list[Value], dim: int = 0) -> Value:
        parts = [self.elements(tensor) for tensor in tensors]
        var, coef = (torch.stack(same, dim) for same in zip(*parts, strict=True))
        return Labels(var, coef)

    # ------------------------------------------------------------------ the walk

    def _placeholder(self, node: fx.Node) -> Value:
        if node.name in self.graph.parameters:
            return self.graph.parameters[node.name]
        value = node.meta.get("val")
        return zeros(value.shape) if isinstance(value, Tensor) else None

    @staticmethod
    def operation(node: fx.Node) -> tuple[str, bool]:
        """The operator's name without overload, and whether it works in place."""
        target = str(node.target)
        name = target.split(".")[1] if target.startswith("aten.") else target
        in_place = name.endswith("_") and not name.endswith("__")
        return (name[:-1] if in_place else name), in_place

    def _call(self, node: fx.Node) -> Value:
        name, in_place = self.operation(node)
        arguments = self._arguments(node)
        if in_place and self._is_view(node.args[0]):
            return self._unknown(node)  # it changes elements that other nodes also hold
        result = self._apply(name, node, arguments)
        if in_place and isinstance(node.args[0], fx.Node):
            self._values[node.args[0]] = result
        return result

    def _apply(self, name: str, node: fx.Node, arguments: dict[str, Value]) -> Value:
        if "getitem" in name:
            return self._values[node.args[0]][node.args[1]]  # type: ignore[index]
        if name in _IDENTITY:
            return next(iter(arguments.values()))
        if name in _VIEWS:
            return self._moved(next(iter(arguments.values())), lambda x: x.reshape(self.shape))
        if name in _STRUCTURAL:
            return self._structural(name, node, arguments)
        rule: Callable[..., Value] | None = getattr(self, f"op_{name}", None)
        return self._unknown(node) if rule is None else rule(**arguments)

    def _arguments(self, node: fx.Node) -> dict[str, Value]:
        """The operands by the names of the operator's schema, defaults included."""
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return {}
        given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
        given |= node.kwargs
        bound = {a.name: given.get(a.name, a.default_value) for a in schema.arguments}
        return {
            _FIRST.get(name, name): fx.map_arg(value, self._values.__getitem__)
            for name, value in bound.items()
        }

    def _structural(self, name: str, node: fx.Node, arguments: dict[str, Value]) -> Value:
        (_, value), *rest = arguments.items()
        if isinstance(value, Parameter) and len(value.shape) == 2 and name in _TRANSPOSES:
            swapped = name == "t" or dict(rest).get("dims") != [0, 1]
            return replace(value, transposed=value.transposed != swapped)
        target: Any = node.target
        return self._moved(value, lambda x: target(x, **dict(rest)))

    def _moved(self, value: Value, move: Callable[[Tensor], Any]) -> Value:
        labels = self.elements(value)
        var, coef = move(labels.var), move(labels.coef)
        if isinstance(var, Tensor):
            return Labels(var, coef)
        return [Labels(v, c) for v, c in zip(var, coef, strict=True)]

    def _is_view(self, argument: Any) -> bool:
        if not isinstance(argument, fx.Node) or argument.op != "call_function":
            return False
        return self.operation(argument)[0] in _STRUCTURAL | _VIEWS or "getitem" in str(argument)

    def _unknown(self, node: fx.Node) -> Value:
        """Pin every operand: what is not understood can only lose laws, never invent them."""
        for operand in node.all_input_nodes:
            held = self._values[operand]
            for value in held if isinstance(held, list) else [held]:
                if isinstance(value, (Labels, Parameter)):
                    self.pin(self.elements(value))
        return self._zero_like(node.meta.get("val"))

    def _zero_like(self, value: Any) -> Value:
        if isinstance(value, Tensor):
            return zeros(value.shape)
        if isinstance(value, (list, tuple)):
            return [self._zero_like(v) for v in value]
        return None
