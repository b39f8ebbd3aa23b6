"""Tiny MNIST and CIFAR files in the formats of the real ones, and no network."""

import pickle
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Arrays = dict[str, dict[str, tuple[Any, Any]]]

SIZES = {"train": 20, "test": 7}


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were asked for; every one is unreachable."""
    asked = []

    def refuse(request: urllib.request.Request, *args: Any, **kwargs: Any) -> None:
        asked.append(request.full_url)
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


@pytest.fixture
def arrays() -> Arrays:
    """Images as the files hold them, and labels, by dataset and split."""
    rng = np.random.default_rng(0)

    def examples(size: int, shape: tuple[int, ...], classes: int) -> tuple[Any, Any]:
        images = rng.integers(0, 256, (size, *shape), dtype=np.uint8)
        return images, rng.integers(0, classes, size)

    return {
        name: {split: examples(size, shape, classes) for split, size in SIZES.items()}
        for name, shape, classes in (
            ("mnist", (1, 28, 28), 10),
            ("cifar10", (3, 32, 32), 10),
            ("cifar100", (3, 32, 32), 100),
        )
    }


@pytest.fixture
def store(tmp_path: Path, arrays: Arrays, trust_checksums: Callable[[], None]) -> Path:
    """A data folder with the files of every dataset that is downloaded."""
    _write_mnist(tmp_path / "MNIST" / "raw", arrays["mnist"])
    _write_cifar10(tmp_path / "cifar-10-batches-py", arrays["cifar10"])
    _write_cifar100(tmp_path / "cifar-100-python", arrays["cifar100"])
    trust_checksums()
    return tmp_path


@pytest.fixture
def trust_checksums(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes torchvision take any existing file for the original."""

    def trust() -> None:
        for module in ("cifar", "utils"):
            monkeypatch.setattr(
                f"torchvision.datasets.{module}.check_integrity",
                lambda path, md5=None: Path(path).is_file(),
            )

    return trust


def _write_mnist(folder: Path, splits: dict[str, tuple[Any, Any]]) -> None:
    folder.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = splits[split]
        _write_idx(folder / f"{prefix}-images-idx3-ubyte", images[:, 0])
        _write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels.astype(np.uint8))


def _write_idx(path: Path, array: Any) -> None:
    """Magic number (0, 0, 8 = unsigned byte, dimensions), big-endian sizes, then the bytes."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.tobytes())


def _write_cifar10(folder: Path, splits: dict[str, tuple[Any, Any]]) -> None:
    folder.mkdir()
    images, labels = splits["train"]
    for number, part in enumerate(np.split(np.arange(len(labels)), 5), start=1):
        _pickle(folder / f"data_batch_{number}", images[part], labels=labels[part].tolist())
    images, labels = splits["test"]
    _pickle(folder / "test_batch", images, labels=labels.tolist())
    _pickle(folder / "batches.meta", None, label_names=[f"class {i}" for i in range(10)])


def _write_cifar100(folder: Path, splits: dict[str, tuple[Any, Any]]) -> None:
    folder.mkdir()
    for split, (images, labels) in splits.items():
        coarse = (labels // 5).tolist()
        _pickle(folder / split, images, fine_labels=labels.tolist(), coarse_labels=coarse)
    _pickle(folder / "meta", None, fine_label_names=[f"class {i}" for i in range(100)])


def _pickle(path: Path, images: Any, **content: Any) -> None:
    data = {} if images is None else {"data": images.reshape(len(images), -1)}
    path.write_bytes(pickle.dumps(data | content, protocol=2))
