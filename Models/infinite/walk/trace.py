"""Walk the graph of a finite network, node by node."""

import copy
from typing import Any

import torch
from torch import fx, nn

from Models.infinite.program import Program
from Models.infinite.scaling import Scaling
from Models.infinite.walk.builder import Builder
from Models.infinite.walk.operations import HANDLERS, REFUSED
from Models.infinite.walk.values import Input, NoLimitError, Symbol, Weight, shape_of
from Models.symmetry.export import ExportedGraph, UntraceableError, operation
from Utils.errors import UserError


def program_of(
    model: nn.Module, input_shape: tuple[int, ...], scaling: Scaling, training: bool = False
) -> Program:
    """The infinitely wide network that a finite one approaches as its hidden layers widen.

    Args:
        model: the finite network, of any width; its numbers are not looked at.
        input_shape: of one example.
        scaling: variances and rates of its layers.
        training: whether dropout is on.

    Raises:
        UserError: the network has no limit that is known; says which operation is why.
    """
    copied = copy.deepcopy(model).train(training)
    first = next(iter(model.parameters()), torch.zeros(()))
    example = torch.zeros(2, *input_shape, dtype=first.dtype, device=first.device)
    try:
        graph = ExportedGraph(copied, example)
    except UntraceableError as error:
        raise _refusal(f"the model cannot be traced ({error})") from error
    except Exception as error:  # tracing raises whatever the model does
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise _refusal(f"the model cannot be traced ({reason})") from error
    builder = Builder(copied, scaling, input_shape)
    symbols: dict[fx.Node, Any] = {}
    output: Any = None
    for node in graph.nodes:
        try:
            output = _symbol(node, graph, builder, symbols)
        except NoLimitError as error:
            raise _refusal(f"{_where(node)}{error}") from None
        symbols[node] = output
    (result,) = output if isinstance(output, (tuple, list)) else (output,)
    try:
        return builder.program(result)
    except NoLimitError as error:
        raise _refusal(f"output: {error}") from None


def _symbol(
    node: fx.Node, graph: ExportedGraph, builder: Builder, symbols: dict[fx.Node, Any]
) -> Any:
    if node.op == "placeholder":
        if node.name in graph.parameters:
            return Weight(graph.parameters[node.name].name)
        if node.name in graph.inputs:
            return Input(shape_of(node)[1:])
        return node  # a buffer, which only refused operations read
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda x: symbols[x])
    if node.op == "output":
        return args[0]
    name = operation(node).name
    if name in REFUSED:
        raise NoLimitError(REFUSED[name])
    handler = HANDLERS.get(name)
    if handler is None:
        raise NoLimitError("no infinite-width limit of it is known")
    found: Symbol = handler(builder, node, *args, **kwargs)
    return found


def _where(node: fx.Node) -> str:
    """The operation, and the module in which it is."""
    stack = node.meta.get("nn_module_stack") or {}
    path = [name for name, _ in stack.values()]
    module = path[-1].removeprefix("L['self'].").removeprefix("model.") if path else ""
    name = operation(node).name
    return f"{name} in {module}: " if module and module not in {"", "model"} else f"{name}: "


def _refusal(reason: str) -> UserError:
    return UserError(f"infinite width: {reason}")
