"""What the benchmarks share: interleaved timing, tables."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

Row = dict[str, str | float]


def interleaved(
    blocks: Mapping[str, Callable[[], object]], repetitions: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each block, run in turn so that the machine's drift meets all alike.

    Args:
        blocks: what is timed, by name.
        repetitions: of every block.
        warm_up: whether each runs once before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    for repetition in range(-warm_up, repetitions):
        for name, block in blocks.items():
            start = time.perf_counter()
            block()
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(times: Sequence[float], rival: Sequence[float]) -> float:
    """The median over pairs of how many times longer the first took than its rival."""
    return statistics.median(a / b for a, b in zip(times, rival, strict=True))


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print rows of equal keys under a line that names the machine."""
    print(f"\n{title}\n{processor()}, {torch.get_num_threads()} thread, torch {torch.__version__}")
    cells = [list(rows[0])] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *rest]), flush=True)


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def processor() -> str:
    """The processor's name, where the system tells."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
