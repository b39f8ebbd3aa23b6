"""The order of training: endless shuffled epochs that can be left and resumed at any batch."""

from abc import ABC, abstractmethod
from typing import TypedDict

import torch
from torch import Tensor

from Data.dataset import Examples
from Utils.devices import to_device
from Utils.errors import UserError
from Utils.seeds import generator


class BatchesState(TypedDict):
    """Where training stands in its data: plain numbers and tensors, for a checkpoint."""

    epoch: int
    position: int
    examples: int
    batch_size: int
    steps_per_epoch: int
    order_state: Tensor
    augment_state: Tensor


def batches_per_epoch(examples: int, batch_size: int, drop_last: bool) -> int:
    """How many batches the examples make."""
    whole, rest = divmod(examples, batch_size)
    return whole + (rest > 0 and not drop_last)


def share_of(examples: int, share: tuple[int, int]) -> slice:
    """The k-th of n parts of a batch, as even as can be, for a share (k, n)."""
    k, n = share
    return slice(k * examples // n, (k + 1) * examples // n)


class TrainingBatches(ABC):
    """Shuffled training batches, epoch after epoch; subclasses make them from numbers.

    Args:
        split: what to train on.
        batch_size: examples per batch.
        seed: the run's ``--seed``; the order is drawn from its stream "data", augmentation
            from its stream "augment".
        device: where the numbers of a batch's examples are wanted.
        drop_last: leave out the last batch of an epoch where it would be smaller.
        share: (k, n), to get only the k-th of n parts of every batch, with the numbers that it
            has in the whole one.

    Attributes:
        epoch: epochs completed.
        position: batches taken from the current epoch, below ``steps_per_epoch``.
        steps_per_epoch: batches in an epoch.
        weight: how many examples the last batch's share had, relative to an n-th of it: the
            mean over n processes of weight times a mean over their shares is that over the batch.

    Raises:
        UserError: with ``drop_last``, if the split is smaller than one batch.
    """

    def __init__(
        self,
        split: Examples,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        drop_last: bool,
        share: tuple[int, int] = (0, 1),
    ):
        if batches_per_epoch(len(split), batch_size, drop_last) == 0:
            raise UserError(
                f"--train-batch-size {batch_size}: larger than the {len(split)} examples of "
                f"{split.entry.name}, whose only batch --drop-last drops; choose a smaller one"
            )
        self._examples, self._drop_last, self._share = len(split), drop_last, share
        self.weight = 1.0
        self.resize(batch_size)
        self._device = torch.device(device)
        self._order_generator = generator(seed, "data")
        self._augment_generator = generator(seed, "augment")
        self.epoch = 0
        self._start_epoch()

    @abstractmethod
    def _batch(self, index: Tensor, share: slice) -> tuple[Tensor, Tensor]:
        """A share of the batch of the examples with the given numbers ([B] int64)."""

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch: inputs [B, *input_shape] and targets [B, ...], on the device."""
        index = self._index()
        share = share_of(len(index), self._share)
        self.weight = (share.stop - share.start) * self._share[1] / len(index)
        batch = self._batch(index, share)
        self._move_on()
        return batch

    def _index(self) -> Tensor:
        """The numbers of the next batch's examples, [B] int64."""
        start = self.position * self._batch_size
        return self._order[start : start + self._batch_size]

    def _move_on(self) -> None:
        """Leave a batch behind."""
        self.position += 1
        if self.position == self.steps_per_epoch:
            self.epoch += 1
            self._start_epoch()

    def resize(self, batch_size: int) -> None:
        """Take other batches from the next epoch on; called before its first one."""
        self._batch_size = batch_size
        self.steps_per_epoch = batches_per_epoch(self._examples, batch_size, self._drop_last)

    def state_dict(self) -> BatchesState:
        """What :meth:`load_state_dict` needs to continue with the very next batch."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "examples": self._examples,
            "batch_size": self._batch_size,
            "steps_per_epoch": self.steps_per_epoch,
            "order_state": self._order_state,
            "augment_state": self._augment_generator.get_state(),
        }

    def load_state_dict(self, state: BatchesState) -> None:
        """Continue where another object of this class was when it gave ``state``.

        Raises:
            UserError: if the state belongs to other data or batches of another size.
        """
        saved = state["examples"], state["batch_size"], state["steps_per_epoch"]
        here = self._examples, self._batch_size, self.steps_per_epoch
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

    def close(self) -> None:  # noqa: B027 (not abstract: few have something to end)
        """End what works ahead of the next batch, if anything does."""

    def _start_epoch(self) -> None:
        # The state before the draw is enough to redraw the order: checkpoints stay small.
        self._order_state = self._order_generator.get_state()
        order = torch.randperm(self._examples, generator=self._order_generator)
        self._order = to_device(order, self._device)
        self.position = 0
