"""The two splits of a dataset: what both kinds of examples offer, and the kind in memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from Data.entry import DatasetEntry

RawBatch = tuple[Tensor, Tensor]
"""Inputs [B, *input_shape] as they are stored, from 0 to ``max_value``, and their targets."""


class Examples(ABC):
    """The training or the test examples, in memory (:class:`Split`) or streamed from files.

    Attributes:
        entry: describes them.
        targets: [N] int64 class numbers; [N, outputs] floating in a regression.
    """

    entry: DatasetEntry
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The same examples, on ``device`` where they are in memory."""

    @abstractmethod
    def take(self, index: Tensor) -> RawBatch:
        """The examples with the given numbers ([B] int64, on the CPU), without augmentation."""

    @abstractmethod
    def in_order(self, batch_size: int, share: tuple[int, int] = (0, 1)) -> Iterator[RawBatch]:
        """All examples once, in order, without augmentation; the last batch may be smaller.

        Args:
            batch_size: examples per batch.
            share: (k, n), for every n-th batch from the k-th on.
        """


@dataclass(frozen=True, eq=False)
class Split(Examples):
    """Examples in memory.

    Attributes:
        entry: describes them.
        inputs: [N, *input_shape] raw values, at most ``entry.max_value``, integer or floating.
        targets: [N] int64 class numbers; [N, outputs] floating in a regression.

    Raises:
        ValueError: if inputs or targets are not what ``entry`` describes.
    """

    entry: DatasetEntry
    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.inputs.shape[1:])
        if shape != self.entry.input_shape:
            raise ValueError(f"inputs of shape {shape}, expected {self.entry.input_shape}")
        if len(self.inputs) != len(self.targets) or len(self.targets) == 0:
            raise ValueError(f"{len(self.inputs)} inputs and {len(self.targets)} targets")
        check_targets(self.entry, self.targets)

    def to(self, device: torch.device | str) -> Self:
        """The same examples on ``device``; itself where it is there already."""
        if self.inputs.device == self.targets.device == torch.device(device):
            return self
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def take(self, index: Tensor) -> RawBatch:
        index = index.to(self.inputs.device)
        return self.inputs[index], self.targets[index]

    def in_order(self, batch_size: int, share: tuple[int, int] = (0, 1)) -> Iterator[RawBatch]:
        for start in range(share[0] * batch_size, len(self), share[1] * batch_size):
            part = slice(start, start + batch_size)
            yield self.inputs[part], self.targets[part]


def check_targets(entry: DatasetEntry, targets: Tensor) -> None:
    """Raise ``ValueError`` if targets are not what ``entry`` describes."""
    if entry.task == "regression":
        if targets.shape[1:] != (entry.num_classes,) or not targets.is_floating_point():
            raise ValueError(f"targets that are not {entry.num_classes} floating outputs")
    elif targets.min() < 0 or targets.max() >= entry.num_classes:
        raise ValueError(f"targets that are not class numbers from 0 to {entry.num_classes - 1}")


@dataclass(frozen=True, eq=False)
class Dataset:
    """What :func:`Data.load_dataset` returns.

    Attributes:
        entry: describes the dataset.
        train: the examples that are trained on.
        test: the others.
    """

    entry: DatasetEntry
    train: Examples
    test: Examples
