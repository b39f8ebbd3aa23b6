"""Fully connected networks: logistic, fc, fc-bn."""

from collections import OrderedDict
from math import prod

from torch import nn

from Models.registry import NONLINEARITIES


def logistic(input_shape: tuple[int, ...], num_classes: int, *, bias: bool = True) -> nn.Module:
    """One linear layer on the flattened input: [N, *input_shape] -> [N, num_classes].

    Args:
        input_shape: of one example.
        num_classes: number of outputs.
        bias: whether the layer has one.
    """
    classifier = nn.Linear(prod(input_shape), num_classes, bias=bias)
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), classifier=classifier))


def fully_connected(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int,
    width: int,
    nonlinearity: str,
    bias: bool = True,
    batch_norm: bool = False,
) -> nn.Module:
    """``depth - 1`` hidden layers and a linear classifier: [N, *input_shape] -> [N, num_classes].

    Args:
        input_shape: of one example.
        num_classes: number of outputs.
        depth: number of linear layers, the classifier included.
        width: neurons of each hidden layer.
        nonlinearity: a name in :data:`NONLINEARITIES`.
        bias: whether the linear layers have one.
        batch_norm: whether batch normalisation precedes each nonlinearity.
    """
    activation = NONLINEARITIES[nonlinearity].load()
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    features = prod(input_shape)
    for layer in range(1, depth):
        layers[f"fc{layer}"] = nn.Linear(features, width, bias=bias)
        if batch_norm:
            layers[f"bn{layer}"] = nn.BatchNorm1d(width)
        layers[f"act{layer}"] = activation()
        features = width
    layers["classifier"] = nn.Linear(features, num_classes, bias=bias)
    return nn.Sequential(layers)
