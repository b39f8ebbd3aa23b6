"""VGG networks for small images, as neural-mechanics trained them."""

from collections import OrderedDict

from torch import nn

from Models.shapes import image_shape

_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions before each pooling, by the number of layers with weights."""

_CHANNELS = (64, 128, 256, 512, 512)


def vgg(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    layers: int,
    batch_norm: bool,
    bias: bool = True,
) -> nn.Module:
    """3x3 convolutions in five stages and three linear layers: [N, C, H, W] -> [N, num_classes].

    With d the number of features after the last pooling, the linear layers have d/2, d/2 and
    ``num_classes`` outputs. Weights are drawn as torchvision's: convolutions from He et al. (2015,
    arXiv 1502.01852), equation 14, linear layers from N(0, 0.01²); biases are zero.

    Args:
        input_shape: (channels, height, width) of one example, at least 32 x 32.
        num_classes: number of outputs.
        layers: 11, 13, 16 or 19.
        batch_norm: whether batch normalisation precedes each nonlinearity of the convolutions.
        bias: whether convolutions and linear layers have one.

    Raises:
        UserError: the examples are no images, or too small.
    """
    name = f"vgg{layers}{'-bn' * batch_norm}"
    channels, height, width = image_shape(name, input_shape, 32)  # halved five times
    features: list[nn.Module] = []
    for convolutions, outputs in zip(_STAGES[layers], _CHANNELS, strict=True):
        for _ in range(convolutions):
            features.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=bias))
            features += [nn.BatchNorm2d(outputs)] if batch_norm else []
            features.append(nn.ReLU(inplace=True))
            channels = outputs
        features.append(nn.MaxPool2d(2))
    size = channels * (height // 32) * (width // 32)
    classifier = [
        *(nn.Linear(size, size // 2, bias=bias), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        *(nn.Linear(size // 2, size // 2, bias=bias), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        nn.Linear(size // 2, num_classes, bias=bias),
    ]
    model = nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*features),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(*classifier),
        )
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model
