"""Convolutional networks without pooling: conv, conv-bn."""

from collections import OrderedDict
from functools import partial

from torch import nn

from Models.registry import NONLINEARITIES
from Utils.errors import UserError


def convolutional(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int,
    width: int,
    nonlinearity: str,
    bias: bool = True,
    batch_norm: bool = False,
) -> nn.Module:
    """``depth - 1`` 3x3 convolutions and a linear classifier: [N, C, H, W] -> [N, num_classes].

    Args:
        input_shape: (channels, height, width) of one example.
        num_classes: number of outputs.
        depth: number of layers with weights, the classifier included.
        width: channels of each convolution.
        nonlinearity: a name in :data:`NONLINEARITIES`.
        bias: whether the convolutions and the classifier have one.
        batch_norm: whether batch normalisation precedes each nonlinearity.

    Raises:
        UserError: the examples are no images.
    """
    activation = NONLINEARITIES[nonlinearity].load()
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, height, image_width = image_shape(input_shape)
    for layer in range(1, depth):
        layers[f"conv{layer}"] = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
        if batch_norm:
            layers[f"bn{layer}"] = nn.BatchNorm2d(width)
        layers[f"act{layer}"] = activation()
        channels = width
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels * height * image_width, num_classes, bias=bias)
    return nn.Sequential(layers)


def image_shape(input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width; raises :class:`UserError` for examples that are no images."""
    if len(input_shape) != 3:
        raise UserError(
            f"--model: this one needs images (channels, height, width), but the data have inputs "
            f"of shape {input_shape}; use another, such as --model fc"
        )
    channels, height, width = input_shape
    return channels, height, width


convolutional_bn = partial(convolutional, batch_norm=True)
"""With batch normalisation before each nonlinearity."""
