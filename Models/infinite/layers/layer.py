"""What an infinitely wide layer does to the kernels of its inputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from torch import Tensor

from Models.infinite.duals.piecewise import Angle
from Models.infinite.layout import Layout

Positions = Literal["keep", "diagonal", "all"]
"""Which pairs of positions a layer reads: those of one offset for each offset of the output,
those with p = p', or all."""


@dataclass(frozen=True)
class Sides:
    """Variances of one value in the network, E f(x)² at each position.

    Attributes:
        one: of side 1, [*sizes, n].
        other: of side 2, [*sizes, m].
        memory: what layers derive from both, by their own keys; blocks of many offsets share it.
    """

    one: Tensor
    other: Tensor
    memory: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False)

    @cached_property
    def roots(self) -> tuple[Tensor, Tensor]:
        """Standard deviations."""
        return self.one.sqrt(), self.other.sqrt()

    @cached_property
    def has_zero(self) -> bool:
        """Whether a variance is zero."""
        return not (bool((self.one > 0).all()) and bool((self.other > 0).all()))

    def derived(self, key: str, one: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
        """What a layer derives from the variances of side 0 and of side 1, once.

        Args:
            key: its name.
            one: of a side.
        """
        if key not in self.memory:
            self.memory[key] = (one(0), one(1))
        return self.memory[key]

    def scale(self, layout: Layout) -> Tensor:
        """s = √(q₁₁ q₂₂), as a block."""
        one, other = self.roots
        return layout.left(one) * layout.right(other)

    def scaled(self, block: Tensor, layout: Layout) -> Tensor:
        """A block times s."""
        one, other = self.roots
        return (block * layout.left(one)).mul_(layout.right(other))


@dataclass
class State:
    """A block of both kernels: the covariance, or instead the angle.

    Attributes:
        q: covariances q₁₂; ``None`` if they follow from the angle, s (1 − u).
        angle: 1 − cosine; ``None`` if it is not known to better than q tells.
        t: tangent kernel; ``None`` is zero, or not asked for.
    """

    q: Tensor | None = None
    angle: Angle | None = None
    t: Tensor | None = None

    def covariance(self, sides: Sides | None, layout: Layout) -> Tensor:
        """q₁₂.

        Args:
            sides: variances of the same value; read if only the angle is known.
            layout: of the block.
        """
        if self.q is not None:
            return self.q
        assert self.angle is not None
        assert sides is not None
        s = sides.scale(layout)
        return s.addcmul_(s, self.angle.u, value=-1)


@dataclass(frozen=True)
class View:
    """Where a layer is applied.

    Attributes:
        layouts: of its inputs.
        layout: of its output.
        sides: variances of its inputs, where they are known: not after mixing, if nothing reads
            them.
        out: variances of its output.
        tangent: whether the tangent kernel is asked for.
        same: which pairs are twice the same example, [n, m]; ``None`` if none is.
        own: covariances of the last input between all positions of one example, [*sizes, *sizes,
            n] of side 1 and of side 2; for layers that read them.
    """

    layouts: tuple[Layout, ...]
    layout: Layout
    sides: tuple[Sides | None, ...]
    out: Sides | None
    tangent: bool
    same: Tensor | None
    own: tuple[Tensor, Tensor] | None = None

    @property
    def side(self) -> Sides:
        """Variances of the first input."""
        assert self.sides[0] is not None
        return self.sides[0]


class Layer(ABC):
    """A layer; all of its methods are pure functions of tensors in one dtype on one device."""

    positions: Positions = "keep"
    normalises = False
    """Whether it reads the variances of its input."""
    reads_own = False
    """Whether it reads each example's covariances of its last input between all positions."""

    @abstractmethod
    def sizes(self, inputs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Positions of the output in each spatial dimension."""

    def stride(self, dimension: int) -> int:
        """By how much an offset shrinks from input to output."""
        return 1

    @abstractmethod
    def variance(self, maps: Sequence[Tensor]) -> Tensor | None:
        """Variances of the output, [*sizes, n]; ``None`` if all pairs of positions decide."""

    @abstractmethod
    def apply(self, states: Sequence[State], view: View) -> State:
        """Both kernels of the output."""


class Keeps(Layer):
    """A layer that leaves the number of positions as it is."""

    def sizes(self, inputs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return inputs[0]
