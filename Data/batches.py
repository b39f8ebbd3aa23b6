"""Batches of an in-memory split: endless for training, in order for evaluation, one to probe.

The raw images stay on the device as they are stored (uint8), and everything done to a batch
is a few tensor operations: no worker processes, no Python per image. All random numbers come
from CPU generators, so the batches are the same on every device.
"""

from collections.abc import Callable, Iterator
from typing import TypedDict

import torch
from torch import Tensor

from Data.dataset import Dataset, Split
from Data.transforms import CropAndFlip, Normalize
from Utils.errors import UserError
from Utils.seeds import Stream, generator


class BatchesState(TypedDict):
    """Where training stands in its data: plain numbers and tensors, for a checkpoint."""

    epoch: int
    position: int
    examples: int
    batch_size: int
    steps_per_epoch: int
    order_state: Tensor
    augment_state: Tensor


class Batches:
    """Shuffled, augmented, normalised training batches, epoch after epoch.

    Args:
        split: what to train on.
        batch_size: examples per batch.
        seed: the run's ``--seed``; the order is drawn from its stream "data", crops and
            flips from its stream "augment".
        device: where the batches are wanted; the split is moved there.
        dtype: of the inputs.
        augment: whether to apply the dataset's augmentation, if it has one.
        drop_last: leave out the last batch of an epoch where it would be smaller.

    Attributes:
        epoch: epochs completed.
        position: batches taken from the current epoch, below ``steps_per_epoch``.
        steps_per_epoch: batches in an epoch.

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
    ):
        split = split.to(device)
        whole, rest = divmod(len(split), batch_size)
        self.steps_per_epoch = whole + (rest > 0 and not drop_last)
        if self.steps_per_epoch == 0:
            raise UserError(
                f"--train-batch-size {batch_size}: larger than the {len(split)} examples of "
                f"{split.entry.name}, whose only batch --drop-last drops; choose a smaller one"
            )
        self._targets = split.targets
        self._batch_size = batch_size
        self._order_generator = generator(seed, "data")
        self._augment_generator = generator(seed, "augment")
        self._normalize = Normalize(split.entry, device, dtype)
        self._images: Callable[[Tensor], Tensor] = split.inputs.__getitem__
        if augment and split.entry.augmentation:
            self._images = CropAndFlip(
                split.inputs, split.entry.augmentation, self._augment_generator
            )
        self.epoch = 0
        self._start_epoch()

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch: inputs [B, C, H, W] and targets [B] int64, on the device."""
        start = self.position * self._batch_size
        index = self._order[start : start + self._batch_size]
        batch = self._normalize(self._images(index)), self._targets[index]
        self.position += 1
        if self.position == self.steps_per_epoch:
            self.epoch += 1
            self._start_epoch()
        return batch

    def state_dict(self) -> BatchesState:
        """What :meth:`load_state_dict` needs to continue with the very next batch."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "examples": len(self._targets),
            "batch_size": self._batch_size,
            "steps_per_epoch": self.steps_per_epoch,
            "order_state": self._order_state,
            "augment_state": self._augment_generator.get_state(),
        }

    def load_state_dict(self, state: BatchesState) -> None:
        """Continue where another :class:`Batches` was when it gave ``state``.

        Raises:
            UserError: if the state belongs to other data or batches of another size.
        """
        saved = state["examples"], state["batch_size"], state["steps_per_epoch"]
        here = len(self._targets), self._batch_size, self.steps_per_epoch
        if saved != here:
            form = "{} examples in batches of {} ({} per epoch)".format
            raise UserError(
                f"the data differ from the checkpoint's: {form(*here)}, it has {form(*saved)}; "
                "continue with the --dataset and --train-batch-size that the run began with"
            )
        self._order_generator.set_state(state["order_state"].cpu())
        self._start_epoch()
        self._augment_generator.set_state(state["augment_state"].cpu())
        self.epoch, self.position = state["epoch"], state["position"]

    def _start_epoch(self) -> None:
        # The state before the draw is enough to redraw the order: checkpoints stay small.
        self._order_state = self._order_generator.get_state()
        order = torch.randperm(len(self._targets), generator=self._order_generator)
        self._order = order.to(self._targets.device)
        self.position = 0


def evaluation_batches(
    split: Split,
    batch_size: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Tensor, Tensor]]:
    """All examples of a split once, in order, normalised and without augmentation.

    Args:
        split: training or test examples; moved to ``device`` batch by batch, so where it is
            evaluated often, pass ``split.to(device)``.
        batch_size: examples per batch; the last may have fewer.
        device: where the batches are wanted.
        dtype: of the inputs.

    Yields:
        Inputs [B, C, H, W] and targets [B] int64.
    """
    normalize = Normalize(split.entry, device, dtype)
    for start in range(0, len(split), batch_size):
        batch = slice(start, start + batch_size)
        yield normalize(split.inputs[batch].to(device)), split.targets[batch].to(device)


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
        dtype: of the inputs.

    Returns:
        Inputs [size, C, H, W], normalised, and targets [size] int64.
    """
    return random_batch(dataset.test, size, seed, "probe", device, dtype)


def random_batch(
    split: Split,
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
        dtype: of the inputs.

    Returns:
        Inputs [size, C, H, W] and targets [size] int64.
    """
    index = torch.randperm(len(split), generator=generator(seed, stream))[:size]
    index = index.to(split.inputs.device)
    normalize = Normalize(split.entry, device, dtype)
    return normalize(split.inputs[index].to(device)), split.targets[index].to(device)
