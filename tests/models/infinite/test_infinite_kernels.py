"""Kernels against 50 digits, wide finite networks, themselves in other tiles and number formats."""

from collections.abc import Callable
from math import prod, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import Models.infinite.engine as engine
from Models.infinite import InfiniteNetwork, Kernels, Parametrization, infinite_network
from tests.models.infinite.references import (
    agrees,
    convolution_exactly,
    dense_exactly,
    sampled,
)

FORMATS = [pytest.param(torch.float64, 1e-12, id="64"), pytest.param(torch.float32, 1e-6, id="32")]


def relative(found: Tensor | None, expected: Tensor | None) -> float:
    assert found is not None
    assert expected is not None
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max())


def dense(depth: int, a: float, width: int = 4, inputs: int = 6) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), nn.LeakyReLU(a)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 5))


def hard_points() -> Tensor:
    """Duplicates, nearly so from 1e-1 to 1e-6, antipodes, collinear ones, and others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    one = x[3]
    near = [one + 10.0**-k * x[3 + k] for k in range(1, 7)]
    special = [one, -one, 2 * one, -3 * one + 1e-4 * x[0], -one + 1e-6 * x[1]]
    return torch.stack([*x[:4], *near, *special])


# ---------------------------------------------------------------------- 50 digits


@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
@pytest.mark.parametrize("bias", [0.0, 0.1])
@pytest.mark.parametrize(("a", "depth"), [(0.0, 1), (0.0, 10), (0.1, 10), (-1.0, 10), (0.9, 10)])
def test_fully_connected_to_all_digits(
    a: float, depth: int, bias: float, dtype: torch.dtype, tolerance: float
) -> None:
    x, weight = hard_points().to(dtype), 2 / (1 + a * a)
    network = infinite_network(dense(depth, a), (6,), scaling=Parametrization("ntk", weight, bias))
    nngp, ntk = dense_exactly(x, depth, a, 1.0, weight, bias)
    for found in (network.kernels(x), network.kernels(x, x.clone())):
        assert relative(found.nngp, nngp) < tolerance
        assert relative(found.ntk, ntk) < tolerance


class Convolutions(nn.Module):
    """Three of size 3 with ReLU, and a linear layer."""

    def __init__(self, pooled: bool):
        super().__init__()
        self.first = nn.Conv1d(2, 4, 3, padding=1)
        self.second = nn.Conv1d(4, 4, 3, padding="same")
        self.third = nn.Conv1d(4, 4, 3, stride=2, padding=1)
        self.pooled = pooled
        self.last = nn.Linear(4 if pooled else 12, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second, self.third):
            x = torch.relu(layer(x))
        result: Tensor = self.last(x.mean(2) if self.pooled else x.flatten(1))
        return result


@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
@pytest.mark.parametrize("bias", [0.0, 0.1])
@pytest.mark.parametrize("pooled", [False, True])
def test_convolutions_to_all_digits(
    pooled: bool, bias: float, dtype: torch.dtype, tolerance: float
) -> None:
    x = torch.randn(5, 2, 6, dtype=torch.float64)
    x[1], x[2], x[3] = x[0], x[0] * (1 + 1e-3) + 1e-5 * x[2], -x[0] + 1e-4 * x[3]
    x = x.to(dtype)
    network = infinite_network(
        Convolutions(pooled), (2, 6), scaling=Parametrization("ntk", 2, bias)
    )
    nngp, ntk = convolution_exactly(x, (1, 1, 2), 2.0, bias, pooled)
    found = network.kernels(x)
    assert relative(found.nngp, nngp) < tolerance
    assert relative(found.ntk, ntk) < tolerance


# ---------------------------------------------------------------------- wide finite networks

W, C = 256, 48


class Residual(nn.Module):
    """A normalised block, a scaled sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Linear(6, W), nn.Linear(W, W)
        self.norm, self.down, self.last = nn.LayerNorm(W), nn.Linear(W, W), nn.Linear(W, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x - self.down(F.silu(self.up(self.norm(x)))) * 0.7
        result: Tensor = self.last(torch.tanh(x))
        return result


class Gated(nn.Module):
    """Gate and values read one hidden layer, and so does what is concatenated with them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Linear(5, 300), nn.Linear(300, 200)
        self.value, self.rest = nn.Linear(300, 200), nn.Linear(300, 100)
        self.last = nn.Linear(300, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        gated = self.gate(h).sigmoid() * self.value(h)
        result: Tensor = self.last(torch.cat([gated, self.rest(h).tanh()], 1))
        return result


class PreActivation(nn.Module):
    """A block with stride and a projected branch, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, C, 3, padding=1, padding_mode="circular")
        self.down = nn.Conv2d(C, C, 3, padding=1, stride=2)
        self.same = nn.Conv2d(C, C, 3, padding="same", dilation=2)
        self.skip = nn.Conv2d(C, C, 1, stride=2, bias=False)
        self.last = nn.Linear(C, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.skip(x) + self.same(F.gelu(self.down(torch.relu(x))))
        result: Tensor = self.last(F.avg_pool2d(F.leaky_relu(x, 0.2), 2).flatten(1))
        return result


def pooled_twice() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, C, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(C, C, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(C, 8)),
    )


