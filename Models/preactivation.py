"""Residual networks without normalisation whose nonlinearities come first in every branch."""

from collections import OrderedDict
from math import sqrt

from torch import Tensor, nn

from Models.registry import NONLINEARITIES
from Models.shapes import image_shape


class _Block(nn.Module):
    """x + conv2(f(conv1(f(x)))) / √L: [N, W, height, width] to the same shape.

    Args:
        width: W, channels.
        blocks: L, of the network. Divided by its root, the branches of independent weights add
            up to the same size at every depth (Hayou et al. 2021, arXiv 2010.12859).
        nonlinearity: a name in :data:`NONLINEARITIES`.
        bias: whether the convolutions have one.
    """

    def __init__(self, width: int, blocks: int, nonlinearity: str, bias: bool):
        super().__init__()
        activation = NONLINEARITIES[nonlinearity].load()
        self.act1 = activation()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.act2 = activation()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.share = 1 / sqrt(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of stream and branch."""
        branch: Tensor = self.conv2(self.act2(self.conv1(self.act1(x))))
        return x + self.share * branch


def preactivation_resnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int,
    width: int,
    nonlinearity: str,
    bias: bool = True,
) -> nn.Module:
    """3x3 convolutions in residual blocks, average pooling and a linear classifier.

    Maps [N, C, H, W] to [N, num_classes] for any H and W. Nothing follows the sums but the next
    block's linear reading of them, so that they are Gaussian in wide networks, which those of
    :mod:`Models.resnet` are not. Convolutions are drawn from He et al. (2015, arXiv 1502.01852),
    equation 10, as nothing else keeps the size of the features; their biases are zero.

    Args:
        input_shape: (channels, height, width) of one example.
        num_classes: number of outputs.
        depth: blocks, of two convolutions each.
        width: channels of each convolution.
        nonlinearity: a name in :data:`NONLINEARITIES`.
        bias: whether the convolutions and the classifier have one.

    Raises:
        UserError: the examples are no images.
    """
    channels, _, _ = image_shape("preact-resnet", input_shape)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
    for block in range(1, depth + 1):
        layers[f"block{block}"] = _Block(width, depth, nonlinearity, bias)
    layers["act"] = NONLINEARITIES[nonlinearity].load()()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(width, num_classes, bias=bias)
    model = nn.Sequential(layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
