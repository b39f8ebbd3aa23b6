"""The empirical tangent kernel beside other ways to compute it, on the same networks.

    python -m benchmarks.tangent [CASE …]

Seconds of processor time of one thread, the least of five runs (the last case runs once), and how
far one run raises the peak of the process's memory; ``forecast`` is what
``Metrics.tangent.forecast`` expects, over what was measured. Rivals: the two recipes of
torch.func's tutorial "Neural Tangent Kernels", Jacobian contraction and Jacobian-vector products;
each is compared with our kernel before it is timed. And neural-tangents' three implementations
(:mod:`benchmarks.rivals`): where ``NEURAL_TANGENTS`` names its environment, measured in turn with
ours, twice; else stored times stand there, without a ratio, as another machine or hour may have
taken them. Memory is given back to the system before every call, here and there. Limit: a forward
pass, C backward passes without gradients of weights, and the Gram matrices in their cheaper form,
at this machine's rate of matrix products.
"""

import contextlib
import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from benchmarks.common import Row, print_table
from benchmarks.rivals import interpreter, neural_tangents
from benchmarks.rivals.cases import EMPIRICAL, Empirical
from benchmarks.rivals.networks import NETWORKS, Finite
from Metrics.tangent import forecast, tangent_kernel
from Metrics.tangent.routes import Form
from Models import ModelConfig, build_model
from Utils.config import validate
from Utils.errors import UserError, run_stage
from Utils.registry import unknown

CLASSES = 10


def resnet18() -> nn.Module:
    """The registry's ResNet-18 for small images: 11 M parameters."""
    flags = {"model": "resnet18", "model_class": "tinyimagenet"}
    return build_model(validate(ModelConfig, flags, "benchmark"), (3, 32, 32), CLASSES)


@dataclass(frozen=True)
class Case:
    """A kernel to be computed.

    Attributes:
        network: key of ``NETWORKS``, or the registry's ResNet-18.
        examples: N.
        form: of the kernel.
        dtype: of the network.
        rivals: that finish in reasonable time and memory.
        repetitions: of every way.
    """

    network: str
    examples: int
    form: Form
    dtype: torch.dtype = torch.float32
    rivals: tuple[str, ...] = ("torch.func, rows",)
    repetitions: int = 5

    def make(self) -> tuple[nn.Module, Tensor]:
        """The network in evaluation mode, and its inputs."""
        torch.manual_seed(0)
        layers, shape = NETWORKS.get(self.network, ([], (3, 32, 32)))
        model = Finite(layers) if layers else resnet18()
        return model.to(self.dtype).eval(), torch.randn(self.examples, *shape).to(self.dtype)

    @property
    def elsewhere(self) -> list[Empirical]:
        """The same kernel as neural-tangents' environment is asked for it, if it is."""
        number = str(self.dtype).removeprefix("torch.")
        name = f"{self.network}, {self.examples}, {self.form}, {number}"
        return [case for case in EMPIRICAL if case.name == name]


_BOTH = ("torch.func, rows", "torch.func, products")

CASES: Mapping[str, Case] = {
    "mlp, 12, full": Case("mlp", 12, "full", rivals=_BOTH),
    "mlp, 64, full": Case("mlp", 64, "full"),
    "mlp, 256, full": Case("mlp", 256, "full", rivals=()),
    "mlp, 256, traced": Case("mlp", 256, "traced", rivals=()),
    "mlp, 128, full, float64": Case("mlp", 128, "full", torch.float64, rivals=()),
    "cnn, 12, full": Case("cnn", 12, "full", rivals=_BOTH),
    "cnn, 64, full": Case("cnn", 64, "full"),
    "cnn, 64, traced": Case("cnn", 64, "traced"),
    "cnn, 16, full, float64": Case("cnn", 16, "full", torch.float64),
    "resnet, 32, full": Case("resnet18", 32, "full"),
    "resnet, 32, traced": Case("resnet18", 32, "traced"),
    "resnet, 6, full, float64": Case("resnet18", 6, "full", torch.float64),
    "resnet18, 256, traced": Case("registry", 256, "traced", rivals=(), repetitions=1),
}
"""By "network, N, form": those of the project's goals, and small ones for the slow rival."""

Kernel = Callable[[], Tensor]
Cost = tuple[float, float]
"""Seconds of processor time, MB."""

_ROUNDS = 2
"""Of all ways in turn, where a rival runs in another environment."""

_STORED = " (stored)"


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
    python = interpreter()
    for name in cases:
        case = CASES[name]
        model, inputs = case.make()
        ahead = forecast(model, inputs, form=case.form)
        ways: dict[str, Kernel] = {"ours": partial(_ours, model, inputs, case.form)}
        ways |= {rival: RIVALS[rival](model, inputs, case.form) for rival in case.rivals}
        _require_agreement(name, ways)
        found: dict[str, list[Cost]] = {}
        for _ in range(_ROUNDS if python and case.elsewhere else 1):
            for way, kernel in ways.items():
                found.setdefault(way, []).append(_measured(kernel, case.repetitions))
            for way, cost in _elsewhere(case, python):
                found.setdefault(way, []).append(cost)
        ours = min(seconds for seconds, _ in found["ours"])
        for way, costs in found.items():
            seconds, megabytes = min(s for s, _ in costs), max(m for _, m in costs)
            rows.append(
                {
                    "case": name,
                    "way": way,
                    "processor / s": seconds,
                    "this / ours": "" if way.endswith(_STORED) else seconds / ours,
                    "peak / MB": megabytes,
                    "forecast / measured": ahead.seconds / seconds if way == "ours" else "",
                }
            )
    return rows


def _require_agreement(name: str, ways: Mapping[str, Kernel]) -> None:
    """Compare what is computed here; tests/benchmarks/test_rivals.py does neural-tangents."""
    exact = ways["ours"]()
    tolerance = 1e-10 if exact.dtype == torch.float64 else 1e-4
    for way, kernel in ways.items():
        deviation = 0.0 if way == "ours" else float((kernel() - exact).norm() / exact.norm())
        if deviation > tolerance:
            raise RuntimeError(f"{name}: {way} deviates by {deviation:.1e}")


def _elsewhere(case: Case, python: Path | None) -> Iterator[tuple[str, Cost]]:
    """neural-tangents' three implementations, measured now, or as stored."""
    for row in neural_tangents(case.elsewhere, python, case.repetitions):
        if "error" not in row:
            mark = _STORED if row["stored"] else ""
            yield f"neural-tangents, {row['implementation']}{mark}", (row["cpu_s"], row["peak_mb"])


def _measured(kernel: Kernel, repetitions: int) -> Cost:
    """The least processor time, and the median rise of the peak of the memory."""
    seconds, rises = [], []
    for _ in range(repetitions):
        gc.collect()
        _give_back()
        before = _reset_peak()
        start = time.process_time()
        kernel()
        seconds.append(time.process_time() - start)
        rises.append(_memory("VmHWM") - before)
    return min(seconds), statistics.median(rises)


def _give_back() -> None:
    """Return free memory to the system, or what was kept from the last call hides this one's."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


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
    torch.set_num_threads(1)
    names = sys.argv[1:] if sys.argv[0].endswith("tangent.py") else []
    for name in names:
        if name not in CASES:
            raise UserError(unknown("case", name, tuple(CASES)))
    print_table("Tangent kernel", measure(names or tuple(CASES)))


if __name__ == "__main__":
    run_stage(main)
