"""Kernels of infinitely wide networks: seconds per entry, and memory.

    python -m benchmarks infinite

CPU seconds of one thread, the least of five, first call apart; memory is the growth of the
process's peak during one call, results included, in a process of its own, as Linux tells it. Where
the compiled kernel takes part (:mod:`Models.infinite.compiled`), torch alone is measured beside it.
The rival is neural-tangents (:mod:`benchmarks.rivals`): where ``NEURAL_TANGENTS`` names its
environment, measured in turn with ours, twice; else its stored times stand there, without a
ratio, as another machine or hour may have taken them. Limit: all pairs of positions are computed
by torch, though for an example with itself half of them would do.
"""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import Row, print_table
from benchmarks.rivals import interpreter, neural_tangents
from benchmarks.rivals.cases import ANALYTIC, Case
from Models.infinite import InfiniteNetwork, Parametrization, infinite_network
from Models.infinite.compiled.library import SWITCH
from Models.infinite.compiled.stack import stack_of
from Training.function_space import SquaredError


def _convolutions(count: int, channels: int = 3) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(channels, 2, 3, padding=1), nn.ReLU()]
        channels = 2
    return layers


def _myrtle() -> nn.Module:
    one = [*_convolutions(2), nn.AvgPool2d(2), *_convolutions(1, 2), nn.AvgPool2d(2)]
    return nn.Sequential(
        *one, *_convolutions(1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10)
    )


def _dense(inputs: int, depth: int = 3, nonlinearity: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(inputs, 2), nonlinearity()]
    for _ in range(depth - 1):
        layers += [nn.Linear(2, 2), nonlinearity()]
    return nn.Sequential(*layers, nn.Linear(2, 10))


def _pooled(count: int) -> nn.Module:
    return nn.Sequential(
        *_convolutions(count), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10)
    )


CASES: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...], str]] = {
    "fc relu3, n=1000, d=784": (lambda: _dense(784), 1000, (784,), "relu3, 1000x784"),
    "fc relu3, n=1000, d=3072": (lambda: _dense(3072), 1000, (3072,), "relu3, 1000x3072"),
    "fc tanh1, n=1000, d=784": (lambda: _dense(784, 1, nn.Tanh), 1000, (784,), "tanh1, 1000x784"),
    "flattened, 5 conv, n=50, 32x32": (
        lambda: nn.Sequential(*_convolutions(5), nn.Flatten(), nn.Linear(2048, 10)),
        50,
        (3, 32, 32),
        "flatten5, 50x32x32x3",
    ),
    "pooled, 3 conv, n=4, 32x32": (lambda: _pooled(3), 4, (3, 32, 32), "gap3, 4x32x32x3"),
    "pooled, 21 conv, n=2, 32x32": (lambda: _pooled(21), 2, (3, 32, 32), "gap21, 2x32x32x3"),
    "myrtle, n=4, 32x32": (_myrtle, 4, (3, 32, 32), "myrtle5, 4x32x32x3"),
}
"""Network, examples, shape of one, and the same for the rival."""

_ROUNDS = 2
"""Of both in turn, where the rival runs in its environment."""


def prepared(case: str, dtype: torch.dtype) -> tuple[InfiniteNetwork, torch.Tensor]:
    """The network and the examples of a case."""
    make, n, shape, _ = CASES[case]
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return infinite_network(make(), shape, scaling=Parametrization("ntk", 2.0, 0.01)), x


