"""A model's graph of ATen operations, and what has to be known of it before labels are carried
through: which parameters are which, what changes in place, which gradients are not the graph's.
"""

import copy
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor, fx, nn
from torch.utils import _pytree as pytree

# Operations that only move elements: executed on the label tensors themselves.
_MOVES = """flatten permute transpose t numpy_T mT unsqueeze squeeze expand expand_as slice select
    unbind split chunk split_with_sizes narrow movedim swapaxes repeat roll flip unflatten
    pixel_shuffle pixel_unshuffle channel_shuffle"""
MOVES = frozenset(_MOVES.split())
VIEWS = frozenset(("view", "reshape", "_unsafe_view", "view_as", "reshape_as"))
TRANSPOSES = frozenset(("t", "transpose", "permute", "numpy_T", "mT"))
_AXES_MOVE = TRANSPOSES | frozenset(("movedim", "swapaxes"))
IDENTITIES = frozenset(
    ("clone", "contiguous", "to", "_to_copy", "alias", "type_as", "lift_fresh_copy")
)
# Operations that may or may not return their operand, whatever tracing found.
_MAYBE_SHARED = VIEWS | frozenset(("contiguous", "to", "type_as", "dropout", "feature_dropout"))


_HOOK = "a hook inside it may change gradients"
_GRADIENT = "it takes gradients itself"


class UntraceableError(Exception):
    """The model does something that its graph does not show."""


@dataclass(frozen=True)
class Parameter:
    """A parameter as the graph uses it.

    Attributes:
        name: as in ``named_parameters``, the first where it has several.
        shape: as in ``named_parameters``.
        trainable: whether its gradient is the graph's: not frozen, changed by a hook, complex.
        uses: how often operations read it.
        transposed: whether the graph reads the transpose of the matrix.
    """

    name: str
    shape: torch.Size
    trainable: bool
    uses: int
    transposed: bool = False


class Operation(NamedTuple):
    """An operator's name without overload, and whether its name says that it works in place."""

    name: str
    in_place: bool


def operation(node: fx.Node) -> Operation:
    """The operation of a node; names outside ATen are kept whole."""
    target = str(node.target)
    name = target.split(".")[1] if target.startswith("aten.") else target
    in_place = name.endswith("_") and not name.endswith("__")
    return Operation(name[:-1] if in_place else name, in_place)


class ExportedGraph:
    """A model's ATen graph in training mode, with its parameters.

    Args:
        model: the network; left unchanged.
        example: an input batch of at least two examples, float or integer.

    Attributes:
        nodes: in the order of execution.
        position: of each node among them.
        inputs: names of the nodes through which examples enter.
        outputs: names of the nodes that the model returns.
        weights: the model's parameters by name.
        parameters: by the name of the node through which they enter.
        unused: names of the model's parameters that no operation reads.
        frozen: names of the model's parameters that do not follow the graph's gradient.
        exposed: writes that other nodes than the written one can see, with those nodes.
        rearranges_examples: whether an operation moves the examples of a batch away from the
            first axis, so that what follows may depend on how many there are.

    Raises:
        Exception: whatever ``torch.export`` raises for a model it cannot trace.
    """

    def __init__(self, model: nn.Module, example: Tensor):
        _refuse_backward_hooks(model)
        with _custom_gradients_shown(), _silence():
            program = torch.export.export(_Traced(model), (example,), strict=False)
        signature = program.graph_signature
        self.nodes = list(program.graph.nodes)
        self.position = {node: k for k, node in enumerate(self.nodes)}
        self.inputs = set(signature.user_inputs)
        self.outputs = set(signature.user_outputs)
        _refuse_shapes_from_data(self.nodes)
        names = signature.inputs_to_parameters
        self._read_parameters(model, {k: name.removeprefix("model.") for k, name in names.items()})
        self._origins: dict[fx.Node, fx.Node] = {}
        self.exposed: dict[fx.Node, list[fx.Node]] = {}
        self._follow_writes()
        self.rearranges_examples = any(
            _rearranges_examples(node, len(example)) for node in self.nodes
        )

    def origin(self, node: fx.Node) -> fx.Node:
        """The node that made the tensor which a chain of in-place operations returns."""
        return self._origins.get(node, node)

    def _read_parameters(self, model: nn.Module, names: dict[str, str]) -> None:
        self.weights = named = dict(model.named_parameters())
        first = {id(parameter): name for name, parameter in named.items()}
        aliases = dict(model.named_parameters(remove_duplicate=False))
        entries = {
            node: first[id(aliases[names[node.name]])] for node in self.nodes if node.name in names
        }
        uses = Counter[str]()
        for node, name in entries.items():
            uses[name] += _uses(node)
        self.unused = tuple(name for name in named if not uses[name])
        self.frozen = tuple(n for n, p in named.items() if not _follows_gradient(p))
        self.parameters = {
            node.name: Parameter(name, named[name].shape, name not in self.frozen, uses[name])
            for node, name in entries.items()
        }

    def _follow_writes(self) -> None:
        """Fill ``exposed`` and the origins."""
        place = self.position.__getitem__
        last_use = {n: max(map(place, n.users), default=-1) for n in self.nodes}
        sharing: dict[fx.Node, list[fx.Node]] = {}  # nodes that may share memory, one list each
        for k, node in enumerate(self.nodes):
            group = sharing.setdefault(node, [node])
            written = written_operands(node)
            for operand in {*written, *_sharing_operands(node)} & set(sharing):
                group = _merged(sharing, operand, node)
            if not written:
                continue
            plain = operation(node).in_place and written == [node.args[0]]
            mine = self.origin(written[0])
            others = [n for n in group if n is not node and self.origin(n) is not mine]
            if not plain or any(last_use[n] > k for n in others):
                self.exposed[node] = list(group)
            if plain:
                self._origins[node] = mine


