"""The datasets that torchvision downloads, read by torchvision's own classes."""

import contextlib
import fcntl
import io
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from Data.dataset import Dataset, Split
from Data.entry import DatasetEntry
from Utils.errors import UserError

_TIMEOUT_SECONDS = 10.0

# What torchvision raises where files are absent, damaged, or cannot be downloaded or written:
# its MNIST parser checks nothing and trips over whatever comes first.
_UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, KeyError, AssertionError)


def load_mnist(entry: DatasetEntry, data_dir: Path) -> Dataset:
    """MNIST from ``data_dir/MNIST/raw``; inputs [N, 1, 28, 28] uint8.

    Raises:
        UserError: the files are missing or damaged and cannot be downloaded.
    """
    folder = data_dir / "MNIST" / "raw"
    archives = [folder / name for name, _ in datasets.MNIST.resources]
    return _load(entry, data_dir, datasets.MNIST, folder, archives)


def load_cifar10(entry: DatasetEntry, data_dir: Path) -> Dataset:
    """CIFAR-10 from ``data_dir/cifar-10-batches-py``; inputs [N, 3, 32, 32] uint8.

    Raises:
        UserError: the files are missing or damaged and cannot be downloaded.
    """
    return _load_cifar(entry, data_dir, datasets.CIFAR10)


def load_cifar100(entry: DatasetEntry, data_dir: Path) -> Dataset:
    """CIFAR-100 from ``data_dir/cifar-100-python``; inputs [N, 3, 32, 32] uint8.

    Raises:
        UserError: the files are missing or damaged and cannot be downloaded.
    """
    return _load_cifar(entry, data_dir, datasets.CIFAR100)


def _load_cifar(entry: DatasetEntry, data_dir: Path, source: Any) -> Dataset:
    archive = data_dir / source.filename
    return _load(entry, data_dir, source, data_dir / source.base_folder, [archive])


def _load(
    entry: DatasetEntry, data_dir: Path, source: Any, folder: Path, archives: Sequence[Path]
) -> Dataset:
    """Read ``source``, a torchvision class whose files are in ``folder``; else download it.

    ``archives`` are the downloads; torchvision unpacks them if they are there, even offline.
    """
    with contextlib.suppress(*_UNREADABLE):
        return _read(entry, data_dir, source)
    try:
        with _one_process_at_a_time(data_dir), _brief_connections(), _progress_on_terminals_only():
            source(data_dir, download=True)
        return _read(entry, data_dir, source)
    except _UNREADABLE as error:
        problem = _explain(error, folder.absolute(), archives)
        raise UserError(f"dataset {entry.name}: {problem}") from None


def _explain(error: Exception, folder: Path, archives: Sequence[Path]) -> str:
    names = ", ".join(archive.name for archive in archives)
    cure = f"put the original {names} into {archives[0].parent.absolute()}"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip("<>")
    if folder.is_dir() and any(folder.iterdir()):
        return f"{folder} is incomplete or damaged ({reason}); delete it, and offline {cure}"
    return f"not in {folder} and cannot be downloaded ({reason}); {cure}"


def _read(entry: DatasetEntry, data_dir: Path, source: Any) -> Dataset:
    """Both splits, without a download."""
    train, test = (_split(entry, source(data_dir, train=train)) for train in (True, False))
    return Dataset(entry, train, test)


def _split(entry: DatasetEntry, source: Any) -> Split:
    """What torchvision holds as [N, H, W] or [N, H, W, C], as [N, C, H, W]."""
    images = torch.as_tensor(source.data)
    inputs = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return Split(entry, inputs.contiguous(), torch.as_tensor(source.targets, dtype=torch.int64))


@contextlib.contextmanager
def _one_process_at_a_time(data_dir: Path) -> Iterator[None]:
    """Runs of a sweep that start together must not write the same download."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with open(data_dir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _brief_connections() -> Iterator[None]:
    """A silent server is given up soon: torchvision itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _progress_on_terminals_only() -> contextlib.AbstractContextManager[object]:
    if sys.stderr.isatty():
        return contextlib.nullcontext()
    return contextlib.redirect_stderr(io.StringIO())
