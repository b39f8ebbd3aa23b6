"""Kernels of neural-tangents, of the same networks written in torch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from Models.infinite import Parametrization, infinite_network
from tests.neural_tangents import KernelCase, Layer, kernel_cases

GROUPS = {"depth", "activation", "convolution", "pooling", "residual", "LayerNorm", "net"}
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
        elif layer["layer"] == "FanInSum":
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
        if kind == "FanInSum":
            joined: Tensor = sum(branch(x) for branch in part)
            return joined
        if kind == "Flatten":
            return x.flatten(1)
        if kind in {"GlobalAvgPool", "GlobalSumPool"}:
            axes = tuple(range(2, x.dim()))
            return x.mean(axes) if kind == "GlobalAvgPool" else x.sum(axes)
        if kind == "LayerNorm":
            return normalised(x, layer.get("eps", 1e-12), layer.get("axis", [-1]))
        if kind == "AvgPool" and layer.get("padding", "VALID") == "VALID":
            return F.avg_pool2d(x, layer["window_shape"], layer["strides"] or (1, 1))
        pytest.skip(f"{kind} {layer} has no counterpart here")


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
    if layer["padding"] == "VALID":
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


CASES = [case for case in kernel_cases() if case.group in GROUPS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_those_of_neural_tangents(case: KernelCase) -> None:
    x = torch.from_numpy(case.inputs).movedim(-1, 1)
    names = {layer["layer"] for layer in case.layers}
    if names & {"Rbf", "Sigmoid_like", "Gabor", "ExpNormalized", "RectifiedMonomial", "SumPool"}:
        pytest.skip("no function of torch, or none that is stored whole")
    if case.name.startswith("activation: Sign; 2"):
        pytest.skip("arcsin of arcsin at 1 leaves a quarter of the digits to both")
    network = Net(case.layers, x.shape[1], x.dim() - 2).double()
    network(x)
    kind: Any = parametrizations(case.layers).pop()
    stds = {name: m.std for name, m in network.named_modules() if hasattr(m, "std")}
    scaling = Parametrization(
        kind,
        {name: float(std[0]) ** 2 for name, std in stds.items()},
        {name: float(std[1]) ** 2 for name, std in stds.items()},
    )
    found = infinite_network(network, tuple(x.shape[1:]), scaling=scaling).kernels(x)
    for kernel, expected in ((found.nngp, case.nngp), (found.ntk, case.ntk)):
        assert kernel is not None
        reference = torch.from_numpy(expected)
        size = float(reference.abs().max())
        assert float((kernel - reference).abs().max()) < 1e-6 * size
