"""ResNets for small images: torchvision's with another stem, also wider or not normalised."""

from math import sqrt
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from Models.shapes import image_shape

_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Residual blocks in each stage, by the number of layers with weights."""


class _WideBasicBlock(BasicBlock):  # type: ignore[misc]
    """BasicBlock with twice the channels between its convolutions, as a wide Bottleneck has."""

    bn1: nn.Module

    def __init__(self, inplanes: int, planes: int, *args: Any, **options: Any):
        super().__init__(inplanes, planes, *args, **options)
        inner = 2 * planes
        self.conv1 = nn.Conv2d(inplanes, inner, 3, self.stride, padding=1, bias=False)
        self.bn1 = type(self.bn1)(inner)
        self.conv2 = nn.Conv2d(inner, planes, 3, padding=1, bias=False)


def resnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    layers: int,
    wide: bool,
    batch_norm: bool,
) -> nn.Module:
    """A residual network whose first layers keep the size of the image.

    torchvision's, with a 3x3 convolution instead of 7x7 with stride 2 and max-pooling; maps
    [N, C, H, W] to [N, num_classes] for any H and W. Convolutions have no bias and are drawn
    from He et al. (2015, arXiv 1502.01852), equation 14.

    Without normalisation they are drawn from its equation 10, so that the size of the features
    is kept whatever the channels, and the last one of each of L residual branches is divided by
    √L, without which their sum would grow exponentially in L (Zhang et al. 2019, arXiv
    1903.07120; Hayou et al. 2021, arXiv 2010.12859).

    Args:
        input_shape: (channels, height, width) of one example.
        num_classes: number of outputs.
        layers: 18, 34, 50, 101 or 152; from 50 on, blocks of three convolutions.
        wide: whether the channels inside the blocks are doubled.
        batch_norm: whether every convolution is followed by batch normalisation.

    Raises:
        UserError: the examples are no images.
    """
    channels, _, _ = image_shape(f"resnet{layers}", input_shape)
    bottleneck = layers >= 50
    model: nn.Module = ResNet(
        Bottleneck if bottleneck else _WideBasicBlock if wide else BasicBlock,
        _BLOCKS[layers],
        num_classes=num_classes,
        width_per_group=128 if wide and bottleneck else 64,
        norm_layer=nn.BatchNorm2d if batch_norm else nn.Identity,
    )
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    if not batch_norm:
        _draw_for_no_normalisation(model)
    return model


@torch.no_grad()
def _draw_for_no_normalisation(model: nn.Module) -> None:
    blocks = [m for m in model.modules() if isinstance(m, (BasicBlock, Bottleneck))]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    for block in blocks:
        last = block.conv3 if isinstance(block, Bottleneck) else block.conv2
        last.weight /= sqrt(len(blocks))
