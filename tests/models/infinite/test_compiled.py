"""The compiled kernel beside torch's, which other tests compare with 50 digits and others."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from Models.infinite import InfiniteNetwork, Kernels, Parametrization, infinite_network
from Models.infinite import network as networks
from Models.infinite.compiled import library
from Models.infinite.compiled.stack import stack_of
from tests.models.infinite.golden_networks import Net, parametrizations
from tests.neural_tangents import KernelCase, kernel_cases


def convolution(channels: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, 4, size, **{"padding": size // 2, **options})


def pooled(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


class Residual(nn.Module):
    """Branches before and after the first nonlinearity, strides, a shortcut of 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = convolution(2), convolution(4)
        self.third, self.short = convolution(4, stride=2), convolution(4, 1, stride=2)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + 0.7 * self.second(torch.relu(x))
        y = torch.relu(x)
        x = self.short(y) + self.third(y)
        result: Tensor = self.last(torch.relu(x).mean((2, 3)))
        return result


class Convolutional(nn.Module):
    """The same nonlinearity after every convolution."""

    def __init__(self, f: Callable[[Tensor], Tensor], *convolutions: nn.Conv2d) -> None:
        super().__init__()
        self.f, self.layers = f, nn.ModuleList(convolutions)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.f(layer(x))
        result: Tensor = self.last(x.mean((2, 3)))
        return result


