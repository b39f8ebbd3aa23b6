"""Networks of the stored kernels of neural-tangents, written in torch."""

from collections.abc import Callable
from math import pi
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.neural_tangents import Layer

ACTIVATIONS: dict[str, Any] = {
    "Relu": torch.relu,
    "LeakyRelu": lambda x, alpha: F.leaky_relu(x, alpha),
    "Abs": torch.abs,
    "ABRelu": lambda x, a, b: a * torch.clamp(x, max=0) + b * torch.relu(x),
    "Erf": lambda x, a=1.0, b=1.0, c=0.0: a * torch.erf(b * x) + c,
    "Gelu": F.gelu,
    "Sin": lambda x, a=1.0, b=1.0, c=0.0: a * torch.sin(b * x + c),
    "Cos": lambda x, a=1.0, b=1.0, c=0.0: a * torch.cos(b * x + c),
    "Sign": torch.sign,
    "Gaussian": lambda x, a=1.0, b=-1.0: a * torch.exp(b * x**2),
    "Exp": lambda x, a=1.0, b=1.0: a * torch.exp(b * x),
    "Monomial": lambda x, degree: x**degree if degree else 1 + 0 * x,
    "Polynomial": lambda x, coef: sum(c * x**k for k, c in enumerate(coef)),
    "Hermite": lambda x, degree: HERMITE[degree](x),
    "Rbf": lambda x, gamma=1.0: 2**0.5 * torch.sin((2 * gamma) ** 0.5 * x + pi / 4),
    "Sigmoid_like": lambda x: 0.5 * torch.erf(x / 2.4020563531719796) + 0.5,
    "Gabor": lambda x: torch.exp(-(x**2)) * torch.sin(x),
    "RectifiedMonomial": lambda x, degree: torch.relu(x) ** degree if degree else F.relu(x.sign()),
}
JOINS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "FanInSum": lambda branches: sum(branches[1:], branches[0]),
    "FanInProd": lambda branches: branches[0] * branches[1],
    "FanInConcat": lambda branches: torch.cat(branches, 1),
}
UNWRITTEN = {
    "ExpNormalized": "a kernel of no elementwise function",
    "ConvLocal": "torch has no locally connected layer",
    "ConvTranspose": "transposed convolutions are not read",
}
HERMITE: list[Any] = [
    lambda x: 1 + 0 * x,
    lambda x: 1.0 * x,
    lambda x: (x**2 - 1) / 2**0.5,
    lambda x: (x**3 - 3 * x) / 6**0.5,
    lambda x: (x**4 - 6 * x**2 + 3) / 24**0.5,
    lambda x: (x**5 - 10 * x**3 + 15 * x) / 120**0.5,
]


class Net(nn.Module):
    """A list of layers; channels first."""

    def __init__(self, layers: list[Layer], channels: int, positions: int):
        super().__init__()
        self.layers, self.parts = layers, nn.ModuleList()
        self.channels, self.dimensions = channels, positions
        for layer in layers:
            self.parts.append(self._part(layer))

    def _part(self, layer: Layer) -> nn.Module:
        bias = layer.get("b_std") is not None
        if layer["layer"] == "Dense":
            part: nn.Module = nn.LazyLinear(layer["out_dim"], bias=bias)
        elif layer["layer"] == "Conv":
            kinds: dict[int, Any] = {1: nn.LazyConv1d, 2: nn.LazyConv2d}
            shape = layer["filter_shape"]
            part = kinds[len(shape)](layer["out_chan"], shape, layer["strides"], bias=bias)
        elif layer["layer"] == "Dropout":
            part = nn.Dropout(1 - layer["rate"])
        elif layer["layer"] == "GlobalSelfAttention":
            return Attention(layer)
        elif "branches" in layer:
            part = nn.ModuleList(Net(b, 0, self.dimensions) for b in layer["branches"])
        else:
            part = nn.Identity()
        part.std = (layer.get("W_std", 1.0), layer.get("b_std") or 0.0)  # type: ignore[assignment]
        return part

    def forward(self, x: Tensor) -> Tensor:
        for layer, part in zip(self.layers, self.parts, strict=True):
            x = self._through(layer, part, x)
        return x

    def _through(self, layer: Layer, part: Any, x: Tensor) -> Tensor:
        kind = layer["layer"]
        if kind in ACTIVATIONS:
            arguments = {k: v for k, v in layer.items() if k != "layer"}
            result: Tensor = ACTIVATIONS[kind](x, **arguments)
            return result
        if kind == "Dense":
            return part(x)  # type: ignore[no-any-return]
        if kind == "Conv":
            return part(padded(x, layer, layer["filter_shape"]))  # type: ignore[no-any-return]
        if kind in JOINS:
            return JOINS[kind]([branch(x) for branch in part])
        if kind in {"Identity", "Dropout", "GlobalSelfAttention"}:
            return part(x)  # type: ignore[no-any-return]
        if kind == "Flatten":
            return x.flatten(1)
        if kind in {"GlobalAvgPool", "GlobalSumPool"}:
            axes = tuple(range(2, x.dim()))
            return x.mean(axes) if kind == "GlobalAvgPool" else x.sum(axes)
        if kind == "LayerNorm":
            return normalised(x, layer.get("eps", 1e-12), layer.get("axis", [-1]))
        if kind in {"AvgPool", "SumPool"}:
            return pooled(x, layer)
        pytest.skip(UNWRITTEN[kind])


