"""An infinitely wide network as a list of layers, and what can be said of it without data."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from Models.infinite.duals.piecewise import PiecewiseLinear
from Models.infinite.layers.layer import Layer
from Models.infinite.layers.pointwise import Nonlinearity
from Models.infinite.layers.positions import Flatten, Pad, Pool

INPUT = 0
"""The value that every network begins with; step k makes value k + 1."""


@dataclass(frozen=True)
class Step:
    """One layer.

    Attributes:
        name: of the module or operation that it stands for.
        layer: what it does.
        inputs: the values that it reads.
    """

    name: str
    layer: Layer
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """The steps of a network, each after those that it reads; the last one's value is returned.

    Attributes:
        steps: at least one.
        input_sizes: positions in each spatial dimension of the input.
        channel_axis: of an example [*input_shape], which axis counts channels; ``None`` if all
            of its numbers are the features of one position.
    """

    steps: tuple[Step, ...]
    input_sizes: tuple[int, ...]
    channel_axis: int | None

    @cached_property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Positions of every value, the input first."""
        known = [self.input_sizes]
        for step in self.steps:
            known.append(step.layer.sizes([known[k] for k in step.inputs]))
        return tuple(known)

    @cached_property
    def mixes(self) -> bool:
        """Whether some layer reads all pairs of positions."""
        return any(step.layer.positions == "all" for step in self.steps)

    @cached_property
    def mixed(self) -> tuple[bool, ...]:
        """Of every value, whether all pairs of positions of the input made it."""
        known = [False]
        for step in self.steps:
            known.append(step.layer.positions != "keep" or any(known[k] for k in step.inputs))
        return tuple(known)

    @cached_property
    def streams(self) -> bool:
        """Whether blocks of one offset in the first dimension stay apart until positions mix."""
        pads = (step.layer for step in self.steps if isinstance(step.layer, Pad))
        plain = all(_streams(step, [self.mixed[k] for k in step.inputs]) for step in self.steps)
        deep = len(self.input_sizes) > 1
        return self.mixes and deep and plain and all(pad.shifts for pad in pads)

    @cached_property
    def angles(self) -> bool:
        """Whether angles are followed from the input on, as ReLU and its like want them."""
        return any(
            isinstance(step.layer, Nonlinearity) and isinstance(step.layer.dual, PiecewiseLinear)
            for step in self.steps
        )

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Of every value before mixing, by how much offsets of the first dimension shrank."""
        known = [1]
        for step in self.steps:
            known.append(known[step.inputs[0]] * _stride(step.layer))
        return tuple(known)

    @cached_property
    def last_reader(self) -> int:
        """The value of the last step that reads variances; angles do not matter after it."""
        return max((k for k, s in enumerate(self.steps, start=1) if s.layer.normalises), default=0)

    @cached_property
    def reads_own_mixture(self) -> bool:
        """Whether a layer after mixing reads variances, which mixing alone does not tell, or any
        reads more of each example."""
        after = zip(self.steps, self.mixed[1:], strict=True)
        return bool(self.owned) or (
            self.mixes
            and any(
                step.layer.normalises and any(self.mixed[k] for k in step.inputs)
                for step, _ in after
            )
        )

    @cached_property
    def owned(self) -> frozenset[int]:
        """Values of which each example's covariances between all positions are read."""
        return frozenset(step.inputs[-1] for step in self.steps if step.layer.reads_own)

    @cached_property
    def reaches(self) -> tuple[int | None, ...]:
        """Of every value, the largest offset in the first dimension that variances after mixing
        depend on; ``None`` if they do not depend on it."""
        reads = [k for k, step in enumerate(self.steps, start=1) if step.layer.normalises]
        known: list[int | None] = [None] * (len(self.steps) + 1)
        for k in reversed(range(1, len(self.steps) + 1)):
            step = self.steps[k - 1]
            wanted = known[k]
            if k in reads or wanted is not None:
                for i in step.inputs:
                    inner = 0 if wanted is None else _reach(step.layer, wanted)
                    known[i] = max(inner, known[i] or 0)
        return tuple(known)


def _reach(layer: Layer, offset: int) -> int:
    """The largest offset that an offset of the output is made of."""
    if isinstance(layer, Pool):
        return layer.reach(offset)
    return 0 if layer.positions == "diagonal" else offset * layer.stride(0)


def _stride(layer: Layer) -> int:
    return layer.stride(0) if layer.positions == "keep" else 1


def _streams(step: Step, mixed: Sequence[bool]) -> bool:
    """Whether a step reads blocks of one offset alone, or none of them."""
    if step.layer.positions == "keep":
        return all(mixed) or not any(mixed)
    return isinstance(step.layer, (Pool, Flatten)) or all(mixed)
