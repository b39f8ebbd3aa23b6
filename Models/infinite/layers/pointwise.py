"""Layers that act on every position alike: nonlinearities, sums, products, normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from Models.infinite.duals.dual import Dual
from Models.infinite.duals.piecewise import Angle, PiecewiseLinear
from Models.infinite.layers.layer import Keeps, State, View


@dataclass(frozen=True)
class Nonlinearity(Keeps):
    """q ← K(q), t ← t K'(q) with the dual activation of a function."""

    dual: Dual
    normalises = True

    def variance(self, maps: Sequence[Tensor]) -> Tensor:
        return self.dual.variance(maps[0])

    def apply(self, states: Sequence[State], view: View) -> State:
        (state,), sides, layout = states, view.side, view.layout
        one, other = layout.left(sides.one), layout.right(sides.other)
        if isinstance(self.dual, PiecewiseLinear):
            angle, slope = self.dual.turn(state.angle or _angle(state, view))
            if state.t is None:
                return State(None, angle, None)
            if sides.has_zero:
                slope = self.dual.where_zero(slope, one, other)
            return State(None, angle, slope.mul_(state.t))
        q, slope = self.dual(state.covariance(sides, layout), one, other)
        return State(q, None, None if state.t is None else state.t * slope)


def _angle(state: State, view: View) -> Angle:
    """From the covariance: only to the root of its rounding near |cosine| = 1, but exactly 0 for
    an example and itself."""
    assert state.q is not None
    s = view.side.scale(view.layout)
    c = (state.q / s).nan_to_num_(0.0).clamp_(-1, 1)
    u = 1 - c
    diagonal = None if view.same is None else view.layout.diagonal(u)
    if diagonal is not None and view.same is not None:
        diagonal.masked_fill_(view.same, 0.0)
    return Angle(u, lambda: 1 + c)


@dataclass(frozen=True)
class Scale(Keeps):
    """Multiplication by a number.

    Attributes:
        factor: the number; not zero.
    """

    factor: float

    def variance(self, maps: Sequence[Tensor]) -> Tensor:
        return maps[0] * self.factor**2

    def apply(self, states: Sequence[State], view: View) -> State:
        (state,), square = states, self.factor**2
        q = None if state.q is None else state.q * square
        return State(q, state.angle, None if state.t is None else state.t * square)


@dataclass(frozen=True)
class Sum(Keeps):
    """The sum of branches that share no last layer, so that covariances add.

    The cosine follows as in :mod:`Models.infinite.layers.affine`, with a feature per branch.
    """

    def variance(self, maps: Sequence[Tensor]) -> Tensor:
        return reduce(add, maps)

    def apply(self, states: Sequence[State], view: View) -> State:
        tangents = [state.t for state in states if state.t is not None]
        t = reduce(add, tangents) if tangents else None
        angles = [state.angle for state in states if state.angle is not None]
        if len(angles) == len(states) and view.out is not None:
            return State(None, self._turn(angles, view), t)
        pairs = zip(states, view.sides, view.layouts, strict=True)
        return State(reduce(add, [s.covariance(v, layout) for s, v, layout in pairs]), None, t)

    def _turn(self, angles: Sequence[Angle], view: View) -> Angle:
        one, other = self.features(view)

        def mixed(blocks: Sequence[Tensor]) -> Tensor:
            layout = view.layout
            parts = zip(blocks, one, other, strict=True)
            return reduce(add, [b * layout.left(x) * layout.right(y) for b, x, y in parts])

        def opposite() -> Tensor:
            full = [2 - angle.u if angle.p is None else angle.p for angle in angles]
            return view.layout.deficit(one, other, mixed(full))

        mixture = mixed([angle.u for angle in angles])
        return Angle(view.layout.deficit(one, other, mixture, same=view.same), opposite)

    def features(self, view: View) -> tuple[Tensor, Tensor]:
        """α and α', the shares of the branches: [branches, *sizes, n] and [branches, *sizes, m].

        Args:
            view: where it is applied; its ``out`` is known.
        """
        assert view.out is not None
        new, after = (torch.where(root == 0, 1, root) for root in view.out.roots)
        known = [sides.roots for sides in view.sides if sides is not None]
        one = torch.stack([root / new for root, _ in known])
        return one, torch.stack([root / after for _, root in known])


@dataclass(frozen=True)
class Product(Keeps):
    """The product of two branches that share no last layer, as a gate: q ← q q°, t ← t q° + q t°.

    Neurons of both are independent, so that second moments multiply; of the gradient of their
    product, what passes through one branch is uncorrelated with what passes through the other.
    """

    def variance(self, maps: Sequence[Tensor]) -> Tensor:
        return maps[0] * maps[1]

    def apply(self, states: Sequence[State], view: View) -> State:
        pairs = zip(states, view.sides, view.layouts, strict=True)
        one, other = (state.covariance(sides, layout) for state, sides, layout in pairs)
        tangents = [
            state.t * q
            for state, q in zip(states, (other, one), strict=True)
            if state.t is not None
        ]
        return State(one * other, None, reduce(add, tangents) if tangents else None)


@dataclass(frozen=True)
class Norm(Keeps):
    """Division by the root mean square over infinitely many channels, x / √(E x² + ε).

    q ← q/√((q₁₁ + ε)(q₂₂ + ε)), t likewise (Yang 2019, arXiv 1902.04760, section 6, for layer
    normalisation); the cosine stays. A gain of 1 that is trained adds its rate times q, a
    bias its rate.

    Attributes:
        epsilon: ε.
        gain_rate: learning rate of the gains; 0 if there are none.
        bias_rate: of the biases.
        joint: whether the mean is also over positions.
    """

    epsilon: float
    gain_rate: float = 0.0
    bias_rate: float = 0.0
    joint: bool = False
    normalises = True

    def _mean(self, q: Tensor) -> Tensor:
        if not self.joint or q.dim() == 1:
            return q
        return q.mean(tuple(range(q.dim() - 1)), keepdim=True).expand_as(q)

    def variance(self, maps: Sequence[Tensor]) -> Tensor:
        return maps[0] / (self._mean(maps[0]) + self.epsilon)

    def apply(self, states: Sequence[State], view: View) -> State:
        (state,), sides, layout = states, view.side, view.layout
        factors = [(self._mean(q) + self.epsilon).rsqrt() for q in (sides.one, sides.other)]
        one, other = layout.left(factors[0]), layout.right(factors[1])
        q = None if state.q is None else state.q * one * other
        t = None if state.t is None else state.t * one * other
        if view.tangent and (self.gain_rate or self.bias_rate):
            new = state.covariance(sides, layout) * one * other
            own = new * self.gain_rate + self.bias_rate
            t = own if t is None else t + own
        return State(q, state.angle, t)


@dataclass(frozen=True)
class Dropout(Keeps):
    """Independent masks that keep a share of the neurons and divide by it.

    Only an example with itself at one position sees the same mask: there q and t are divided by
    the share (Schoenholz et al. 2017, arXiv 1611.01232, section 5).

    Attributes:
        keep: the share.
    """

    keep: float

    def variance(self, maps: Sequence[Tensor]) -> Tensor:
        return maps[0] / self.keep

    def apply(self, states: Sequence[State], view: View) -> State:
        (state,), layout = states, view.layout
        q = state.covariance(view.sides[0], layout).clone()
        t = None if state.t is None else state.t.clone()
        for block in (q, t):
            diagonal = None if block is None or view.same is None else layout.diagonal(block)
            if diagonal is not None and view.same is not None:
                diagonal[...] = torch.where(view.same, diagonal / self.keep, diagonal)
        return State(q, None, t)
