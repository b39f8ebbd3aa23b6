"""torchvision's networks for large images, made by its own constructors."""

import torchvision
from torch import nn

from Models.shapes import image_shape
from Utils.errors import UserError


def torchvision_model(
    input_shape: tuple[int, ...], num_classes: int, *, architecture: str
) -> nn.Module:
    """A network of torchvision with its own initial weights: [N, 3, H, W] -> [N, num_classes].

    Args:
        input_shape: (3, height, width) of one example.
        num_classes: number of outputs.
        architecture: torchvision's name for it.

    Raises:
        UserError: the examples are no images in three colours, or too small.
    """
    # VGGs halve images five times; ResNets pad them
    smallest = 32 if architecture.startswith("vgg") else 1
    channels, _, _ = image_shape(f"{architecture} of --model-class imagenet", input_shape, smallest)
    if channels != 3:
        raise UserError(
            f"--model {architecture} of --model-class imagenet reads images in 3 colours, not "
            f"{channels}; use --model-class tinyimagenet or another --dataset"
        )
    model: nn.Module = torchvision.models.get_model(
        architecture, weights=None, num_classes=num_classes
    )
    return model
