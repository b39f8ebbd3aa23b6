"""A dataset in memory: raw inputs and targets of its two splits."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from Data.entry import DatasetEntry


@dataclass(frozen=True, eq=False)
class Split:
    """The training or the test examples.

    Attributes:
        entry: describes them.
        inputs: [N, C, H, W] raw values from 0 to ``entry.max_value``, uint8 or floating.
        targets: [N] int64 class numbers.

    Raises:
        ValueError: if inputs or targets are not what ``entry`` describes.
    """

    entry: DatasetEntry
    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        shape, (low, high) = tuple(self.inputs.shape[1:]), (0, self.entry.num_classes - 1)
        if shape != self.entry.input_shape:
            raise ValueError(f"inputs of shape {shape}, expected {self.entry.input_shape}")
        if len(self.inputs) != len(self.targets) or len(self.targets) == 0:
            raise ValueError(f"{len(self.inputs)} inputs and {len(self.targets)} targets")
        if self.targets.min() < low or self.targets.max() > high:
            raise ValueError(f"targets that are not class numbers from {low} to {high}")

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> "Split":
        """The same examples on ``device``; itself where it is there already."""
        if self.inputs.device == self.targets.device == torch.device(device):
            return self
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """What :func:`Data.load_dataset` returns.

    Attributes:
        entry: describes the dataset.
        train: the examples that are trained on.
        test: the others.
    """

    entry: DatasetEntry
    train: Split
    test: Split
