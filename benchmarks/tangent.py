"""The empirical tangent kernel beside other ways to compute it, on the same networks.

    python -m benchmarks.tangent [CASE …]

Seconds of processor time of one thread, the least of five runs (the last case runs once), and how
far one run raises the peak of the process's memory; ``forecast`` is what
``Metrics.tangent.forecast`` expects, over what was measured. Rivals: the two recipes of
torch.func's tutorial "Neural Tangent Kernels", Jacobian contraction and Jacobian-vector products;
each is compared with our kernel before it is timed. Limit: a forward pass, C backward passes
without gradients of weights, and the Gram matrices in their cheaper form, at this machine's rate
of matrix products.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from benchmarks.common import Row, print_table
from Metrics.tangent import forecast, tangent_kernel
from Metrics.tangent.routes import Form
from Models import ModelConfig, build_model
from Utils.config import validate
from Utils.errors import UserError, run_stage
from Utils.registry import unknown

CLASSES = 10


def fully_connected() -> nn.Module:
    """784-512-512-10, ReLU: 0.67 M parameters."""
    widths = (784, 512, 512)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, CLASSES))


def convolutional() -> nn.Module:
    """Four 3x3 convolutions, two of them with stride 2, and the mean: 66 k parameters."""
    sizes = ((3, 32, 1), (32, 32, 2), (32, 64, 2), (64, 64, 1))
    layers: list[nn.Module] = []
    for before, after, stride in sizes:
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, with batch normalisation."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            convolution = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """[N, before, H, W] -> [N, after, H / stride, W / stride]."""
        return torch.relu(self.branch(x) + self.shortcut(x))


def narrow_resnet() -> nn.Module:
    """ResNet-18 with 16 instead of 64 channels in its first stage: 0.70 M parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    before = 16
    for after, stride in ((16, 1), (32, 2), (64, 2), (128, 2)):
        layers += [Block(before, after, stride), Block(after, after, 1)]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, CLASSES))


def resnet18() -> nn.Module:
    """The registry's ResNet-18 for small images: 11 M parameters."""
    flags = {"model": "resnet18", "model_class": "tinyimagenet"}
    return build_model(validate(ModelConfig, flags, "benchmark"), (3, 32, 32), CLASSES)


@dataclass(frozen=True)
class Case:
    """A kernel to be computed.

    Attributes:
        build: makes the network.
        shape: of an input.
        examples: N.
        form: of the kernel.
        dtype: of the network.
        rivals: that finish in reasonable time and memory.
        repetitions: of every way.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    examples: int
    form: Form
    dtype: torch.dtype = torch.float32
    rivals: tuple[str, ...] = ("torch.func, rows",)
    repetitions: int = 5

    def make(self) -> tuple[nn.Module, Tensor]:
        """The network in evaluation mode, with running statistics of its own, and its inputs."""
        torch.manual_seed(0)
        model = self.build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.get_buffer("running_mean"), std=0.1)
                nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
        return model.to(self.dtype).eval(), torch.randn(self.examples, *self.shape).to(self.dtype)


_IMAGE = (3, 32, 32)
_BOTH = ("torch.func, rows", "torch.func, products")

CASES: Mapping[str, Case] = {
    "mlp, 12, full": Case(fully_connected, (784,), 12, "full", rivals=_BOTH),
    "mlp, 64, full": Case(fully_connected, (784,), 64, "full"),
    "mlp, 256, full": Case(fully_connected, (784,), 256, "full", rivals=()),
    "mlp, 256, traced": Case(fully_connected, (784,), 256, "traced", rivals=()),
    "mlp, 128, full, float64": Case(fully_connected, (784,), 128, "full", torch.float64, rivals=()),
    "cnn, 12, full": Case(convolutional, _IMAGE, 12, "full", rivals=_BOTH),
    "cnn, 64, full": Case(convolutional, _IMAGE, 64, "full"),
    "cnn, 64, traced": Case(convolutional, _IMAGE, 64, "traced"),
    "cnn, 16, full, float64": Case(convolutional, _IMAGE, 16, "full", torch.float64),
    "resnet, 32, full": Case(narrow_resnet, _IMAGE, 32, "full"),
    "resnet, 32, traced": Case(narrow_resnet, _IMAGE, 32, "traced"),
    "resnet, 6, full, float64": Case(narrow_resnet, _IMAGE, 6, "full", torch.float64),
    "resnet18, 256, traced": Case(resnet18, _IMAGE, 256, "traced", rivals=(), repetitions=1),
}
"""By "network, N, form": those of the project's goals, and small ones for the slow rival."""

