"""Batches of a split: endless for training, in order for evaluation, one to probe.

In memory, the raw examples stay on the device as they are stored (images as uint8), and
everything done to a batch is a few tensor operations: no worker processes, no Python per image.
Splits that are streamed from files (:mod:`Data.streaming`) offer the same. All random numbers
come from CPU generators, so the batches are the same on every device.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from Data.dataset import Dataset, Examples, Split
from Data.order import TrainingBatches
from Data.streaming import StreamedBatches, StreamedSplit
from Data.transforms import CropAndFlip, Normalize, as_outputs
from Utils.seeds import Stream, generator


class Batches(TrainingBatches):
    """Shuffled, augmented, normalised training batches of a split in memory.

    Args:
        split: what to train on.
        batch_size: examples per batch.
        seed: the run's ``--seed``; the order is drawn from its stream "data", crops and
            flips from its stream "augment".
        device: where the batches are wanted; the split is moved there.
        dtype: of the inputs, and of the targets of a regression.
        augment: whether to apply the dataset's augmentation, if it has one.
        drop_last: leave out the last batch of an epoch where it would be smaller.
        share: (k, n), to get only the k-th of n parts of every batch.

    Raises:
        UserError: with ``drop_last``, if the split is smaller than one batch.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        augment: bool = True,
        drop_last: bool = False,
        share: tuple[int, int] = (0, 1),
    ):
        super().__init__(split, batch_size, seed, device, drop_last, share)
        self._split, self._augments = split, augment and split.entry.augmentation is not None
        split = split.to(device)
        self._targets = as_outputs(split.targets, dtype)
        self._normalize = Normalize(split.entry, device, dtype)
        self._inputs: Callable[[Tensor, slice], Tensor] = lambda index, part: split.inputs[
            index[part]
        ]
        if augment and split.entry.augmentation:
            self._inputs = CropAndFlip(
                split.inputs, split.entry.augmentation, self._augment_generator
            )

    def _batch(self, index: Tensor, share: slice) -> tuple[Tensor, Tensor]:
        return self._normalize(self._inputs(index, share)), self._targets[index[share]]

    def is_like(self, other: "Batches") -> bool:
        """Whether both take the same examples as they are, and only the order differs."""
        return self._split is other._split and not (self._augments or other._augments)

    def next_with(self, others: Sequence["Batches"]) -> tuple[Tensor, Tensor]:
        """The next batch of this and of others like it, gathered at once: [M, B, …]."""
        index = torch.stack([each._index() for each in (self, *others)])
        inputs, targets = self._batch(index.flatten(), slice(None))
        for each in (self, *others):
            each._move_on()
        inputs, targets = (x.view(*index.shape, *x.shape[1:]) for x in (inputs, targets))
        return inputs, targets


def next_of_each(batches: Sequence[TrainingBatches]) -> tuple[Tensor, Tensor]:
    """The next batch of each, [M, B, …], for networks that are trained together."""
    in_memory = [each for each in batches if isinstance(each, Batches)]
    if len(in_memory) == len(batches) and all(map(in_memory[0].is_like, in_memory)):
        return in_memory[0].next_with(in_memory[1:])
    inputs, targets = zip(*(each.next() for each in batches), strict=True)
    return torch.stack(inputs), torch.stack(targets)


def training_batches(
    split: Examples,
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    augment: bool = True,
    drop_last: bool = False,
    share: tuple[int, int] = (0, 1),
) -> TrainingBatches:
    """The training batches of any split; the arguments are those of :class:`Batches`."""
    if isinstance(split, StreamedSplit):
        return StreamedBatches(split, batch_size, seed, device, dtype, augment, drop_last, share)
    assert isinstance(split, Split)
    return Batches(split, batch_size, seed, device, dtype, augment, drop_last, share)


def evaluation_batches(
    split: Examples,
    batch_size: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """All examples of a split once, in order, normalised and without augmentation.

    Args:
        split: training or test examples; moved to ``device`` batch by batch, so where it is
            evaluated often, pass ``split.to(device)``.
        batch_size: examples per batch; the last may have fewer.
        device: where the batches are wanted.
        dtype: of the inputs, and of the targets of a regression.
        share: (k, n), for every n-th batch from the k-th on.

    Yields:
        Inputs [B, *input_shape] and targets: [B] int64, or [B, outputs] of a regression.
    """
    normalize = Normalize(split.entry, device, dtype)
    for inputs, targets in split.in_order(batch_size, share):
        yield normalize(inputs.to(device)), as_outputs(targets.to(device), dtype)


def probe_batch(
    dataset: Dataset,
    size: int,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """A run's fixed batch of test examples, on which its networks are observed.

    A smaller probe batch is the beginning of a larger one.

    Args:
        dataset: whose test examples are drawn from, without replacement.
        size: how many; all of them if there are fewer.
        seed: the run's ``--seed``, of which the stream "probe" is used.
        device: where the batch is wanted.
        dtype: of the inputs, and of the targets of a regression.

    Returns:
        Inputs [size, *input_shape], normalised, and targets: [size] int64, or [size, outputs]
        of a regression.
    """
    return random_batch(dataset.test, size, seed, "probe", device, dtype)


def random_batch(
    split: Examples,
    size: int,
    seed: int,
    stream: Stream,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Examples drawn from a split without replacement, normalised and without augmentation.

    A smaller batch is the beginning of a larger one.

    Args:
        split: what to draw from.
        size: how many; all of them if there are fewer.
        seed: the run's ``--seed``.
        stream: the stream of the seed that is used.
        device: where the batch is wanted.
        dtype: of the inputs, and of the targets of a regression.

    Returns:
        Inputs [size, *input_shape] and targets: [size] int64, or [size, outputs] of a
        regression.
    """
    inputs, targets = split.take(drawn_numbers(len(split), size, seed, stream))
    normalize = Normalize(split.entry, device, dtype)
    return normalize(inputs.to(device)), as_outputs(targets.to(device), dtype)


def drawn_numbers(count: int, size: int, seed: int, stream: Stream) -> Tensor:
    """The numbers [size] of the examples that :func:`random_batch` draws from ``count``."""
    return torch.randperm(count, generator=generator(seed, stream))[:size]
