"""torchvision's networks for large images, made by its own constructors."""

import torchvision
from torch import nn

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
        UserError: the inputs are no images in three colours, or too small.
    """
    smallest = 32 if architecture.startswith("vgg") else 1  # five poolings; ResNets pad
    if len(input_shape) != 3 or input_shape[0] != 3 or min(input_shape[1:]) < smallest:
        raise UserError(
            f"--model-class imagenet: torchvision's {architecture} reads images in 3 colours of at "
            f"least {smallest}x{smallest} pixels, not inputs of shape "
            f"{'x'.join(map(str, input_shape))}; use --model-class tinyimagenet or another "
            "--dataset"
        )
    model: nn.Module = torchvision.models.get_model(
        architecture, weights=None, num_classes=num_classes
    )
    return model
