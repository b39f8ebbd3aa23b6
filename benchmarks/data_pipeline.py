"""Training batches from memory (Data.batches) against torchvision's transforms in a DataLoader.

Both crop, flip and normalise CIFAR-shaped images, batch 128, on the CPU::

    python -m benchmarks.data_pipeline

The rival is what most training scripts do: a PIL image per example, RandomCrop(32, padding=4),
RandomHorizontalFlip, ToTensor, Normalize, with 0 and 2 worker processes. Limit: the in-memory
path holds the whole training set, so the rival's way remains for data that do not fit.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils import data
from torchvision import transforms

from Data import DATASETS
from Data.batches import Batches
from Data.dataset import Split

BATCH_SIZE = 128
ENTRY = DATASETS["cifar10"]


class PilImages(data.Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR10 serves them, transformed one by one."""

    def __init__(self, split: Split):
        self._images = split.inputs.permute(0, 2, 3, 1).contiguous().numpy()
        self._targets = split.targets.tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(ENTRY.mean, ENTRY.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image: Tensor = self._transform(Image.fromarray(self._images[index]))
        return image, self._targets[index]


def measure(
    images: int = 50_000,
    rival_images: int = 8_192,
    repetitions: int = 5,
    workers: Sequence[int] = (0, 2),
) -> list[dict[str, Any]]:
    """Images per second of every pipeline, measured in turn, ``repetitions`` times.

    Args:
        images: size of the in-memory training set; one epoch is a repetition.
        rival_images: size of the slower rival's epoch.
        repetitions: of each pipeline, after one to warm up.
        workers: the DataLoader's worker processes, one row for each number.

    Returns:
        One row per pipeline: its name, the median, lowest and highest images per second, and
        how many times faster the in-memory path is (ratio of medians).
    """
    split = _random_split(images)
    rival = PilImages(_random_split(rival_images))
    epochs: dict[str, Callable[[], int]] = {"in memory": _in_memory(split)}
    for count in workers:
        epochs[f"PIL, {count} workers"] = _data_loader(rival, count)
    speeds: dict[str, list[float]] = {name: [] for name in epochs}
    for repetition in range(repetitions + 1):
        for name, epoch in epochs.items():
            start = time.perf_counter()
            seen = epoch()
            if repetition > 0:
                speeds[name].append(seen / (time.perf_counter() - start))
    fastest = statistics.median(speeds["in memory"])
    return [
        {
            "pipeline": name,
            "images_per_second": statistics.median(values),
            "lowest": min(values),
            "highest": max(values),
            "in_memory_ratio": fastest / statistics.median(values),
        }
        for name, values in speeds.items()
    ]


def _random_split(size: int) -> Split:
    generator = torch.Generator().manual_seed(0)
    shape = (size, *ENTRY.input_shape)
    inputs = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return Split(ENTRY, inputs, torch.arange(size) % ENTRY.num_classes)


def _in_memory(split: Split) -> Callable[[], int]:
    batches = Batches(split, BATCH_SIZE, seed=0)
    return lambda: sum(len(batches.next()[1]) for _ in range(batches.steps_per_epoch))


def _data_loader(images: PilImages, workers: int) -> Callable[[], int]:
    loader = data.DataLoader(
        images, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: sum(len(targets) for _, targets in loader)


def main() -> None:
    """Print the table."""
    threads = torch.get_num_threads()
    print(f"CIFAR-shaped images, batch {BATCH_SIZE}, {threads} threads, torch {torch.__version__}")
    print(f"{'pipeline':<16}{'images/s':>10}{'lowest':>10}{'highest':>10}{'in memory / this':>18}")
    for row in measure():
        name, *figures = row.values()
        print("{:<16}{:>10.0f}{:>10.0f}{:>10.0f}{:>18.1f}".format(name, *figures))


if __name__ == "__main__":
    main()