Kernel = Callable[[], Tensor]


def _ours(model: nn.Module, inputs: Tensor, form: Form) -> Tensor:
    return tangent_kernel(model, inputs, form=form).total


def jacobian_contraction(model: nn.Module, inputs: Tensor, form: Form) -> Kernel:
    """vmap(jacrev), then one product for every parameter: the tutorial's first recipe."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def logits(values: dict[str, Tensor], example: Tensor) -> Tensor:
        found: Tensor = functional_call(model, values, (example[None],))[0]
        return found

    def kernel() -> Tensor:
        rows = vmap(jacrev(logits), (None, 0))(parameters, inputs)
        equation = "ncp,mcp->nm" if form == "traced" else "ncp,mdp->nmcd"
        flat = [rows.pop(name).flatten(2) for name in list(rows)]
        total = sum(torch.einsum(equation, j, j) for j in flat)
        assert isinstance(total, Tensor)
        return total / CLASSES if form == "traced" else total

    return kernel


def vector_products(model: nn.Module, inputs: Tensor, form: Form) -> Kernel:
    """vjp, then jvp, for every pair of examples and every logit: the second recipe."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def pair(first: Tensor, second: Tensor) -> Tensor:
        def at(example: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
            return lambda values: functional_call(model, values, (example[None],))[0]

        output, pull = vjp(at(first), parameters)

        def column(unit: Tensor) -> Tensor:
            pushed: Tensor = jvp(at(second), (parameters,), pull(unit))[1]
            return pushed

        found: Tensor = vmap(column)(torch.eye(len(output), dtype=output.dtype))
        return found

    def kernel() -> Tensor:
        found: Tensor = vmap(vmap(pair, (None, 0)), (0, None))(inputs, inputs)
        return found if form == "full" else found.diagonal(dim1=2, dim2=3).mean(-1)

    return kernel


RIVALS: Mapping[str, Callable[[nn.Module, Tensor, Form], Kernel]] = {
    "torch.func, rows": jacobian_contraction,
    "torch.func, products": vector_products,
}
"""Each makes a function without arguments that returns the kernel, [N, M] or [N, M, C, C]."""


def measure(cases: Sequence[str] = tuple(CASES)) -> list[Row]:
    """One row per case and way.

    Args:
        cases: keys of ``CASES``.
    """
    rows: list[Row] = []
    for name in cases:
        case = CASES[name]
        model, inputs = case.make()
        ahead = forecast(model, inputs, form=case.form)
        ways: dict[str, Kernel] = {"ours": partial(_ours, model, inputs, case.form)}
        ways |= {rival: RIVALS[rival](model, inputs, case.form) for rival in case.rivals}
        exact = ways["ours"]() if case.rivals else None
        tolerance = 1e-10 if case.dtype == torch.float64 else 1e-4
        ours = 0.0
        for way, kernel in ways.items():
            if exact is not None and (deviation := _relative(kernel(), exact)) > tolerance:
                raise RuntimeError(f"{name}: {way} deviates by {deviation:.1e}")
            seconds, megabytes = _measured(kernel, case.repetitions)
            ours = ours or seconds
            rows.append(
                {
                    "case": name,
                    "way": way,
                    "processor / s": seconds,
                    "this / ours": seconds / ours,
                    "peak / MB": megabytes,
                    "forecast / measured": ahead.seconds / seconds if way == "ours" else "",
                }
            )
    return rows


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def _measured(kernel: Kernel, repetitions: int) -> tuple[float, float]:
    """The least processor time, and the median rise of the peak of the memory."""
    seconds, rises = [], []
    for _ in range(repetitions):
        gc.collect()
        before = _reset_peak()
        start = time.process_time()
        kernel()
        seconds.append(time.process_time() - start)
        rises.append(_memory("VmHWM") - before)
    return min(seconds), statistics.median(rises)


def _reset_peak() -> float:
    """Let the system forget the peak so far; MB in use now."""
    counter = Path("/proc/self/clear_refs")
    if counter.exists():
        counter.write_text("5")
    return _memory("VmRSS")


def _memory(key: str) -> float:
    """MB of this process, where the system tells."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    """Print the table of the cases named on the command line, or of all."""
    names = sys.argv[1:] if sys.argv[0].endswith("tangent.py") else []
    for name in names:
        if name not in CASES:
            raise UserError(unknown("case", name, tuple(CASES)))
    print_table("Tangent kernel", measure(names or tuple(CASES)))


if __name__ == "__main__":
    run_stage(main)