def flattened() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, C, 3), nn.Tanh(), nn.Conv2d(C, C, (2, 3), stride=(1, 2)), nn.ELU()),
        *(nn.Flatten(), nn.Linear(2 * C, 8, bias=False)),
    )


def tokens() -> nn.Module:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1)

    return nn.Sequential(
        *(nn.Linear(3, W), nn.RMSNorm(W, elementwise_affine=False), nn.Linear(W, W), nn.ReLU()),
        *(Mean(), nn.Linear(W, 8)),
    )


FINITE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (6,)),
    "pre-activation": (PreActivation, (2, 4, 4)),
    "pooled twice": (pooled_twice, (2, 4, 4)),
    "flattened": (flattened, (2, 4, 7)),
    "tokens": (tokens, (4, 3)),
    "gated": (Gated, (5,)),
}


@pytest.mark.parametrize("kind", ["ntk", "standard"])
@pytest.mark.parametrize("name", FINITE)
def test_wide_networks_have_these_kernels(name: str, kind: Any) -> None:
    make, shape = FINITE[name]
    variance, bias, n = 1.7, 0.2, 3
    x = torch.randn(n, *shape, dtype=torch.float64)
    x[1] = 0.9 * x[0] + 0.1 * x[1]

    def rates(parameter: str, p: nn.Parameter) -> tuple[float, float]:
        if "norm" in parameter:
            return -1.0, 1.0
        fan_in = p[0].numel() if p.dim() > 1 else 1
        std = sqrt(variance / fan_in) if p.dim() > 1 else sqrt(bias)
        return std, std**2 if kind == "ntk" else 1.0

    nngp, ntk = sampled(make, x, rates, samples=8)
    network = infinite_network(make(), shape, scaling=Parametrization(kind, variance, bias))
    found = network.kernels(x)
    assert found.nngp is not None
    assert found.ntk is not None
    assert agrees(nngp, found.nngp, 0.05)
    assert agrees(ntk, found.ntk, 0.05)
    assert relative(ntk.mean(0), found.ntk) < 0.2


@pytest.mark.parametrize(("trained", "share"), [("0.", 1.0), ("2.", 0.25), ("4.weight", 0.25)])
def test_the_width_scale_is_the_base_width(trained: str, share: float) -> None:
    """Hidden and last weights count 64/s each, inputs' weights and biases do not scale."""
    network = dense(2, 0.0, width=64)
    x = torch.randn(3, 6, dtype=torch.float64)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(trained) and name != "2.bias")

    def ntk(scale: float) -> Tensor:
        scaling = Parametrization("standard", width_scale=scale)
        found = infinite_network(network, (6,), scaling=scaling).kernels(x).ntk
        assert found is not None
        return found

    assert torch.allclose(ntk(4.0), share * ntk(1.0), rtol=1e-12)


# ---------------------------------------------------------------------- tiles, formats, sides


