"""Image folders: ImageNet, streamed, and Tiny ImageNet, decoded into memory once.

Both have a folder for the training and one for the validation images, in it a folder for each
class, below that the images; classes are numbered in the order of their folders' names, as
torchvision's ImageFolder does.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from Data.dataset import Dataset, Split
from Data.entry import DatasetEntry
from Data.streaming import Pictures, StreamedSplit, Transform, in_order, read
from Data.tiny_imagenet import FOLDER, check_set_up
from Utils.errors import UserError
from Utils.logging import progress

_DECODED_AT_ONCE = 500


def load_imagenet(entry: DatasetEntry, data_dir: Path, *, classes: int, workers: int) -> Dataset:
    """ImageNet from ``data_dir/imagenet_raw/{train,val}``, streamed: [B, 3, 224, 224] uint8.

    Args:
        entry: describes the dataset.
        data_dir: the folder with the downloaded data sets.
        classes: how many class folders there must be.
        workers: processes that decode the images.

    Raises:
        UserError: folders are missing, empty or not as many as ``classes``.
    """
    folder = data_dir / "imagenet_raw"
    cure = f"put class folders with images into {folder.absolute()}/train and val"
    names = [_classes(entry, folder / part, cure) for part in ("train", "val")]
    if names[0] != names[1]:
        other = sorted(set(names[0]) ^ set(names[1]))[0]
        raise UserError(f"dataset imagenet: class folder {other} is not in both train and val")
    if len(names[0]) != classes:
        raise UserError(
            f"dataset imagenet: {folder} has {len(names[0])} class folders, --classes is "
            f"{classes}; use --classes {len(names[0])}"
        )
    plain, augmented = imagenet_transforms(entry.input_shape[-1])

    def split(part: str) -> StreamedSplit:
        pictures, targets = _pictures(entry, folder / part, plain, augmented, cure)
        return StreamedSplit(entry, pictures, targets, workers)

    return Dataset(entry, split("train"), split("val"))


def imagenet_transforms(size: int) -> tuple[Transform, Transform]:
    """How ImageNet's images become uint8 [3, size, size]: for evaluation, and for training.

    Evaluation takes the centre of the image, shrunk to a shorter side of 8/7 ``size`` (256 for
    224). Training follows Kunin et al. (2021): a random part of 1/5 to all of the area, grey in
    one case of five, jittered brightness, contrast, saturation and hue, mirrored in one of two.
    """
    plain = [transforms.Resize(size * 8 // 7), transforms.CenterCrop(size)]
    augmented = [
        transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
        transforms.RandomGrayscale(0.2),
        transforms.ColorJitter(0.4, 0.4, 0.4, 0.4),
        transforms.RandomHorizontalFlip(),
    ]
    as_bytes = transforms.PILToTensor()
    return transforms.Compose([*plain, as_bytes]), transforms.Compose([*augmented, as_bytes])


def load_tiny_imagenet(entry: DatasetEntry, data_dir: Path, *, workers: int) -> Dataset:
    """Tiny ImageNet from ``data_dir/tiny-imagenet-200``; inputs [N, 3, 64, 64] uint8.

    Args:
        entry: describes the dataset.
        data_dir: the folder with the downloaded data sets.
        workers: processes that decode the images.

    Raises:
        UserError: it is missing, incomplete, or not set up by scripts/setup_tiny_imagenet.py.
    """
    folder = data_dir / FOLDER
    check_set_up(data_dir)
    return Dataset(
        entry,
        _decoded(entry, folder / "train", workers),
        _decoded(entry, folder / "val", workers),
    )


def _decoded(entry: DatasetEntry, folder: Path, workers: int) -> Split:
    """All images of a folder, in memory."""
    as_stored = partial(_of_size, entry.input_shape[1:])
    cure = "unzip the archive again"
    pictures, targets = _pictures(entry, folder, as_stored, as_stored, cure)
    inputs = torch.empty(len(targets), *entry.input_shape, dtype=torch.uint8)
    requests = in_order(len(targets), _DECODED_AT_ONCE)
    batches = progress(read(pictures, requests, workers), f"decoding {folder.name}", len(requests))
    for (numbers, _), batch in zip(requests, batches, strict=True):
        inputs[numbers[0] : numbers[-1] + 1] = batch
    return Split(entry, inputs, targets)


def _of_size(size: tuple[int, ...], image: Image.Image) -> Tensor:
    """An image as bytes [3, H, W]; raises ``ValueError`` if it has another size."""
    pixels: Tensor = transforms.functional.pil_to_tensor(image)
    if pixels.shape[1:] != size:
        raise ValueError(f"{tuple(pixels.shape[1:])} pixels, expected {size}")
    return pixels


def _classes(entry: DatasetEntry, folder: Path, cure: str) -> list[str]:
    """The names of the class folders, sorted."""
    try:
        names: list[str] = find_classes(folder)[0]
        return names
    except OSError as error:
        reason = "it is not there" if not folder.is_dir() else str(error)
        raise UserError(f"dataset {entry.name}: {folder}: {reason}; {cure}") from None


def _pictures(
    entry: DatasetEntry, folder: Path, plain: Transform, augmented: Transform, cure: str
) -> tuple[Pictures, Tensor]:
    """The images of a folder, and the numbers of their classes, [N] int64."""
    numbers = {name: number for number, name in enumerate(_classes(entry, folder, cure))}
    try:
        samples = make_dataset(str(folder), numbers, IMG_EXTENSIONS)
    except OSError as error:
        raise UserError(f"dataset {entry.name}: {error}; {cure}") from None
    names = np.array([os.fsencode(os.path.relpath(path, folder)) for path, _ in samples])
    targets = torch.tensor([number for _, number in samples])
    return Pictures(folder, names, plain, augmented), targets
