"""Tiny files in the formats of the real data sets, and no network."""

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from Data.tiny_imagenet import set_up
from tests.data.files import (
    write_cifar10,
    write_cifar100,
    write_imagenet,
    write_mnist,
    write_tiny_imagenet,
)

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
    write_mnist(tmp_path / "MNIST" / "raw", arrays["mnist"])
    write_cifar10(tmp_path / "cifar-10-batches-py", arrays["cifar10"])
    write_cifar100(tmp_path / "cifar-100-python", arrays["cifar100"])
    trust_checksums()
    return tmp_path


@pytest.fixture
def tiny_archive(tmp_path: Path) -> Path:
    """A data folder with Tiny ImageNet as its archive unpacks."""
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    return tmp_path


@pytest.fixture
def tiny_imagenet(tiny_archive: Path) -> Path:
    """A data folder with Tiny ImageNet, set up."""
    set_up(tiny_archive)
    return tiny_archive


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """A data folder with image folders of 3 classes, 11 + 5 images."""
    write_imagenet(tmp_path / "imagenet_raw")
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
