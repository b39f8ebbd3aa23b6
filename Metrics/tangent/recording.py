"""Where a forward pass uses parameters: every call that reads them together with data."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

Function = Callable[..., Any]


@dataclass(frozen=True)
class Use:
    """One call that reads parameters, or what was made of them alone, together with data.

    Attributes:
        function: of torch.
        args: of the call.
        kwargs: of the call.
        sources: the parameters among the arguments, and tensors derived from parameters alone.
        roots: of every source, the names of the parameters it is made of.
        edge: where the gradient with respect to the output arrives; ``None`` if there are
            several outputs. It belongs to this output even if the tensor is later changed in
            place, as by ``ReLU(inplace=True)``.
        shape: of the output.
    """

    function: Function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: tuple[Tensor, ...]
    roots: tuple[frozenset[str], ...]
    edge: GradientEdge | None
    shape: torch.Size


class Recorder(TorchFunctionMode):
    """Lists the uses of parameters in a forward pass that runs inside this context.

    Functions of parameters alone (a transposed weight, a normalised one, the embedding of all
    positions) give sources; functions of data give data.

    Attributes:
        uses: in the order of the calls.
        calls: of functions of data.
        numbers: that they returned: what the pass writes and mostly keeps.

    Args:
        parameters: all that are asked for, by name.
        inputs: of the forward pass.
    """

    def __init__(self, parameters: Mapping[str, Tensor], inputs: Tensor):
        super().__init__()
        self.uses: list[Use] = []
        self.calls = 0
        self.numbers = 0
        table: Any = WeakIdKeyDictionary
        self._sources, self._data = table(), table()
        for name, parameter in parameters.items():
            self._sources[parameter] = frozenset({name})
        self._data[inputs] = True

    def __torch_function__(
        self, func: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((*args, *kwargs.values())))
        sources = tuple(tensor for tensor in tensors if tensor in self._sources)
        with_data = any(tensor in self._data for tensor in tensors)
        before = _preserved(func, args) if sources and with_data else args
        output = func(*args, **kwargs)
        outputs = list(_tensors((output,)))
        if with_data:
            if _name(func) == "__setitem__":
                outputs.append(args[0])
            self.calls += bool(outputs)
            for tensor in outputs:
                self._data[tensor] = True
                self.numbers += tensor.numel()
            if sources and any(tensor.requires_grad for tensor in outputs):
                roots = tuple(self._sources[tensor] for tensor in sources)
                self.uses.append(_use(func, before, kwargs, sources, roots, output))
        elif sources:
            roots = (frozenset().union(*(self._sources[tensor] for tensor in sources)),)
            for tensor in outputs:
                if tensor.requires_grad and tensor not in self._sources:
                    self._sources[tensor] = roots[0]
        return output


def _use(
    func: Function,
    args: Any,
    kwargs: Any,
    sources: tuple[Tensor, ...],
    roots: tuple[frozenset[str], ...],
    output: object,
) -> Use:
    edge = get_gradient_edge(output) if isinstance(output, Tensor) else None
    shape = output.shape if isinstance(output, Tensor) else torch.Size()
    return Use(func, tuple(args), dict(kwargs), sources, roots, edge, shape)


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield from _tensors(value)


def _preserved(func: Function, args: Any) -> Any:
    """The arguments as they are before a call that changes the first one in place."""
    name = _name(func)
    dunder = name.startswith("__")
    if not args or not (name.startswith("__i") if dunder else name.endswith("_")):
        return args
    return (args[0].detach().clone(), *args[1:])


def _name(func: Function) -> str:
    return str(getattr(func, "__name__", ""))
