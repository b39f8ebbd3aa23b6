"""The finite networks whose empirical kernels are timed, described once for torch and the rival.

A layer is a mapping that JSON can hold; ``at`` prefixes its parameters in the state dict::

    {"layer": "linear", "at": "fc", "in": 512, "out": 10}
    {"layer": "conv", "at": "c0", "in": 3, "out": 32, "kernel": 3, "stride": 1, "padding": 1,
     "bias": True}
    {"layer": "norm", "at": "n0", "channels": 16, "eps": 1e-5}    batch normalisation, evaluating
    {"layer": "relu"}, {"layer": "pool"}                          the mean over positions
    {"layer": "sum", "branches": [[…], [], …]}                    an empty branch is the identity

``scripts.neural_tangents.networks.finite`` reads the same.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

Layer = dict[str, Any]

RELU: Layer = {"layer": "relu"}
POOL: Layer = {"layer": "pool"}


def mlp(widths: Sequence[int] = (784, 512, 512, 10)) -> list[Layer]:
    """A fully connected ReLU network."""
    layers: list[Layer] = []
    for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
        layers += [{"layer": "linear", "at": f"fc{number}", "in": fan_in, "out": fan_out}, RELU]
    return layers[:-1]


def cnn() -> list[Layer]:
    """Four convolutions and a linear layer, 66,000 parameters, for 3x32x32 images."""
    layers: list[Layer] = []
    for number, (a, b, stride) in enumerate([(3, 32, 1), (32, 32, 2), (32, 64, 2), (64, 64, 1)]):
        layers += [_conv(f"conv{number}", a, b, stride, bias=True), RELU]
    return [*layers, POOL, {"layer": "linear", "at": "fc", "in": 64, "out": 10}]


def resnet18(width: int = 16) -> list[Layer]:
    """ResNet-18 (He et al. 2015) for small images: no first pooling; 0.70 million parameters."""
    layers = [_conv("conv", 3, width, 1), _norm("norm", width), RELU]
    channels = width
    for stage, (factor, stride) in enumerate([(1, 1), (2, 2), (4, 2), (8, 2)]):
        for block in range(2):
            at, out = f"s{stage}b{block}", width * factor
            layers += _block(at, channels, out, stride if block == 0 else 1)
            channels = out
    return [*layers, POOL, {"layer": "linear", "at": "fc", "in": channels, "out": 10}]


def _block(at: str, a: int, b: int, stride: int) -> list[Layer]:
    main = [_conv(f"{at}conv0", a, b, stride), _norm(f"{at}norm0", b), RELU]
    main += [_conv(f"{at}conv1", b, b, 1), _norm(f"{at}norm1", b)]
    shortcut = [_conv(f"{at}conv2", a, b, stride, kernel=1), _norm(f"{at}norm2", b)]
    same = a == b and stride == 1
    return [{"layer": "sum", "branches": [main, [] if same else shortcut]}, RELU]


def _conv(at: str, a: int, b: int, stride: int, kernel: int = 3, bias: bool = False) -> Layer:
    window = {"kernel": kernel, "stride": stride, "padding": kernel // 2}
    return {"layer": "conv", "at": at, "in": a, "out": b, **window, "bias": bias}


def _norm(at: str, channels: int) -> Layer:
    return {"layer": "norm", "at": at, "channels": channels, "eps": 1e-5}


NETWORKS = {
    "mlp": (mlp(), (784,)),
    "cnn": (cnn(), (3, 32, 32)),
    "resnet18": (resnet18(), (3, 32, 32)),
}
"""Layers, and the shape of one input."""


class Finite(nn.Module):
    """The torch network of a description, in evaluation, with running statistics not trivial.

    Args:
        layers: its description.
        seed: of the weights.
        dtype: of weights and statistics, drawn in float64 and rounded.
    """

    def __init__(self, layers: Sequence[Layer], seed: int = 0, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.layers = layers
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for layer in _with_parameters(layers):
                self.add_module(layer["at"], _module(layer))
        self.to(dtype).eval()

    def forward(self, values: Tensor) -> Tensor:
        return self._run(self.layers, values)

    def _run(self, layers: Sequence[Layer], values: Tensor) -> Tensor:
        for layer in layers:
            if layer["layer"] == "sum":
                first, *rest = (self._run(branch, values) for branch in layer["branches"])
                values = sum(rest, start=first)
            elif layer["layer"] == "relu":
                values = values.relu()
            elif layer["layer"] == "pool":
                values = values.mean((2, 3))
            else:
                values = self.get_submodule(layer["at"])(values)
        return values


def _with_parameters(layers: Sequence[Layer]) -> Iterator[Layer]:
    for layer in layers:
        for branch in layer.get("branches", ()):
            yield from _with_parameters(branch)
        if "at" in layer:
            yield layer


def _module(layer: Layer) -> nn.Module:
    float64: dict[str, Any] = {"dtype": torch.float64}
    if layer["layer"] == "linear":
        return nn.Linear(layer["in"], layer["out"], **float64)
    if layer["layer"] == "conv":
        window = (layer["kernel"], layer["stride"], layer["padding"])
        return nn.Conv2d(layer["in"], layer["out"], *window, bias=layer["bias"], **float64)
    norm = nn.BatchNorm2d(layer["channels"], layer["eps"], **float64)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_(0, 0.1)
    norm.running_var.uniform_(0.5, 1.5)
    return norm