class Mixed(nn.Module):
    """A linear layer at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = convolution(2), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).permute(0, 2, 3, 1)
        x = torch.relu(self.second(x)).permute(0, 3, 1, 2)
        result: Tensor = self.last(x.mean((2, 3)))
        return result


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "same": lambda: Convolutional(torch.relu, convolution(2), convolution(4), convolution(4)),
    "valid": lambda: Convolutional(
        lambda x: F.leaky_relu(x, 0.3), convolution(2, padding=0), convolution(4, 5, dilation=2)
    ),
    "abs": lambda: Convolutional(torch.abs, convolution(2), convolution(4, 1), convolution(4)),
    "erf": lambda: Convolutional(torch.erf, convolution(2), convolution(4, stride=2)),
    "circular": lambda: Convolutional(
        torch.relu,
        convolution(2, padding_mode="circular"),
        convolution(4, 1),
        convolution(4, 5, padding_mode="circular"),
    ),
    "one row": lambda: Convolutional(torch.relu, nn.Conv2d(2, 4, (1, 3), padding=(0, 2))),
    "residual": Residual,
    "linear layer": Mixed,
    "pooled twice": lambda: pooled(
        convolution(2), nn.ReLU(), nn.AvgPool2d(3, 2, padding=1), convolution(4), nn.ReLU()
    ),
    "circular, pooled twice": lambda: pooled(
        convolution(2, padding_mode="circular"),
        nn.ReLU(),
        nn.AvgPool2d(2),
        convolution(4),
        nn.ReLU(),
    ),
    "strided, pooled twice": lambda: pooled(
        convolution(2, stride=2), nn.ReLU(), nn.AvgPool2d(2), convolution(4), nn.ReLU()
    ),
    "pooled at once": lambda: pooled(nn.Conv2d(2, 4, 1), nn.Identity()),
}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    if not library.is_loaded():
        pytest.skip("there is no C++ compiler, or no ninja")
    monkeypatch.setattr(networks, "COMPILED_FROM", 0)


@pytest.fixture
def anew() -> Iterator[None]:
    """The library is looked for again, now and afterwards."""
    library.is_loaded.cache_clear()
    yield
    library.is_loaded.cache_clear()


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    """With a duplicate, one nearly so, an antipode, a blank corner."""
    x = torch.randn(6, 2, 8, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1], x[2], x[3] = x[0], x[0] + 1e-5 * x[1], -x[0]
    x[4, :, :3, :4] = 0
    return x.to(dtype)


def both(network: InfiniteNetwork, *x: Any, **options: Any) -> tuple[Kernels, Kernels]:
    """Compiled, and by torch alone."""
    found = network.kernels(*x, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.SWITCH, "0")
        return found, network.kernels(*x, **options)


def error(found: Kernels, expected: Kernels) -> float:
    pairs = [(found.nngp, expected.nngp), (found.ntk, expected.ntk)]
    present = [(a, b) for a, b in pairs if a is not None and b is not None]
    assert len(present) == sum(a is not None for pair in pairs for a in pair) / 2 > 0
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in present)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("bias", [0.0, 0.1])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_kernels_are_those_of_torch(name: str, bias: float) -> None:
    torch.manual_seed(0)
    scaling = Parametrization("standard", 1.9, bias)
    network = infinite_network(NETWORKS[name](), (2, 8, 7), scaling=scaling)
    assert stack_of(network.program) is not None
    x = images()
    found, expected = both(network, x)
    # After pooling near-duplicates are known to the root of rounding, to either.
    tolerance = 1e-12 if "twice" not in name else 1e-9
    assert error(found, expected) < tolerance
    assert error(*both(network, x[:2], x[1:], get=("nngp",))) < tolerance
    single = network.kernels(x.float())
    assert error(single, expected) < (1e-6 if "twice" not in name else 1e-4)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("width", [8, 14, 16, 28, 32, 37])
def test_usual_widths_are_computed_like_others(width: int) -> None:
    network = infinite_network(NETWORKS["same"](), (2, 4, width))
    x = torch.randn(2, 2, 4, width, dtype=torch.float64)
    assert error(*both(network, x)) < 1e-12


GOLDEN = (
    "convolution: SAME (2, 2), global average",
    "convolution: VALID (1, 2), global average",
    "convolution: CIRCULAR, global average, standard, bias",
    "convolution: LeakyRelu, global average",
    "convolution: Erf, global average",
    "residual: convolutions, global average, ntk, no bias",
    "net: pre-activation residual, standard, bias",
    "net: Myrtle-5, ntk, bias",
)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", GOLDEN)
def test_kernels_are_those_of_neural_tangents(name: str) -> None:
    (case,) = (case for case in kernel_cases() if str(case) == name)
    x = torch.from_numpy(case.inputs).movedim(-1, 1)
    infinite = network_of(case, x)
    assert stack_of(infinite.program) is not None
    expected = Kernels(torch.from_numpy(case.nngp), torch.from_numpy(case.ntk))
    assert error(infinite.kernels(x), expected) < 1e-6


def network_of(case: KernelCase, x: Tensor) -> InfiniteNetwork:
    network = Net(case.layers, x.shape[1], 2).double()
    network(x)
    kind: Any = parametrizations(case.layers).pop()
    stds = {name: m.std for name, m in network.named_modules() if hasattr(m, "std")}
    weights, biases = ({k: float(std[i]) ** 2 for k, std in stds.items()} for i in (0, 1))
    scaling = Parametrization(kind, weights, biases)
    return infinite_network(network, tuple(x.shape[1:]), scaling=scaling)


@pytest.mark.usefixtures("compiled")
def test_threads_do_not_change_a_digit() -> None:
    network = infinite_network(NETWORKS["same"](), (2, 8, 7))
    before = torch.get_num_threads()
    found = []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(network.kernels(images(torch.float32)))
    torch.set_num_threads(before)
    assert found[0].ntk is not None
    assert found[1].ntk is not None
    assert torch.equal(found[0].ntk, found[1].ntk)


def test_other_networks_are_left_to_torch() -> None:
    def has_stack(*layers: nn.Module) -> bool:
        return stack_of(infinite_network(pooled(*layers), (2, 8, 7)).program) is not None

    first, second = convolution(2), convolution(4)
    assert has_stack(first, nn.ReLU(), second, nn.LeakyReLU(0.5))
    assert not has_stack(first, nn.ReLU(), second, nn.Tanh())
    assert not has_stack(first, nn.ReLU(), second, nn.LeakyReLU(0.9))  # antipodes stay
    assert not has_stack(first, nn.GroupNorm(1, 4, affine=False), nn.ReLU())
    assert not has_stack(first, nn.ReLU(), convolution(4, padding_mode="circular"))
    assert not has_stack(first, nn.ReLU(), convolution(4, padding_mode="reflect"))
    assert not has_stack(convolution(2, padding=2, padding_mode="circular"), nn.ReLU())
    wraps = convolution(2, padding_mode="circular")
    assert not has_stack(wraps, nn.ReLU(), nn.CircularPad2d(1), convolution(4, 5, padding=1))
    assert not has_stack(first, nn.ReLU(), nn.ZeroPad2d((1, -1, 1, -1)), second)
    flat = nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 56, 3))
    assert stack_of(infinite_network(flat, (2, 8, 7)).program) is None


def test_small_kernels_are_not_worth_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "is_loaded", lambda: pytest.fail("it was compiled"))
    infinite_network(NETWORKS["same"](), (2, 8, 7)).kernels(images())


@pytest.mark.usefixtures("anew")
def test_without_a_compiler_torch_does_it_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(networks, "COMPILED_FROM", 0)
    network = infinite_network(NETWORKS["same"](), (2, 8, 7))
    for _ in range(2):
        found, expected = both(network, images())
        assert error(found, expected) == 0
    (line,) = caplog.messages
    assert "no-such-compiler" in line
    assert "\n" not in line


@pytest.mark.usefixtures("anew")
def test_a_compiler_that_fails_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    assert not library.is_loaded()
    assert "torch alone" in caplog.messages[-1]
    assert [path.name for path in library.place().parent.iterdir()] == ["lock"]


def test_a_builder_that_is_killed_does_not_stop_the_next(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); "
        "fcntl.flock(file, fcntl.LOCK_EX); print('mine', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"mine\n"
        os.kill(builder.pid, signal.SIGKILL)
    with library.alone(lock):
        assert lock.exists()
