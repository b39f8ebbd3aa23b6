"""Linear layers and convolutions with infinitely many channels.

With C the mean over the window, C(q)[p, p'] = (1/F) Σ_k q[p+k, p'+k] (zeros outside), and A the
weights' variance times their number per output, B the bias's, η and β the rates of both:

    q ← A C(q) + B        t ← A C(t) + η C(q) + β

(Novak et al. 2019, arXiv 1810.05148, equation 7; Garriga-Alonso et al. 2019, arXiv 1808.05587;
Arora et al. 2019, arXiv 1904.11955, section 4; η and β for both parametrizations: Sohl-Dickstein
et al. 2020, arXiv 2001.07301, section 2.) In the NTK parametrization η = A, β = B; in the standard
one η is the number of weights per output and β = 1.

The angle follows without cancellation: with unit vectors α of the F numbers √(A q₁₁[p+k]/F) and √B,
and likewise α',

    s' u' = A C(s u) + s' (1 − α·α')      1 − α·α' = ½ |α − α'|².
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from Models.infinite.duals.piecewise import Angle
from Models.infinite.layers.layer import Layer, State, View
from Models.infinite.layers.window import Window, box, patches, total


@dataclass(frozen=True)
class Rates:
    """Of one layer.

    Attributes:
        weight: A > 0, variance of the weights times their number per output.
        bias: B, variance of the bias.
        weight_rate: η, learning rate of the weights times their number per output.
        bias_rate: β, learning rate of the bias; 0 if there is none.
    """

    weight: float
    bias: float
    weight_rate: float
    bias_rate: float


@dataclass(frozen=True)
class Affine(Layer):
    """A linear layer at each position, or a convolution.

    Attributes:
        rates: of it.
        windows: of each spatial dimension; none for a linear layer.
    """

    rates: Rates
    windows: tuple[Window, ...] = ()

    def sizes(self, inputs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        if not self.windows:
            return inputs[0]
        return tuple(w.outputs(size) for w, size in zip(self.windows, inputs[0], strict=True))

    def stride(self, dimension: int) -> int:
        return self.windows[dimension].stride if self.windows else 1

    @property
    def _taps(self) -> int:
        return prod(w.size for w in self.windows)

    def variance(self, maps: Sequence[Tensor]) -> Tensor:
        q = total(maps[0], self.windows) if self.windows else maps[0]
        return q * (self.rates.weight / self._taps) + self.rates.bias

    def apply(self, states: Sequence[State], view: View) -> State:
        (state,) = states
        if state.angle is not None and view.out is not None:
            return self._by_angle(state, state.angle, view)
        q = self._mean(state.covariance(view.sides[0], view.layouts[0]), view)
        t = None
        if view.tangent:
            t = q * self.rates.weight_rate + self.rates.bias_rate
            if state.t is not None:
                t = t.add_(self._mean(state.t, view), alpha=self.rates.weight)
        return State(q * self.rates.weight + self.rates.bias, None, t)

    def _mean(self, block: Tensor, view: View) -> Tensor:
        if not self.windows:
            return block
        return box(block, self.windows, view.layouts[0], view.layout) / self._taps

    # ------------------------------------------------------------------ by the angle

    def _by_angle(self, state: State, angle: Angle, view: View) -> State:
        new = self._turn(angle, view)
        if not view.tangent:
            return State(None, new, None)
        assert view.out is not None
        rates = self.rates
        t = view.out.scale(view.layout)
        t.addcmul_(t, new.u, value=-1)  # q' = s' (1 − u') = A C(q) + B
        ratio = rates.weight_rate / rates.weight
        shift = rates.bias_rate - ratio * rates.bias
        t = t if ratio == 1 else t.mul_(ratio)
        t = t.add_(shift) if shift else t
        if state.t is not None:
            old = box(state.t, self.windows, view.layouts[0], view.layout)
            t.add_(old, alpha=rates.weight / self._taps)
        return State(None, new, t)

    def _turn(self, angle: Angle, view: View) -> Angle:
        if not self.windows and self.rates.bias == 0:
            return angle  # q and s grow alike
        if not self.windows:
            return self._turn_at_each_position(angle, view)
        one, other = self.features(view)
        u = view.layout.deficit(one, other, self._rescaled(angle.u, view), same=view.same)

        def opposite() -> Tensor:
            return view.layout.deficit(one, other, self._opposite(angle, view))

        return Angle(u, opposite)

    def _opposite(self, angle: Angle, view: View) -> Tensor:
        """s' (1 + c') = A C(s p) + s' (1 − α·α') + 2 B; without the middle, over s'."""
        p = self._rescaled(2 - angle.u if angle.p is None else angle.p, view)
        return p.add_(self._twice_bias(view)) if self.rates.bias else p

    def _turn_at_each_position(self, angle: Angle, view: View) -> Angle:
        """α = (cos φ, sin φ), so that 1 − α·α' = 2 sin²((φ − φ')/2)."""
        layout, out = view.layout, view.out
        assert out is not None
        half = out.derived("angle", lambda side: self._bias_angle(view, side) / 2)
        sine = layout.left(half[0].sin()) * layout.right(half[1].cos())
        sine.addcmul_(layout.left(half[0].cos()), layout.right(half[1].sin()), value=-1)
        u = self._rescaled(angle.u, view).addcmul_(sine, sine, value=2)
        return Angle(u, lambda: self._opposite(angle, view).addcmul_(sine, sine, value=2))

    def _bias_angle(self, view: View, side: int) -> Tensor:
        """φ."""
        old = view.side.roots[side]
        return torch.atan2(torch.full_like(old, sqrt(self.rates.bias)), old * self._factor)

    def _twice_bias(self, view: View) -> Tensor:
        """2 B / s'."""
        one, other = (sqrt(2 * self.rates.bias) * x for x in self._reciprocals(view))
        return view.layout.left(one) * view.layout.right(other)

    @property
    def _factor(self) -> float:
        """√(A/F)."""
        return sqrt(self.rates.weight / self._taps)

    def features(self, view: View) -> tuple[Tensor, Tensor]:
        """α and α' of a convolution, [F + 1, *sizes, n] and [F + 1, *sizes, m].

        Args:
            view: where it is applied; its ``out`` is known.
        """
        assert view.out is not None
        return view.out.derived("features", lambda side: self._features(view, side))

    def _features(self, view: View, side: int) -> Tensor:
        read = patches(view.side.roots[side], self.windows) * self._factor
        bias = torch.full_like(read[:1], sqrt(self.rates.bias))
        return torch.cat([read, bias]) * self._reciprocals(view)[side]

    def _reciprocals(self, view: View) -> tuple[Tensor, Tensor]:
        """1/√q₁₁ and 1/√q₂₂ of the output, 1 for zeros."""
        out = view.out
        assert out is not None
        return out.derived("reciprocals", lambda side: 1 / not_zero(out.roots[side]))

    def _rescaled(self, block: Tensor, view: View) -> Tensor:
        """A C(s block) / s'."""
        layout, out, side = view.layouts[0], view.out, view.side
        assert out is not None
        after = self._reciprocals(view)
        if not self.windows:
            one, two = out.derived(
                "ratio", lambda k: side.roots[k] * self._factor * self._reciprocals(view)[k]
            )
            return (block * layout.left(one)).mul_(layout.right(two))
        summed = box(side.scaled(block, layout), self.windows, layout, view.layout)
        one, two = out.derived("shares", lambda k: after[k] * self._factor)
        return summed.mul_(view.layout.left(one)).mul_(view.layout.right(two))


def not_zero(root: Tensor) -> Tensor:
    """Standard deviations by which zeros are divided."""
    return torch.where(root == 0, 1, root)
