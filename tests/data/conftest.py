"""Tiny files in the formats of the real data sets, and no network."""

import pickle
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from Data.tiny_imagenet import set_up

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
def tiny_archive(tmp_path: Path) -> Path:
    """A data folder with Tiny ImageNet as its archive unpacks: an image for each class."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "tiny-imagenet-200"
    wnids = [f"n{number:08}" for number in rng.choice(10**8, 200, replace=False)]
    for wnid in wnids:
        _write_jpeg(folder / "train" / wnid / "images" / f"{wnid}_0.JPEG", rng, 64, 64)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
    lines = []
    for number, wnid in enumerate(rng.permutation(wnids)):
        _write_jpeg(folder / "val" / "images" / f"val_{number}.JPEG", rng, 64, 64)
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def tiny_imagenet(tiny_archive: Path) -> Path:
    """A data folder with Tiny ImageNet, set up."""
    set_up(tiny_archive)
    return tiny_archive


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """A data folder with image folders of 3 classes, 11 + 5 images of different sizes."""
    rng = np.random.default_rng(1)
    sizes = [(260, 300), (330, 256), (500, 210), (230, 225), (100, 90)]
    for part, count in (("train", 11), ("val", 5)):
        for number in range(count):
            wnid = f"n{(number * 2) % 3:08}"
            path = tmp_path / "imagenet_raw" / part / wnid / f"{part}_{number}.JPEG"
            _write_jpeg(path, rng, *sizes[number % 5], grey=number == 3)
    return tmp_path


def _write_jpeg(
    path: Path, rng: np.random.Generator, height: int, width: int, grey: bool = False
) -> None:
    """A picture of smooth random colours, as photographs are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    picture = small.resize((width, height), Image.Resampling.BILINEAR)
    picture.convert("L" if grey else "RGB").save(path, "JPEG")


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
