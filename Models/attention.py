"""Attention with separate projections, grouped keys, rotary positions and normalised queries.

Letters in shapes: N examples, T tokens, W width of the model, h heads, g of them with keys and
values of their own, d = W / h.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

ROPE_BASE = 10_000.0
"""Su et al. (2021), RoFormer, arXiv 2104.09864, section 3.2.2."""


class Attention(nn.Module):
    """o(softmax(q kᵀ / √d) v) in each head (Vaswani et al. 2017, equation 1): [N, T, W] to itself.

    Args:
        width: W.
        heads: h; divides W.
        kv_heads: g; divides h. Consecutive h / g heads share keys and values (Ainslie et al.
            2023, GQA, arXiv 2305.13245).
        bias: whether the four projections have one.
        causal: whether a token sees only itself and those before it.
        rope: the most tokens there are, if queries and keys are rotated; else ``None``.
        qk_norm: whether each head's queries and keys are divided by their root mean square,
            without gains (Henry et al. 2020, arXiv 2010.04245, with RMS and √d as scale).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        *,
        bias: bool,
        causal: bool,
        rope: int | None,
        qk_norm: bool,
    ):
        super().__init__()
        size = width // heads
        self.size, self.causal, self.grouped = size, causal, kv_heads != heads
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(width, kv_heads * size, bias=bias)
        self.v = nn.Linear(width, kv_heads * size, bias=bias)
        self.o = nn.Linear(width, width, bias=bias)
        self.qk_norm = nn.RMSNorm(size, elementwise_affine=False) if qk_norm else None
        self.rotation = None if rope is None else Rotation(rope, size)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, W] -> [N, T, W]."""
        q, k, v = (self._heads(part(x)) for part in (self.q, self.k, self.v))
        if self.qk_norm is not None:
            q, k = self.qk_norm(q), self.qk_norm(k)
        if self.rotation is not None:
            q, k = self.rotation(q), self.rotation(k)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, is_causal=self.causal, enable_gqa=self.grouped
        )  # [N, h, T, d]
        result: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return result

    def _heads(self, x: Tensor) -> Tensor:
        """[N, T, h d] -> [N, h, T, d]."""
        return torch.unflatten(x, 2, (-1, self.size)).transpose(1, 2)


class Rotation(nn.Module):
    """Rotary positions: features (2i, 2i + 1) of token t are turned by t / 10000^(2i/d).

    Su et al. (2021), equation 34. The product of a rotated query and a rotated key depends on
    the difference of their positions only.

    Args:
        length: the most tokens there are.
        size: d, even.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, length: int, size: int):
        super().__init__()
        # In float64, so that both number formats of a model have them to their full precision.
        frequencies = ROPE_BASE ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)  # [T, d/2]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., T, d] -> [..., T, d]."""
        cos, sin = (table[: x.shape[-2]].to(x.dtype) for table in (self.cos, self.sin))
        first, second = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
        turned = (first * cos - second * sin, first * sin + second * cos)
        return torch.stack(turned, -1).flatten(-2)


class MLP(nn.Module):
    """down(f(up(x))), or gated, down(f(gate(x)) up(x)): [N, T, W] to itself.

    SwiGLU is the gated one with f(x) = x sigmoid(x) (Shazeer 2020, arXiv 2002.05202, equation
    6); its three layers have 2/3 of the neurons, so that both have about as many parameters.

    Args:
        width: W; there are 4 W neurons, gated 8/3 W.
        kind: "mlp" or "swiglu".
        activation: f.
        bias: whether the layers have one.
    """

    def __init__(
        self, width: int, kind: Literal["mlp", "swiglu"], activation: nn.Module, bias: bool
    ):
        super().__init__()
        gated = kind == "swiglu"
        neurons = 8 * width // 3 if gated else 4 * width
        self.gate = nn.Linear(width, neurons, bias=bias) if gated else None
        self.up = nn.Linear(width, neurons, bias=bias)
        self.activation = activation
        self.down = nn.Linear(neurons, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, W] -> [N, T, W]."""
        hidden = self.activation(self.up(x) if self.gate is None else self.gate(x))
        if self.gate is not None:
            hidden = hidden * self.up(x)
        result: Tensor = self.down(hidden)
        return result
