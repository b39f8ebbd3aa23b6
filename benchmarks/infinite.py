"""Kernels of infinitely wide networks: seconds per entry, and memory.

    python -m benchmarks infinite

CPU seconds of one thread, the least of five, first call apart; memory is the growth of the
process's peak during one call, results included, in a process of its own, as Linux tells it. The
rival is neural-tangents (:mod:`benchmarks.rivals`): where ``NEURAL_TANGENTS`` names its
environment, measured in turn with ours, twice; else its stored times stand there, without a
ratio, as another machine or hour may have taken them. Limit: all pairs of positions are computed,
though for an example with itself half of them would do.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import Row, print_table
from benchmarks.rivals import interpreter, neural_tangents
from benchmarks.rivals.cases import ANALYTIC, Case
from Models.infinite import InfiniteNetwork, Parametrization, infinite_network


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


def _dense() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(784, 2), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Linear(2, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(2, 10))


CASES: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...], str]] = {
    "fc relu3, n=1000, d=784": (_dense, 1000, (784,), "relu3, 1000x784"),
    "flattened, 5 conv, n=50, 32x32": (
        lambda: nn.Sequential(*_convolutions(5), nn.Flatten(), nn.Linear(2048, 10)),
        50,
        (3, 32, 32),
        "flatten5, 50x32x32x3",
    ),
    "pooled, 3 conv, n=4, 32x32": (
        lambda: nn.Sequential(
            *_convolutions(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10)
        ),
        4,
        (3, 32, 32),
        "gap3, 4x32x32x3",
    ),
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
            first, seconds, theirs = 0.0, [], []
            stored = False
            for _ in range(_ROUNDS if python else 1):
                found = _seconds(network, x, repetitions + 1)
                first = first or found[0]
                seconds += found[1:]
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
                    "neural-tangents'": min(theirs) * scale if theirs else "",
                    "theirs / ours": _ratio(min(theirs, default=0.0), min(seconds), stored),
                    "memory / MB": _memory(case, name),
                }
            )
    return rows


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


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print_table("Kernels at infinite width", measure())


if __name__ == "__main__":
    main()
