"""Transformer blocks in the shapes in which attention comes, for the zoo and for matrix laws."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Self-attention of ``heads`` heads, ``groups`` of which share keys and values.

    Args:
        width: of the residual stream, and of all heads together.
        heads: of the queries.
        groups: heads of the keys and values.
        bias: of all four maps.
        rope: rotate queries and keys by their positions.
        qk_norm: normalise every query and key.
        explicit: write the softmax out instead of using torch's function.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        groups: int = 0,
        bias: bool = True,
        rope: bool = False,
        qk_norm: bool = False,
        explicit: bool = False,
    ):
        super().__init__()
        self.heads, self.groups = heads, groups or heads
        self.rope, self.qk_norm, self.explicit = rope, qk_norm, explicit
        self.size = width // heads
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(width, self.groups * self.size, bias=bias)
        self.v = nn.Linear(width, self.groups * self.size, bias=bias)
        self.o = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(part(x)) for part in (self.q, self.k, self.v))
        if self.qk_norm:
            q, k = (functional.rms_norm(part, (self.size,), eps=1e-30) for part in (q, k))
        if self.rope:
            q, k = self.rotated(q), self.rotated(k)
        mixed = self.mixed(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.o(mixed)
        return out

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.explicit:
            scores = q @ k.transpose(-2, -1) / self.size**0.5
            result: Tensor = scores.softmax(-1) @ v
            return result
        grouped = self.groups != self.heads
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    def split(self, x: Tensor) -> Tensor:
        """[B, T, heads × size] -> [B, heads, T, size]."""
        return x.view(*x.shape[:-1], -1, self.size).transpose(1, 2)

    def rotated(self, x: Tensor) -> Tensor:
        """Every pair of entries, turned by an angle that grows with the position."""
        places = torch.arange(x.shape[-2], dtype=x.dtype)
        rates = 10.0 ** -torch.arange(self.size // 2, dtype=x.dtype)
        angle = places[:, None] * rates
        left, right = x.chunk(2, -1)
        cosine, sine = angle.cos(), angle.sin()
        return torch.cat([left * cosine - right * sine, left * sine + right * cosine], -1)


class Block(nn.Module):
    """Embedding, pre-norm attention, a gated MLP, and a classifier of the mean."""

    def __init__(self, inputs: int, classes: int, attention: Attention, gated: bool = True):
        super().__init__()
        width = attention.q.in_features
        self.embedding = nn.Linear(inputs, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = attention
        self.up, self.gate = nn.Linear(width, 5), nn.Linear(width, 5)
        self.down = nn.Linear(5, width)
        self.head = nn.Linear(width, classes)
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        x = x + self.attention(self.norms[0](x))
        y = self.norms[1](x)
        hidden = functional.silu(self.gate(y)) * self.up(y) if self.gated else self.up(y).relu()
        x = x + self.down(hidden)
        logits: Tensor = self.head(self.norms[2](x).mean(1))
        return logits
