"""What the nodes of a finite network's graph stand for, as its width grows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

CHANNEL = -1
"""Among the axes of a value: the one that counts neurons."""


class NoLimitError(Exception):
    """An operation has no limit that is known; the message says why."""


@dataclass(frozen=True)
class Value:
    """Random functions of the input, one per neuron, independent and alike.

    Attributes:
        index: in the program.
        axes: of an example, each CHANNEL or the number of a spatial dimension.
        sources: names of the last layers' weights, all of whose fresh signs it changes with.
        gaussian: whether each is a Gaussian process.
        centred: whether its mean is zero, whatever the weights before its sources are.
        gained: whether gains that are trained came last, which nonlinearities would mix up.
    """

    index: int
    axes: tuple[int, ...]
    sources: frozenset[str]
    gaussian: bool
    centred: bool
    gained: bool = False

    @property
    def spatial(self) -> tuple[int, ...]:
        """Axes that are positions, of an example."""
        return tuple(k for k, axis in enumerate(self.axes) if axis != CHANNEL)

    def at(self, index: int, **changes: Any) -> "Value":
        """The same after another step of the program."""
        return replace(self, index=index, **changes)


@dataclass(frozen=True)
class Input:
    """The network's input, whose axes tell nothing until a layer reads it.

    Attributes:
        shape: of an example.
        flat: whether all numbers of an example were made neurons.
    """

    shape: tuple[int, ...]
    flat: bool = False


@dataclass(frozen=True)
class Expression:
    """An elementwise function of a Gaussian value, not yet applied.

    Attributes:
        source: the value.
        function: of any tensor.
        operations: names of the graph's operations that make it up.
        factors: numbers that the operations were given.
        factor: where it is nothing but a multiplication, the number.
        inner: what the value was multiplied by before the first operation.
        outer: where it ends with a multiplication, what was before it, and the number.
    """

    source: Value
    function: Callable[[Tensor], Tensor]
    operations: tuple[str, ...]
    factors: tuple[Any, ...] = ()
    factor: float | None = None
    inner: float = 1.0
    outer: "tuple[Expression, float] | None" = None


@dataclass(frozen=True)
class Weight:
    """A parameter.

    Attributes:
        name: as in ``named_parameters``.
        transposed: whether a matrix is used with its axes exchanged.
    """

    name: str
    transposed: bool = False


@dataclass(frozen=True)
class Scores:
    """A function of k kᵀ, products of keys with keys over their number's growing dimension.

    Attributes:
        keys: the value.
        width: d, their number in the finite network.
        factor: by which k kᵀ was multiplied first.
        function: of what that gives, [n, P, P]; ``None`` before any but numbers.
    """

    keys: Value
    width: int
    factor: float = 1.0
    function: Callable[[Tensor], Tensor] | None = None

    def scaled(self, number: float) -> "Scores":
        """Times a number."""
        if self.function is None:
            return replace(self, factor=self.factor * number)
        return self.then(lambda z: z * number)

    def then(self, function: Callable[[Tensor], Tensor]) -> "Scores":
        """A further function of them."""
        before = self.function
        return replace(self, function=(lambda z: function(before(z))) if before else function)


Symbol = Value | Input | Expression | Weight | Scores

Handler = Callable[..., Symbol]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Of a node's tensor, the batch included."""
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return tuple(value.shape)