class Attention(nn.Module):
    """Of one head: with scores divided by d, heads are alike. Keys are their own queries."""

    def __init__(self, layer: Layer):
        super().__init__()
        if set(layer) & {"pos_emb_type", "linear_scaling"}:
            pytest.skip("positions added to keys, or 1/√d, are not read")
        self.kind, self.d = layer.get("attention_mechanism", "SOFTMAX"), layer["n_chan_key"]
        deviation = layer.get("b_std")
        self.key = nn.LazyLinear(self.d, bias=False)
        self.value = nn.LazyLinear(layer["n_chan_val"], bias=False)
        self.out = nn.LazyLinear(layer["n_chan_out"], bias=deviation is not None)
        # Queries of variance 0.9² and keys of 1.1² count by their product.
        both = (layer["W_key_std"] * layer["W_query_std"]) ** 0.5
        stds = (both, 0.0), (layer["W_value_std"], 0.0), (layer["W_out_std"], deviation or 0.0)
        for part, std in zip((self.key, self.value, self.out), stds, strict=True):
            part.std = std  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 3:
            pytest.skip("the rows of an image are not made one axis with its columns")
        x = x.transpose(1, 2)
        k = self.key(x)
        scores = k @ k.transpose(1, 2) / self.d
        mixed = MECHANISMS[self.kind](scores) @ self.value(x)
        result: Tensor = self.out(mixed).transpose(1, 2)
        return result


MECHANISMS: dict[str, Callable[[Tensor], Tensor]] = {
    "SOFTMAX": lambda scores: scores.softmax(-1),
    "IDENTITY": lambda scores: scores,
    "ABS": torch.abs,
    "RELU": torch.relu,
}


def pooled(x: Tensor, layer: Layer) -> Tensor:
    """Windows over the edge count with all their size, unless the edges are normalised."""
    window, strides = layer["window_shape"], layer.get("strides") or [1] * (x.dim() - 2)
    if layer.get("normalize_edges"):
        edges = [size // 2 for size in window]
        return F.avg_pool2d(x, window, strides, edges, count_include_pad=False)
    divisor = 1 if layer["layer"] == "SumPool" else None
    x = padded(x, {**layer, "strides": strides}, window)
    return F.avg_pool2d(x, window, strides, divisor_override=divisor)


def normalised(x: Tensor, eps: float, axis: list[int]) -> Tensor:
    if x.dim() == 2:
        return F.layer_norm(x, x.shape[1:], eps=eps)
    if axis == [1, 2, 3]:
        return F.layer_norm(x, x.shape[1:], eps=eps)
    if axis == [3]:
        return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=eps).permute(0, 3, 1, 2)
    pytest.skip("normalisation over channels and one dimension")


def padded(x: Tensor, layer: Layer, window: list[int]) -> Tensor:
    """SAME as XLA pads: the larger half at the end."""
    if layer.get("padding", "VALID") == "VALID":
        return x
    pads: list[int] = []
    for size, k, stride in zip(x.shape[2:], window, layer["strides"], strict=True):
        total = max((-(-size // stride) - 1) * stride + k - size, 0)
        pads = [total // 2, total - total // 2, *pads]
    if not any(pads):
        return x
    return F.pad(x, pads, mode="circular" if layer["padding"] == "CIRCULAR" else "constant")


def parametrizations(layers: list[Layer]) -> set[str]:
    own = {layer["parameterization"] for layer in layers if "parameterization" in layer}
    branches = (branch for layer in layers for branch in layer.get("branches", ()))
    return own.union(*map(parametrizations, branches))