class Wide(nn.Module):
    """Odd sizes: padding, strides, overlapping windows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=2)
        self.second = nn.Conv2d(4, 4, (3, 2), padding=1, stride=(2, 1))
        self.third = nn.Conv2d(4, 4, 3)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(F.pad(torch.relu(self.first(x)), (1, 0, 0, 2))))
        x = F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False)
        result: Tensor = self.last(torch.relu(self.third(x)).mean((2, 3)))
        return result


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: dense(3, 0.0), (6,)),
    "wide": (Wide, (2, 7, 6)),
    **FINITE,
}


def network_of(name: str) -> tuple[InfiniteNetwork, tuple[int, ...]]:
    make, shape = NETWORKS[name]
    return infinite_network(make(), shape, scaling=Parametrization("ntk", 1.9, 0.1)), shape


def same(found: Kernels, expected: Kernels, tolerance: float) -> bool:
    pairs = ((found.nngp, expected.nngp), (found.ntk, expected.ntk))
    return all(relative(*pair) < tolerance for pair in pairs)


@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_offsets_and_formats_do_not_matter(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, shape = network_of(name)
    x = torch.randn(5, *shape, dtype=torch.float64)
    whole = network.kernels(x)
    # Series have as many terms as a tile's widest variances need.
    exact = 1e-8 if name in {"residual", "flattened", "gated"} else 1e-11
    done: list[tuple[int, int]] = []
    assert same(network.kernels(x, block=1, progress=lambda *p: done.append(p)), whole, exact)
    assert done[-1][0] == done[-1][1]
    assert same(network.kernels(x, block=8 * prod(shape) ** 2), whole, exact)
    assert same(network.kernels(x, dtype=torch.float32), whole, 2e-6)
    part = network.kernels(x[3:], x[:2])
    assert whole.nngp is not None
    assert whole.ntk is not None
    assert same(part, Kernels(whole.nngp[3:, :2], whole.ntk[3:, :2]), 1e-8)
    only = network.kernels(x, get=("nngp",))
    assert only.ntk is None
    assert relative(only.nngp, whole.nngp) < 1e-12
    monkeypatch.setattr(engine, "STREAM_FROM", 0)
    assert same(network.kernels(x), whole, 1e-9)


def test_row_offsets_are_streamed_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "STREAM_FROM", 0)
    modes = {name: engine.mode_of(network_of(name)[0].program) for name in NETWORKS}
    assert modes == {
        "dense": "diagonal",
        "residual": "diagonal",
        "flattened": "diagonal",
        "tokens": "full",  # one dimension
        "gated": "diagonal",
        "pre-activation": "full",  # circular
        "pooled twice": "stream",
        "wide": "stream",
    }


def test_blank_pixels_have_torchs_derivative_at_zero() -> None:
    """Without biases, a blank corner stays blank; with their rates alone its kernel is not zero."""

    class Corner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 256, 3), nn.Conv2d(256, 256, 1)
            self.last = nn.Linear(4 * 256, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.leaky_relu(self.second(F.leaky_relu(self.first(x), 0.3)), 0.3)
            result: Tensor = self.last(x.flatten(1))
            return result

    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    x[:, :, 1:, 3] = torch.randn(2, 1, 3)

    def rates(_: str, p: nn.Parameter) -> tuple[float, float]:
        return (sqrt(2 / p[0].numel()), 2 / p[0].numel()) if p.dim() > 1 else (0.0, 1.0)

    class Rates(Parametrization):
        def rates(self, layer: Any) -> Any:
            found = super().rates(layer)
            return type(found)(found.weight, 0.0, found.weight_rate, 1.0)

    network = infinite_network(Corner(), (1, 4, 4), scaling=Rates("ntk", 2.0))
    _, ntk = sampled(Corner, x, rates, samples=8)
    found = network.kernels(x).ntk
    assert found is not None
    assert agrees(ntk, found, 0.01)


def test_the_forecast_counts_what_is_returned() -> None:
    network, _ = network_of("dense")
    forecast = network.forecast(300, dtype=torch.float64)
    assert forecast.result_bytes == 2 * 300 * 300 * 8
    assert forecast.seconds > 0
    assert forecast.pairs >= 300 * 301 / 2
    assert network.forecast(300, 10, get=("ntk",)).result_bytes == 300 * 10 * 4
