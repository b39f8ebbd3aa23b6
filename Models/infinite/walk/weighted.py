"""What layers with weights and normalisations mean for infinitely wide networks.

Handlers are called as ``handler(builder, node, *args, **kwargs)`` with the arguments of the
operation, nodes replaced by symbols.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import fx

from Models.infinite.layers.pointwise import Norm
from Models.infinite.layers.window import Window
from Models.infinite.walk.builder import Builder
from Models.infinite.walk.values import (
    CHANNEL,
    Handler,
    Input,
    NoLimitError,
    Symbol,
    Weight,
    shape_of,
)

WEIGHTED: dict[str, Handler] = {}
"""By the operation's name."""

INSTANCE = "each channel is normalised by itself, so that its values are not Gaussian"


def linear(builder: Builder, node: fx.Node, x: Symbol, weight: Any, bias: Any = None) -> Symbol:
    """A linear layer at each position.

    Args:
        builder: of the program.
        node: of the graph.
        x: its input; of an input that is read first, the last axis counts channels.
        weight: [outputs, inputs].
        bias: [outputs], or none.
    """
    if not isinstance(weight, Weight) or not isinstance(bias, Weight | None):
        raise NoLimitError("its weights are computed from parameters; no limit is known")
    if isinstance(x, Input):
        flat = x.flat or len(x.shape) == 1
        x = builder.read(x, (CHANNEL,) if flat else (*range(len(x.shape) - 1), CHANNEL))
    value = builder.value(x)
    if value.axes[-1] != CHANNEL:
        raise NoLimitError("a linear layer reads positions as if they were neurons")
    parameter = builder.parameters[weight.name]
    return builder.affine(value, weight, bias, (), parameter.shape[1])


WEIGHTED["linear"] = linear


def _convolution(
    builder: Builder,
    node: fx.Node,
    x: Symbol,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Any = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Symbol:
    if not isinstance(weight, Weight) or not isinstance(bias, Weight | None):
        raise NoLimitError("its weights are computed from parameters; no limit is known")
    if groups != 1:
        raise NoLimitError("groups of channels are not supported")
    kernel = builder.parameters[weight.name].shape[2:]
    count = len(kernel)
    axes = (CHANNEL, *range(count))
    value = builder.read(x, axes) if isinstance(x, Input) else builder.value(x)
    if value.axes != axes:
        raise NoLimitError("a convolution reads axes in another order than channels, positions")
    strides, dilations = each(stride, count), each(dilation, count)
    windows = []
    for k, size in enumerate(kernel):
        before, after = _padding(padding, k, count, dilations[k] * (size - 1))
        windows.append(Window(size, strides[k], before, after, dilations[k]))
    return builder.affine(
        value, weight, bias, windows, prod(builder.parameters[weight.name].shape[1:])
    )


def each(value: Any, count: int) -> list[int]:
    """One number per spatial dimension.

    Args:
        value: one for all, or a list.
        count: of dimensions.
    """
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _padding(padding: Any, dimension: int, count: int, reach: int) -> tuple[int, int]:
    if padding == "valid":
        return 0, 0
    if padding == "same":
        return reach // 2, reach - reach // 2
    both = each(padding, count)[dimension]
    return both, both


WEIGHTED |= dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution)


def _layer_norm(
    builder: Builder,
    node: fx.Node,
    x: Symbol,
    shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> Symbol:
    return _norm(builder, x, len(shape), weight, bias, eps, needs_centre=True)


def _rms_norm(
    builder: Builder,
    node: fx.Node,
    x: Symbol,
    shape: Sequence[int],
    weight: Any = None,
    eps: float | None = None,
) -> Symbol:
    small = 1.1920928955078125e-07 if eps is None else eps  # torch: that of the input's dtype
    return _norm(builder, x, len(shape), weight, None, small, needs_centre=False)


def _group_norm(
    builder: Builder,
    node: fx.Node,
    x: Symbol,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> Symbol:
    value = builder.value(x)
    if groups == shape_of(node)[1]:
        raise NoLimitError(INSTANCE)
    return _norm(builder, value, len(value.axes), weight, bias, eps, needs_centre=True)


def _norm(
    builder: Builder,
    x: Symbol,
    count: int,
    weight: Any,
    bias: Any,
    eps: float,
    needs_centre: bool,
) -> Symbol:
    value = builder.value(x)
    if value.index == 0:
        raise NoLimitError("the input itself is normalised; do so before the network")
    last = value.axes[-count:]
    joint = count == len(value.axes) and count > 1
    if CHANNEL not in last or (count > 1 and not joint):
        raise NoLimitError("normalisation over positions without all neurons has no known limit")
    if needs_centre and not value.centred:
        raise NoLimitError(
            "layer normalisation of what a nonlinearity returns subtracts a mean that is not "
            "known; put it before the nonlinearity, or use RMS normalisation"
        )
    rates = [
        (
            builder.scaling.vector_rate(p.name)
            if isinstance(p, Weight) and builder.parameters[p.name].requires_grad
            else 0.0
        )
        for p in (weight, bias)
    ]
    layer = Norm(eps, rates[0], rates[1], joint)
    return builder.step("norm", layer, value, gained=value.gained or any(rates))


WEIGHTED |= {"layer_norm": _layer_norm, "rms_norm": _rms_norm, "group_norm": _group_norm}
