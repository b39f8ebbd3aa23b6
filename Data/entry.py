"""What describes a dataset before it is loaded."""

from dataclasses import dataclass

from Utils.registry import Entry


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image that keep its class.

    Attributes:
        pad: zeros added on every side before a random crop of the original size.
        flip: whether half of the images are mirrored left to right.
    """

    pad: int
    flip: bool


@dataclass(frozen=True, kw_only=True)
class DatasetEntry(Entry):
    """A dataset.

    The builder is called as ``builder(entry, data_dir)`` and returns a
    :class:`Data.dataset.Dataset`.

    Attributes:
        input_shape: (C, H, W).
        num_classes: how many different targets there are.
        mean: per channel, over the training inputs divided by ``max_value``.
        std: likewise.
        max_value: the raw value that counts as 1.
        augmentation: of the training images, ``None`` for none.
    """

    input_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_value: float = 255.0
    augmentation: Augmentation | None = None