def measure(cases: Sequence[str] = tuple(CASES), repetitions: int = 5) -> list[Row]:
    """One row per case and number format.

    Args:
        cases: keys of ``CASES``.
        repetitions: of each; the least counts.
    """
    rows: list[Row] = []
    python = interpreter()
    for case in cases:
        for name in ("float32", "float64"):
            network, x = prepared(case, getattr(torch, name))
            first, seconds, alone, theirs = 0.0, [], [], []
            stored = False
            takes_part = stack_of(network.program) is not None
            for _ in range(_ROUNDS if python else 1):
                found = _seconds(network, x, repetitions + 1)
                first = first or found[0]
                seconds += found[1:]
                if takes_part:
                    with _switched_off():
                        alone += _seconds(network, x, 2)
                for row in neural_tangents(_elsewhere(case, name), python, repetitions):
                    stored = row["stored"]
                    theirs += [row["cpu_s"]] if "cpu_s" in row else []
            scale = 1e3 / len(x) ** 2
            rows.append(
                {
                    "case": case,
                    "format": name,
                    "first call / s": first,
                    "ms per entry": min(seconds) * scale,
                    "torch alone": min(alone) * scale if alone else "",
                    "neural-tangents'": min(theirs) * scale if theirs else "",
                    "theirs / ours": _ratio(min(theirs, default=0.0), min(seconds), stored),
                    "memory / MB": _memory(case, name),
                }
            )
    return rows


@contextmanager
def _switched_off() -> Iterator[None]:
    """Without the compiled kernel."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        os.environ.pop(SWITCH)
        if before is not None:
            os.environ[SWITCH] = before


def _seconds(network: InfiniteNetwork, x: torch.Tensor, repetitions: int) -> list[float]:
    seconds = []
    for _ in range(repetitions):
        start = time.process_time()
        network.kernels(x)
        seconds.append(time.process_time() - start)
    return seconds


def _elsewhere(case: str, name: str) -> list[Case]:
    return [other for other in ANALYTIC if other.name == f"{CASES[case][3]}, {name}"]


def _ratio(theirs: float, ours: float, stored: bool) -> str | float:
    """Of times of one session; stored ones are only called so."""
    if not theirs:
        return ""
    return "stored" if stored else theirs / ours


def _memory(case: str, name: str) -> float:
    """Growth of the peak in a process of its own."""
    code = f"from benchmarks.infinite import grown; print(grown({case!r}, {name!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(found.stdout.split()[-1])


def grown(case: str, name: str) -> float:
    """MB by which one call raises the peak of this process, after one of two examples."""
    network, x = prepared(case, getattr(torch, name))
    network.kernels(x[:2])
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
    before = _status("VmRSS")
    network.kernels(x)
    return _status("VmHWM") - before


def _status(key: str) -> float:
    """MB that Linux tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(key))
    return int(line.split()[1]) / 1024


def from_pixels(n: int = 1000, threads: int = 1) -> Row:
    """From raw pixels of n training and n test images of CIFAR's shape to predictions.

    Three hidden layers, ReLU, gradient flow on squared error to convergence. The first call of a
    process also imports torch.export, which reads the network's graph.

    Args:
        n: images of each.
        threads: that torch uses.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2 * n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    targets = nn.functional.one_hot(torch.randint(10, (n,), generator=generator)).double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    wall, processor = time.perf_counter(), time.process_time()
    network = infinite_network(_dense(3072), (3072,), scaling=Parametrization("ntk", 2.0, 0.01))
    x = images.flatten(1).float().div_(255).sub_(0.5).div_(0.25)
    train = network.kernels(x[:n], get=("ntk",)).ntk
    cross = network.kernels(x[n:], x[:n], get=("ntk",)).ntk
    assert train is not None
    assert cross is not None
    solution = SquaredError(train, torch.zeros_like(targets), targets)
    found = solution.flow([math.inf]).at(cross, torch.zeros_like(targets))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    torch.set_num_threads(before)
    assert found.isfinite().all()
    case = f"fc relu3, {n} training and {n} test images"
    return {"case": case, "threads": threads, "wall / s": wall, "processor / s": processor}


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    rows = [{"call": name, **from_pixels()} for name in ("first", "second", "third")]
    print_table("Raw pixels to predictions at convergence", rows)
    print_table("Kernels at infinite width", measure())


if __name__ == "__main__":
    main()
