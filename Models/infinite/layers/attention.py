"""Self-attention whose weights are no longer random when it is wide."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from Models.infinite.layers.layer import Layer, State, View


@dataclass(frozen=True)
class Attention(Layer):
    """G v, G = ζ(k kᵀ/d): keys that are their own queries, divided by their number d.

    The scores of wide layers are the keys' covariances between the positions of one example, so
    that q ← G q Gᵀ with the weights G of either side, and likewise t; the gradient by the keys
    vanishes as 1/d (Hron et al. 2020, arXiv 2006.10540, section 3.1).

    Attributes:
        weights: ζ, of scores times d / d, [n, P, P] by queries and keys.
    """

    weights: Callable[[Tensor], Tensor]
    positions = "all"
    normalises = True
    reads_own = True

    def sizes(self, inputs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return inputs[0]

    def variance(self, maps: Sequence[Tensor]) -> None:
        return None

    def apply(self, states: Sequence[State], view: View) -> State:
        value, layout = states[0], view.layouts[0]
        assert view.own is not None
        one, other = (self._mixture(own) for own in view.own)
        count = prod(layout.full)

        def mixed(block: Tensor) -> Tensor:
            flat = block.reshape(count, count, *block.shape[-2:])
            return torch.einsum("npa,abnm,mqb->pqnm", one, flat, other).reshape(block.shape)

        q = mixed(value.covariance(view.sides[0], layout))
        return State(q, None, None if value.t is None else mixed(value.t))

    def _mixture(self, own: Tensor) -> Tensor:
        """G, [n, P, P]."""
        count = prod(own.shape[: (own.dim() - 1) // 2])
        return self.weights(own.reshape(count, count, -1).permute(2, 0, 1))
