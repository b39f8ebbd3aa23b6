"""What the benchmarks share: the large model, interleaved timing, tables."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

Row = dict[str, str | float]


def vgg16_bn(input_shape: tuple[int, ...] = (3, 64, 64), num_classes: int = 200) -> nn.Module:
    """VGG-16 with batch normalisation for 64×64 images: 18.1 million parameters for 200 classes."""
    widths = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for width in widths:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, width, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    features = channels * (input_shape[1] // 32) * (input_shape[2] // 32)
    layers += [nn.Flatten(), nn.Linear(features, features // 2), nn.ReLU(), nn.Dropout(0.5)]
    layers += [nn.Linear(features // 2, features // 2), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(features // 2, num_classes))


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
