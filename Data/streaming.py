"""Images too large for memory, decoded and transformed by worker processes batch by batch.

Workers hold no state: what they do to an image follows from the seed, the epoch and the
image's number alone. Hence the batches are the same for any number of workers, and nothing
that was prefetched has to be remembered.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils import data

from Data.dataset import Examples, RawBatch, check_targets
from Data.entry import DatasetEntry
from Data.order import TrainingBatches, share_of
from Data.transforms import Normalize
from Utils.devices import to_device
from Utils.errors import UserError

Transform = Callable[[Image.Image], Tensor]
"""From an RGB image to uint8 [C, H, W]; random numbers come from torch's global generator."""

Request = tuple[list[int], tuple[int, int] | None]
"""Numbers of a batch's images; seed of the stream "augment" and epoch, or none to augment."""

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_SECONDS_AFTER_SIGTERM = 10

_UNREADABLE = (OSError, SyntaxError, ValueError)
"""What PIL raises for a file that is missing, damaged or no image."""


@dataclass(frozen=True, eq=False)
class Pictures(data.Dataset[Tensor | UserError]):
    """Image files, and what is done to each: all that a worker needs.

    Attributes:
        root: the folder they are in.
        names: [N] their paths in it, as bytes: a list of a million strings would be slow to
            hand to a worker.
        plain: how an image is transformed.
        augmented: how it is transformed for training.
    """

    root: Path
    names: NDArray[np.bytes_]
    plain: Transform
    augmented: Transform

    def __getitem__(self, request: Request) -> Tensor | UserError:
        """A batch, uint8 [B, C, H, W]; an error is returned, as workers would add to its text."""
        numbers, epoch = request
        try:
            if epoch is None:
                return torch.stack([self._read(number, self.plain) for number in numbers])
            return torch.stack([self._read_augmented(number, epoch) for number in numbers])
        except UserError as error:
            return error

    def _read_augmented(self, number: int, epoch: tuple[int, int]) -> Tensor:
        with _seeded(example_seed(*epoch, number)):
            return self._read(number, self.augmented)

    def _read(self, number: int, transform: Transform) -> Tensor:
        path = self.root / os.fsdecode(self.names[number])
        try:
            return transform(_image(path))
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())
            raise UserError(f"image {path} cannot be read ({reason}); put it back") from None


def _image(path: Path) -> Image.Image:
    """As torchvision's ``pil_loader``; torchvision takes a second of every command to import."""
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def read(
    pictures: Pictures, requests: Sequence[Request], workers: int = 0
) -> Generator[Tensor, None, None]:
    """The batches that are asked for, in order, decoded ahead by ``workers`` processes.

    Args:
        pictures: the files.
        requests: one for each batch.
        workers: how many processes; 0 decodes in this one.

    Yields:
        uint8 [B, C, H, W].

    Raises:
        UserError: an image cannot be read.
    """
    with warnings.catch_warnings():  # more workers than cores are welcome where disks are slow
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        batches: Iterator[Tensor | UserError] = iter(
            data.DataLoader(
                pictures,
                batch_size=None,
                sampler=requests,
                num_workers=workers,
                multiprocessing_context=_processes() if workers else None,
                worker_init_fn=_outlive_signals if workers else None,
                generator=torch.Generator(),  # else it would draw from the global one
            )
        )
    try:
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:
        del batches  # ends the workers, even where a traceback keeps this frame


def in_order(size: int, batch_size: int) -> list[Request]:
    """Asks for ``size`` images once, in order and without augmentation."""
    starts = range(0, size, batch_size)
    return [(list(range(start, min(start + batch_size, size))), None) for start in starts]


def example_seed(augment_seed: int, epoch: int, number: int) -> int:
    """The 63-bit seed of one image's augmentation in one epoch.

    Args:
        augment_seed: of the run's stream "augment".
        epoch: epochs completed.
        number: the image's.
    """
    sequence = np.random.SeedSequence([augment_seed, epoch, number])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True, eq=False)
class StreamedSplit(Examples):
    """Examples whose inputs stay in their files.

    Attributes:
        entry: describes them.
        pictures: the files.
        targets: [N] int64 class numbers.
        workers: processes that decode them ahead.

    Raises:
        ValueError: if the targets are not what ``entry`` describes.
    """

    entry: DatasetEntry
    pictures: Pictures
    targets: Tensor
    workers: int

    def __post_init__(self) -> None:
        check_targets(self.entry, self.targets)

    def to(self, device: torch.device | str) -> Self:
        """Itself: batches are moved when they have been read."""
        return self

    def take(self, index: Tensor) -> RawBatch:
        (inputs,) = read(self.pictures, [(index.tolist(), None)])
        return inputs, self.targets[index]

    def in_order(self, batch_size: int, share: tuple[int, int] = (0, 1)) -> Iterator[RawBatch]:
        requests = in_order(len(self), batch_size)[share[0] :: share[1]]
        for request, inputs in zip(
            requests, read(self.pictures, requests, self.workers), strict=True
        ):
            yield inputs, self.targets[request[0]]


class StreamedBatches(TrainingBatches):
    """Shuffled, augmented, normalised training batches of a streamed split.

    The arguments are those of :class:`Data.batches.Batches`.
    """

    _ahead: Generator[Tensor, None, None] | None = None
    """The rest of the epoch, being prefetched; begun when the first batch is wanted."""

    def __init__(
        self,
        split: StreamedSplit,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        augment: bool = True,
        drop_last: bool = False,
        share: tuple[int, int] = (0, 1),
    ):
        super().__init__(split, batch_size, seed, "cpu", drop_last, share)
        self._split, self._augment, self._device_of_batches = split, augment, device
        self._normalize = Normalize(split.entry, device, dtype)

    def _batch(self, index: Tensor, share: slice) -> tuple[Tensor, Tensor]:
        if self._ahead is None:
            rest = range(self.position, self.steps_per_epoch)
            requests = [self._request(position) for position in rest]
            self._ahead = read(self._split.pictures, requests, self._split.workers)
        inputs, targets = (
            to_device(part, self._device_of_batches)
            for part in (next(self._ahead), self._split.targets[index[share]])
        )
        return self._normalize(inputs), targets

    def _request(self, position: int) -> Request:
        start = position * self._batch_size
        index = self._order[start : start + self._batch_size]
        numbers = index[share_of(len(index), self._share)].tolist()
        # The generator is never drawn from: its state carries its seed into a checkpoint.
        seed = self._augment_generator.initial_seed()
        return numbers, (seed, self.epoch) if self._augment else None

    def _start_epoch(self) -> None:
        super()._start_epoch()
        self.close()

    def close(self) -> None:
        """End the workers."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's global CPU generator at a seed, and back where it was (dropout draws from it)."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset the GPUs' too
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _processes() -> Any:
    """How workers are started: a fork of this process, which has threads, could hang.

    A signal to all processes stops the main one after its step, which still needs workers: the
    process that they are forked from is started with such signals blocked.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision.datasets.folder"])
    resource_tracker.ensure_running()  # the forkserver would start it, which unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _outlive_signals(worker: int) -> None:
    """Ignore Ctrl-C; end some time after SIGTERM, by which a worker that hangs is ended too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_SECONDS_AFTER_SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def _end_with_the_main_process() -> None:
    """A worker does not notice by itself that the main process was killed."""
    main = multiprocessing.parent_process()
    if main is not None:
        main.join()
        os._exit(1)
