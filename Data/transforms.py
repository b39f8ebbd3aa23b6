"""From raw images to a network's inputs: random crops and flips, then normalisation.

Letters in shapes: N images of the split, B of the batch, C channels, H x W pixels, p padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from Data.entry import Augmentation, DatasetEntry
from Utils.devices import to_device


class Normalize:
    """(raw / max_value - mean) / std per channel: what ToTensor and Normalize of torchvision do.

    Args:
        entry: the dataset, whose ``max_value``, ``mean`` and ``std`` are used.
        device: where the raw images are.
        dtype: of the result.
    """

    def __init__(self, entry: DatasetEntry, device: torch.device | str, dtype: torch.dtype):
        self._max_value = entry.max_value
        channels_first = (-1, *[1] * (len(entry.input_shape) - 1))
        self._mean = torch.tensor(entry.mean, dtype=dtype, device=device).view(channels_first)
        self._std = torch.tensor(entry.std, dtype=dtype, device=device).view(channels_first)

    def __call__(self, raw: Tensor) -> Tensor:
        """[B, *input_shape] of any dtype -> a new tensor of the same shape, normalised."""
        # One new tensor, then in place: half the memory traffic of four new tensors.
        values = raw.to(self._mean.dtype, copy=True)
        return values.div_(self._max_value).sub_(self._mean).div_(self._std)


def as_outputs(targets: Tensor, dtype: torch.dtype) -> Tensor:
    """The targets of a regression in the network's number format; class numbers as they are."""
    return targets.to(dtype) if targets.is_floating_point() else targets


class CropAndFlip:
    """Draws a random crop and flip for every image of a batch, without a loop over images.

    Args:
        images: [N, C, H, W]; a padded copy is kept.
        augmentation: which crops and flips to draw from.
        generator: on the CPU, so that all devices see the same crops.
    """

    def __init__(self, images: Tensor, augmentation: Augmentation, generator: torch.Generator):
        self._windows = crop_windows(images, augmentation.pad)
        self._augmentation = augmentation
        self._generator = generator

    def __call__(self, index: Tensor, part: slice) -> Tensor:
        """Some of a batch's images, changed at random.

        Args:
            index: [B] int64, the batch's images, for all of which numbers are drawn.
            part: the wanted ones.

        Returns:
            [part, C, H, W].
        """
        draws = draw(self._augmentation, len(index), self._generator)[:, part]
        return crop_and_flip(self._windows, index[part], to_device(draws, index.device))


def draw(augmentation: Augmentation, batch_size: int, generator: torch.Generator) -> Tensor:
    """Rows and columns where crops begin (0 to 2p) and flips (0 or 1): [3, B] int64."""
    corners = torch.randint(2 * augmentation.pad + 1, (2, batch_size), generator=generator)
    flips = torch.randint(1 + augmentation.flip, (1, batch_size), generator=generator)
    return torch.cat([corners, flips])


def crop_windows(images: Tensor, pad: int) -> Tensor:
    """Every H x W crop of the zero-padded images, as a view: [N, C, 2p+1, 2p+1, H, W]."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (pad, pad, pad, pad))
    return padded.unfold(2, height, 1).unfold(3, width, 1)


def crop_and_flip(windows: Tensor, index: Tensor, draws: Tensor) -> Tensor:
    """One crop of each indexed image, mirrored where asked.

    Args:
        windows: [N, C, 2p+1, 2p+1, H, W] from :func:`crop_windows`.
        index: [B] image numbers.
        draws: [3, B] from :func:`draw`: row, column and flip of each image.

    Returns:
        [B, C, H, W].
    """
    rows, columns, flips = draws
    crops = windows[index, :, rows, columns]
    return torch.where(flips.bool()[:, None, None, None], crops.flip(-1), crops)
