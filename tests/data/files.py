"""Tiny files in the formats of the real data sets."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_tiny_imagenet(folder: Path) -> None:
    """Tiny ImageNet as its archive unpacks: an image for each class in both parts."""
    rng = np.random.default_rng(0)
    wnids = [f"n{number:08}" for number in rng.choice(10**8, 200, replace=False)]
    for wnid in wnids:
        _write_jpeg(folder / "train" / wnid / "images" / f"{wnid}_0.JPEG", rng, 64, 64)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
    lines = []
    for number, wnid in enumerate(rng.permutation(wnids)):
        _write_jpeg(folder / "val" / "images" / f"val_{number}.JPEG", rng, 64, 64)
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def write_imagenet(folder: Path) -> None:
    """Image folders of 3 classes, 11 + 5 images of different sizes, one of them grey."""
    rng = np.random.default_rng(1)
    sizes = [(260, 300), (330, 256), (500, 210), (230, 225), (100, 90)]
    for part, count in (("train", 11), ("val", 5)):
        for number in range(count):
            path = folder / part / f"n{(number * 2) % 3:08}" / f"{part}_{number}.JPEG"
            _write_jpeg(path, rng, *sizes[number % 5], grey=number == 3)


def _write_jpeg(
    path: Path, rng: np.random.Generator, height: int, width: int, grey: bool = False
) -> None:
    """A picture of smooth random colours, as photographs are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    picture = small.resize((width, height), Image.Resampling.BILINEAR)
    picture.convert("L" if grey else "RGB").save(path, "JPEG")


def write_mnist(folder: Path, splits: dict[str, tuple[Any, Any]]) -> None:
    folder.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = splits[split]
        _write_idx(folder / f"{prefix}-images-idx3-ubyte", images[:, 0])
        _write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels.astype(np.uint8))


def _write_idx(path: Path, array: Any) -> None:
    """Magic number (0, 0, 8 = unsigned byte, dimensions), big-endian sizes, then the bytes."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.tobytes())


def write_cifar10(folder: Path, splits: dict[str, tuple[Any, Any]]) -> None:
    folder.mkdir()
    images, labels = splits["train"]
    for number, part in enumerate(np.split(np.arange(len(labels)), 5), start=1):
        _pickle(folder / f"data_batch_{number}", images[part], labels=labels[part].tolist())
    images, labels = splits["test"]
    _pickle(folder / "test_batch", images, labels=labels.tolist())
    _pickle(folder / "batches.meta", None, label_names=[f"class {i}" for i in range(10)])


def write_cifar100(folder: Path, splits: dict[str, tuple[Any, Any]]) -> None:
    folder.mkdir()
    for split, (images, labels) in splits.items():
        coarse = (labels // 5).tolist()
        _pickle(folder / split, images, fine_labels=labels.tolist(), coarse_labels=coarse)
    _pickle(folder / "meta", None, fine_label_names=[f"class {i}" for i in range(100)])


def _pickle(path: Path, images: Any, **content: Any) -> None:
    data = {} if images is None else {"data": images.reshape(len(images), -1)}
    path.write_bytes(pickle.dumps(data | content, protocol=2))
