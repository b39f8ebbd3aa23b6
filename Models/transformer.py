"""Transformers: a decoder for sequences, and one for images."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from Models.attention import MLP, Attention
from Models.registry import NONLINEARITIES
from Models.shapes import image_shape, shape_text
from Utils.errors import UserError

_ACTIVATIONS = {"mlp": "gelu", "swiglu": "silu"}
_NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What both transformers read; the flags of the same names.

    Attributes:
        depth: blocks.
        width: numbers per token.
        nonlinearity: of the hidden layers, a name in :data:`NONLINEARITIES`; ``None`` is gelu,
            in swiglu silu.
        heads: of attention; divides the width.
        kv_heads: heads with keys and values of their own, divides the heads; ``None`` is all.
        positions: "learned" adds a vector per place, "rope" rotates queries and keys, "none".
        qk_norm: whether queries and keys are normalised.
        norm: "layernorm" or "rmsnorm", before each part of a block and the classifier.
        mlp: "mlp" or "swiglu".
        bias: whether linear layers have one; the embedding of sequences never has.

    Raises:
        UserError: numbers that do not divide each other.
    """

    depth: int
    width: int
    nonlinearity: str | None
    heads: int
    kv_heads: int | None
    positions: Literal["learned", "rope", "none"]
    qk_norm: bool
    norm: Literal["layernorm", "rmsnorm"]
    mlp: Literal["mlp", "swiglu"]
    bias: bool

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(
                f"--width {self.width} is not a multiple of --heads {self.heads}; change one"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise UserError(
                f"--heads {self.heads} is not a multiple of --kv-heads {self.kv_heads}; change one"
            )
        if self.positions == "rope" and self.width // self.heads % 2:
            raise UserError(
                f"--positions rope needs an even number per head, not --width {self.width} / "
                f"--heads {self.heads} = {self.width // self.heads}; change one"
            )


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): [N, T, W] to itself.

    Args:
        options: of the transformer.
        length: T.
        causal: whether a token sees only itself and those before it.
    """

    def __init__(self, options: Options, length: int, causal: bool):
        super().__init__()
        norm = _NORMS[options.norm]
        self.norm1 = norm(options.width)
        self.attention = Attention(
            options.width,
            options.heads,
            options.kv_heads or options.heads,
            bias=options.bias,
            causal=causal,
            rope=length if options.positions == "rope" else None,
            qk_norm=options.qk_norm,
        )
        self.norm2 = norm(options.width)
        activation = NONLINEARITIES[options.nonlinearity or _ACTIVATIONS[options.mlp]].load()()
        self.mlp = MLP(options.width, options.mlp, activation, options.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, W] -> [N, T, W]."""
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class Transformer(nn.Module):
    """Embedding, blocks, normalisation and a linear classifier of one token or of the mean.

    Args:
        embedding: maps the inputs to tokens [N, T, W].
        length: T.
        num_classes: number of outputs.
        options: what it is made of.
        causal: whether a token sees only itself and those before it; then the last one is
            classified, else the mean.
    """

    def __init__(
        self, embedding: nn.Module, length: int, num_classes: int, options: Options, causal: bool
    ):
        super().__init__()
        self.embedding = embedding
        self.positions: nn.Parameter | None = None
        if options.positions == "learned":  # 0.02 as in GPT-2 and ViT: small beside the tokens
            self.positions = nn.Parameter(0.02 * torch.randn(length, options.width))
        self.blocks = nn.Sequential(*(Block(options, length, causal) for _ in range(options.depth)))
        self.norm = _NORMS[options.norm](options.width)
        self.classifier = nn.Linear(options.width, num_classes, bias=options.bias)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        """[N, *input_shape] -> [N, num_classes]."""
        x = self.embedding(x)
        if self.positions is not None:
            x = x + self.positions
        x = self.norm(self.blocks(x))  # [N, T, W]
        logits: Tensor = self.classifier(x[:, -1] if self.causal else x.mean(1))
        return logits


def transformer(input_shape: tuple[int, ...], num_classes: int, **options: Any) -> nn.Module:
    """A decoder-only transformer whose last token is classified: [N, T, D] -> [N, num_classes].

    Args:
        input_shape: (T, D): tokens and the numbers in each, real or one-hot.
        num_classes: number of outputs.
        **options: of :class:`Options`.

    Raises:
        UserError: the examples are no sequences, or the options contradict each other.
    """
    if len(input_shape) != 2:
        raise UserError(
            f"--model transformer reads sequences (tokens, features), not inputs of shape "
            f"{shape_text(input_shape)}; use --model vit for images, or another --dataset"
        )
    read = Options(**options)
    length, features = input_shape
    embedding = nn.Linear(features, read.width, bias=False)
    return Transformer(embedding, length, num_classes, read, causal=True)


def vit(
    input_shape: tuple[int, ...], num_classes: int, *, patch_size: int, **options: Any
) -> nn.Module:
    """A transformer of an image's patches, classified by their mean: [N, C, H, W] -> [N, classes].

    The mean instead of a class token: Beyer et al. (2022), Better plain ViT baselines for
    ImageNet-1k, arXiv 2205.01580. Positions count the patches row by row.

    Args:
        input_shape: (channels, height, width) of one example.
        num_classes: number of outputs.
        patch_size: side of a patch in pixels; divides height and width.
        **options: of :class:`Options`.

    Raises:
        UserError: the examples are no images that can be cut into such patches, or the options
            contradict each other.
    """
    channels, height, width = image_shape("vit", input_shape)
    if height % patch_size or width % patch_size:
        raise UserError(
            f"--patch-size {patch_size} does not divide images of {height}x{width} pixels; "
            "choose another"
        )
    read = Options(**options)
    patches = nn.Conv2d(channels, read.width, patch_size, stride=patch_size, bias=read.bias)
    embedding = nn.Sequential(OrderedDict(patches=patches, flatten=nn.Flatten(2), tokens=_Swap()))
    length = (height // patch_size) * (width // patch_size)
    return Transformer(embedding, length, num_classes, read, causal=False)


class _Swap(nn.Module):
    """[N, W, T] -> [N, T, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)