def written_operands(node: fx.Node) -> list[fx.Node]:
    """The operands that an operation changes."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | node.kwargs
    changed = (a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write)
    leaves = pytree.tree_leaves([given.get(name) for name in changed])
    return [leaf for leaf in leaves if isinstance(leaf, fx.Node)]


# ---------------------------------------------------------------------- export


class _Traced(nn.Module):
    """A model that keeps nothing of what its forward pass puts into modules' attributes.

    Tracing would refuse it, and leave tensors without values behind.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        attributes = [(module, dict(module.__dict__)) for module in self.model.modules()]
        containers = [v for _, held in attributes for v in held.values()]
        mutable = [(c, copy.copy(c)) for c in containers if isinstance(c, (list, dict, set))]
        try:
            return self.model(x)
        finally:
            for module, held in attributes:
                module.__dict__.clear()
                module.__dict__.update(held)
            for container, content in mutable:
                container.clear()
                getattr(container, "extend" if isinstance(content, list) else "update")(content)


@contextmanager
def _silence() -> Iterator[None]:
    """What torch reports while it traces is of no use to those who train; errors are raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


_LIBRARY = torch.library.Library("learning_mechanics", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("custom_gradient(Tensor x) -> Tensor")  # type: ignore[no-untyped-call]
_KEY = "CompositeExplicitAutograd"
_LIBRARY.impl("custom_gradient", torch.clone, _KEY)  # type: ignore[no-untyped-call]
_marked = torch.ops.learning_mechanics.custom_gradient  # a copy that no rule describes


@contextmanager
def _custom_gradients_shown() -> Iterator[None]:
    """Mark gradients that are not those of the operations in the graph.

    Tracing sees the operations inside an ``autograd.Function`` and nothing of its backward pass,
    of tensor hooks, or of gradients taken inside the model. Here the first has its operands and
    results marked; models that use the others are refused.
    """
    function = torch.autograd.Function
    original = function.__dict__["apply"]

    def mark(value: Any) -> Any:
        real = isinstance(value, Tensor) and value.dtype.is_floating_point
        return _marked(value) if real else value

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        apply_original = original.__get__(None, cls)
        if cls.__name__ == "_NoopSaveInputs":  # checkpointing's; nothing depends on its result
            return apply_original(*args, **kwargs)
        return pytree.tree_map(mark, apply_original(*map(mark, args), **kwargs))

    def refuse(why: str) -> Callable[..., None]:
        def raise_error(*_: Any, **__: Any) -> None:
            raise UntraceableError(why)

        return raise_error

    with (
        _replaced(function, "apply", classmethod(apply)),
        _replaced(Tensor, "register_hook", refuse(_HOOK)),
        _replaced(torch.autograd, "_engine_run_backward", refuse(_GRADIENT)),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Give a class or module another attribute for a while."""
    original = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _refuse_backward_hooks(model: nn.Module) -> None:
    for module in model.modules():
        if module._backward_hooks or module._backward_pre_hooks:
            raise UntraceableError(_HOOK)


def _refuse_shapes_from_data(nodes: Sequence[fx.Node]) -> None:
    for node in nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, Tensor) and any(isinstance(n, SymInt) for n in value.shape):
                raise UntraceableError(f"the shape that {node.name} has depends on the data")


# ---------------------------------------------------------------------- parameters


def _follows_gradient(parameter: Tensor) -> bool:
    """Whether a parameter's gradient is that of the graph, and one real number per element."""
    hooked = bool(parameter._backward_hooks)
    return parameter.requires_grad and not hooked and parameter.is_floating_point()


def _uses(node: fx.Node) -> int:
    """How often operations read a parameter, its copies and its rearrangements."""
    passing = IDENTITIES | MOVES | VIEWS
    return sum(
        _uses(user) if operation(user).name in passing else _operands(user).count(node)
        for user in node.users
    )


def _operands(node: fx.Node) -> list[Any]:
    """All operands, as often as they occur."""
    return pytree.tree_leaves((node.args, node.kwargs))


# ---------------------------------------------------------------------- memory


def _storages(node: fx.Node) -> set[int]:
    """The memory that a node's tensors lie in, as tracing found."""
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return {leaf.untyped_storage()._cdata for leaf in leaves if isinstance(leaf, Tensor)}


def _sharing_operands(node: fx.Node) -> list[fx.Node]:
    """The operands whose memory the result may share."""
    if operation(node).name in _MAYBE_SHARED:
        return list(node.all_input_nodes)
    mine = _storages(node)
    return [operand for operand in node.all_input_nodes if mine & _storages(operand)]


def _merged(sharing: dict[fx.Node, list[fx.Node]], x: fx.Node, y: fx.Node) -> list[fx.Node]:
    """Join the lists of two nodes."""
    left, right = sharing[x], sharing[y]
    if left is not right:
        left.extend(right)
        for node in right:
            sharing[node] = left
    return left


# ---------------------------------------------------------------------- examples of a batch


def _rearranges_examples(node: fx.Node, batch: int) -> bool:
    """Whether a result of a batch does not have the batch's examples along its first axis."""
    before = [n.meta.get("val") for n in node.all_input_nodes]
    after = next(iter(pytree.tree_leaves(node.meta.get("val"))), None)
    batches = [x for x in before if isinstance(x, Tensor) and x.shape[:1] == (batch,)]
    if node.op != "call_function" or not isinstance(after, Tensor) or not batches:
        return False
    moved = operation(node).name in _AXES_MOVE and after.stride(0) != batches[0].stride(0)
    return moved or after.shape[:1] != (batch,)
