"""The program that grows while a graph is walked, and the rules of what may follow what."""

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

from torch import nn

from Models.infinite.layers.affine import Affine
from Models.infinite.layers.layer import Layer
from Models.infinite.layers.pointwise import Nonlinearity, Product, Scale, Sum
from Models.infinite.layers.positions import Flatten
from Models.infinite.layers.window import Window
from Models.infinite.program import INPUT, Program, Step
from Models.infinite.scaling import LayerShape, Scaling
from Models.infinite.walk.recognition import dual_of
from Models.infinite.walk.values import (
    CHANNEL,
    Expression,
    Input,
    NoLimitError,
    Scores,
    Symbol,
    Value,
    Weight,
)


class Builder:
    """Steps so far.

    Args:
        model: the finite network.
        scaling: variances and rates of its layers.
        input_shape: of one example.
    """

    def __init__(self, model: nn.Module, scaling: Scaling, input_shape: tuple[int, ...]):
        self.parameters = dict(model.named_parameters())
        self.scaling, self.input_shape = scaling, input_shape
        self.steps: list[Step] = []
        self.input: Value | None = None
        self._used: set[str] = set()
        self._applied: dict[int, Value] = {}
        self._kept: list[Expression] = []

    def program(self, output: Symbol) -> Program:
        """Of the network whose output is ``output``.

        Args:
            output: what the walk ended with.
        """
        value = self.value(output)
        if value.index != len(self.steps):
            self.step("output", Scale(1.0), value)
        assert self.input is not None
        axes = self.input.axes
        sizes = tuple(self.input_shape[k] for k in self.input.spatial)
        flat = not sizes
        return Program(tuple(self.steps), sizes, None if flat else axes.index(CHANNEL))

    def step(self, name: str, layer: Layer, *values: Value, **changes: Any) -> Value:
        """Append a layer.

        Args:
            name: of the module or operation.
            layer: what it does.
            *values: its inputs.
            **changes: what its output does not share with the first input.
        """
        self.steps.append(Step(name, layer, tuple(value.index for value in values)))
        return values[0].at(len(self.steps), **changes)

    # ------------------------------------------------------------------ kinds of symbols

    def read(self, x: Input, axes: tuple[int, ...]) -> Value:
        """The input, now that a layer tells which of its axes counts channels.

        Args:
            x: the input.
            axes: of an example.
        """
        value = Value(INPUT, axes, frozenset(), gaussian=False, centred=False)
        if self.input is not None and self.input != value:
            raise NoLimitError("the input is read in two ways, as channels and as positions")
        self.input = value
        return value

    def value(self, x: Symbol) -> Value:
        """A value, with what was left to do done."""
        if isinstance(x, Expression):
            return self._apply(x)
        if isinstance(x, Input):
            flat = x.flat or len(x.shape) == 1
            return self.read(x, (CHANNEL,) if flat else (CHANNEL, *range(len(x.shape) - 1)))
        if isinstance(x, Weight):
            raise NoLimitError(f"parameter {x.name} is used outside of a layer")
        if isinstance(x, Scores):
            raise NoLimitError("products of keys are used for something else than attention")
        return x

    def _apply(self, x: Expression) -> Value:
        known = self._applied.get(id(x))
        if known is None and x.factor is not None:
            known = self.step("scale", Scale(x.factor), x.source) if x.factor != 1 else x.source
        if known is None and x.outer is not None:
            before, factor = x.outer
            known = self.step("scale", Scale(factor), self._apply(before))
        if known is None:
            if x.source.gained:
                raise NoLimitError(
                    "a nonlinearity follows gains that are trained; put a linear layer between "
                    "them, or elementwise_affine=False"
                )
            dual = dual_of(x.function, x.operations, x.factors, x.inner)
            changes = {"gaussian": False, "centred": False}
            known = self.step("+".join(x.operations), Nonlinearity(dual), x.source, **changes)
        self._applied[id(x)] = known
        self._kept.append(x)  # so that no other gets its id
        return known

    def gaussian(self, x: Symbol, what: str) -> Value:
        """A value that a nonlinearity can read.

        Args:
            x: any.
            what: reads it.
        """
        value = self.value(x)
        if not value.gaussian:
            before = "the input" if value.index == INPUT else self.steps[value.index - 1].name
            raise NoLimitError(
                f"{what} reads {before}, whose values are not Gaussian in wide networks (as after "
                "a nonlinearity, also in a sum); only a linear layer or convolution makes them so"
            )
        return value

    # ------------------------------------------------------------------ layers

    def affine(
        self,
        x: Symbol,
        weight: Weight,
        bias: Weight | None,
        windows: Sequence[Window],
        fan_in: int,
    ) -> Value:
        """A linear layer or convolution.

        Args:
            x: its input.
            weight: its weight.
            bias: its bias.
            windows: of a convolution.
            fan_in: weights per output.
        """
        value = self.value(x)
        for parameter in (weight, bias):
            if parameter is not None and parameter.name in self._used:
                raise NoLimitError(
                    f"{parameter.name} is used twice; layers with shared weights "
                    "are not independent"
                )
        names = {p.name for p in (weight, bias) if p is not None}
        self._used |= names
        trained = tuple(
            p is not None and self.parameters[p.name].requires_grad for p in (weight, bias)
        )
        shape = LayerShape(
            weight.name,
            None if bias is None else bias.name,
            fan_in,
            value.index != INPUT,
            (trained[0], trained[1]),
        )
        layer = Affine(self.scaling.rates(shape), tuple(windows))
        name = weight.name.removesuffix(".weight")
        sources = frozenset({weight.name})
        return self.step(
            name, layer, value, sources=sources, gaussian=True, centred=True, gained=False
        )

    def sum(self, *branches: Symbol) -> Value:
        """The sum of independent branches.

        Args:
            *branches: two or more.
        """
        values = self._branches(branches, "sum")
        self._independent(values, "sum")
        if sum(not value.centred for value in values) > 1:
            raise NoLimitError(
                "two branches of a sum end with nonlinearities, whose means do not vanish; "
                "let all but one end with a linear layer"
            )
        changes = {
            "gaussian": all(value.gaussian for value in values),
            "centred": all(value.centred for value in values),
        }
        return self.step("sum", Sum(), *values, **_joined(values), **changes)

    def product(self, *branches: Symbol) -> Value:
        """The product of two independent branches, a gate.

        Args:
            *branches: two.
        """
        values = self._branches(branches, "product")
        self._independent(values, "product")
        changes = {"gaussian": False, "centred": False}
        return self.step("product", Product(), *values, **_joined(values), **changes)

    def concatenation(self, branches: Sequence[Symbol], widths: Sequence[int]) -> Value:
        """Neurons of several branches side by side; the next layer's mean over them is weighted.

        Args:
            branches: one or more.
            widths: neurons of each, whose shares stay the same in wide networks.
        """
        values = self._branches(branches, "concatenation")
        shares = [
            self.step("share", Scale(sqrt(width / sum(widths))), value)
            for value, width in zip(values, widths, strict=True)
        ]
        changes = {"gaussian": False, "centred": all(value.centred for value in values)}
        return self.step("concatenation", Sum(), *shares, **_joined(values), **changes)

    def _branches(self, branches: Sequence[Symbol], what: str) -> list[Value]:
        """Values of the same positions, none of which is the input."""
        values = [self.value(branch) for branch in branches]
        if any(value.index == INPUT for value in values):
            raise NoLimitError(
                f"the input itself is in a {what} with hidden neurons; use a linear layer"
            )
        if len({(value.axes, self.sizes(value)) for value in values}) > 1:
            raise NoLimitError(f"branches of a {what} have different axes")
        return values

    def _independent(self, values: Sequence[Value], what: str) -> None:
        for k, value in enumerate(values):
            if any(value.sources & other.sources for other in values[:k]):
                raise NoLimitError(
                    f"branches of a {what} share their last layer, so that they are not independent"
                )

    def flatten(self, x: Symbol) -> Symbol:
        """All positions become neurons.

        Args:
            x: any.
        """
        if isinstance(x, Input):
            return Input((prod(x.shape),), flat=True)
        value = self.value(x)
        if not value.spatial:
            return value
        several = any(size > 1 for size in self.sizes(value))
        changes = {"axes": (CHANNEL,), "gaussian": value.gaussian and not several}
        return self.step("flatten", Flatten(), value, **changes)

    def sizes(self, value: Value) -> tuple[int, ...]:
        """Positions of a value in each spatial dimension."""
        assert self.input is not None
        known = [tuple(self.input_shape[k] for k in self.input.spatial)]
        for step in self.steps[: value.index]:
            known.append(step.layer.sizes([known[k] for k in step.inputs]))
        return known[value.index]


def _joined(values: Sequence[Value]) -> dict[str, Any]:
    """What a value of several branches inherits from all of them."""
    return {
        "sources": frozenset[str]().union(*(value.sources for value in values)),
        "gained": any(value.gained for value in values),
    }
