"""What operations on positions mean for infinitely wide networks: pooling, padding, reshaping.

Handlers are called as ``handler(builder, node, *args, **kwargs)`` with the arguments of the
operation, nodes replaced by symbols.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import fx

from Models.infinite.layers.positions import Pad, Pool, adaptive_matrix, mean_matrix
from Models.infinite.walk.builder import Builder
from Models.infinite.walk.elementwise import scaled
from Models.infinite.walk.values import (
    CHANNEL,
    Handler,
    Input,
    NoLimitError,
    Symbol,
    Value,
    Weight,
    shape_of,
)
from Models.infinite.walk.weighted import each, linear
from Models.symmetry.export import operation

SPATIAL: dict[str, Handler] = {}
"""By the operation's name."""


def _reshape(builder: Builder, node: fx.Node, x: Symbol, *_: Any, **__: Any) -> Symbol:
    if isinstance(x, Weight):
        raise NoLimitError("its weights are computed from parameters; no limit is known")
    shape = shape_of(node)[1:]
    if isinstance(x, Input):
        return x if shape == x.shape else builder.flatten(_flat(x, shape))
    before = tuple(node.all_input_nodes[0].meta["val"].shape[1:])
    if shape == before:
        return x
    if len(shape) == 1:
        return builder.flatten(x)
    raise NoLimitError("positions and neurons are rearranged in a way that has no known limit")


def _flat(x: Input, shape: tuple[int, ...]) -> Input:
    if len(shape) != 1:
        raise NoLimitError("the input is reshaped; do so before the network")
    return x


SPATIAL |= dict.fromkeys(("flatten", "view", "reshape", "_unsafe_view"), _reshape)


def _spatial(builder: Builder, x: Symbol, count: int) -> Value:
    value = builder.value(x)
    if value.axes != (CHANNEL, *range(count)):
        raise NoLimitError("pooling reads axes in another order than channels, positions")
    return value


def _average(
    builder: Builder,
    node: fx.Node,
    x: Symbol,
    size: Any,
    stride: Any = (),
    padding: Any = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Symbol:
    outputs = shape_of(node)[2:]
    count = len(outputs)
    value = _spatial(builder, x, count)
    sizes, pads = each(size, count), each(padding, count)
    strides = each(stride, count) if stride else sizes
    inputs = builder.sizes(value)
    matrices = [
        mean_matrix(inputs[k], sizes[k], strides[k], pads[k], outputs[k], count_include_pad)
        for k in range(count)
    ]
    pooled = builder.step("average pooling", Pool(tuple(matrices)), value)
    if divisor_override is None:
        return pooled
    return scaled(builder, pooled, prod(sizes) / divisor_override)


SPATIAL |= dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _average)


def _adaptive(builder: Builder, node: fx.Node, x: Symbol, *_: Any) -> Symbol:
    outputs = shape_of(node)[2:]
    value = _spatial(builder, x, len(outputs))
    sizes = builder.sizes(value)
    if sizes == outputs:
        return value
    matrices = tuple(adaptive_matrix(a, b) for a, b in zip(sizes, outputs, strict=True))
    return builder.step("average pooling", Pool(matrices), value)


_ADAPTIVE = ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
SPATIAL |= dict.fromkeys(_ADAPTIVE, _adaptive)


def _reduced(
    builder: Builder, node: fx.Node, x: Symbol, dim: Any = None, keepdim: bool = False, **_: Any
) -> Symbol:
    """Means and sums over all positions."""
    value = builder.value(x)
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    axes = sorted(d % (len(value.axes) + 1) - 1 for d in dims)
    if tuple(axes) != value.spatial or not axes:
        raise NoLimitError("a mean or sum over other axes than all positions has no known limit")
    sizes = builder.sizes(value)
    whole = operation(node).name == "sum"
    ordered = tuple(sizes)
    matrices = tuple(((1.0 if whole else 1 / size,) * size,) for size in ordered)
    pooled = builder.step("global pooling", Pool(matrices), value)
    return pooled if keepdim else builder.flatten(pooled)


SPATIAL |= dict.fromkeys(("mean", "sum"), _reduced)


def _pad(
    builder: Builder,
    node: fx.Node,
    x: Symbol,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Symbol:
    count = len(pad) // 2
    if mode == "constant" and value:
        raise NoLimitError("padding with other numbers than zero has no known limit")
    dimensions = len(shape_of(node)) - 2
    axes = (CHANNEL, *range(dimensions))
    read = builder.read(x, axes) if isinstance(x, Input) else builder.value(x)
    if read.axes != axes or count > dimensions:
        raise NoLimitError("padding reads axes in another order than channels, positions")
    sizes = builder.sizes(read)
    sources = []
    for k, size in enumerate(sizes):
        place = 2 * (dimensions - 1 - k)
        before, after = (pad[place], pad[place + 1]) if place < len(pad) else (0, 0)
        places = range(-before, size + after)
        sources.append(tuple(_SOURCES[mode](p, size) for p in places))
    return builder.step(f"{mode} padding", Pad(tuple(sources)), read)


_SOURCES: dict[str, Any] = {
    "constant": lambda p, size: p if 0 <= p < size else -1,
    "circular": lambda p, size: p % size,
    "replicate": lambda p, size: min(max(p, 0), size - 1),
    "reflect": lambda p, size: size - 1 - abs(size - 1 - abs(p)),
}


def _constant_pad(
    builder: Builder, node: fx.Node, x: Symbol, pad: Sequence[int], value: float = 0.0
) -> Symbol:
    return _pad(builder, node, x, pad, "constant", value)


SPATIAL |= {"pad": _pad, "constant_pad_nd": _constant_pad}


def _axes_moved(builder: Builder, node: fx.Node, x: Symbol, *args: Any) -> Symbol:
    """Transposes of positions and neurons."""
    if isinstance(x, Weight):
        return Weight(x.name, not x.transposed)
    before = node.all_input_nodes[0].meta["val"].dim()
    order = list(range(before))
    if operation(node).name == "permute":
        order = [d % before for d in args[0]]
    else:
        i, j = (d % before for d in args)
        order[i], order[j] = order[j], order[i]
    if order[0] != 0:
        raise NoLimitError("the examples of a batch are moved to another axis")
    value = builder.value(x)
    axes = tuple(value.axes[d - 1] for d in order[1:])
    positions = [axis for axis in axes if axis != CHANNEL]
    if positions != sorted(positions):
        raise NoLimitError("positions are transposed; no limit is known")
    return value.at(value.index, axes=axes)


SPATIAL |= {"permute": _axes_moved, "transpose": _axes_moved}


def _matmul(builder: Builder, node: fx.Node, x: Symbol, y: Symbol) -> Symbol:
    if not isinstance(y, Weight) or not y.transposed:
        raise NoLimitError("a product of two branches is not Gaussian; no limit is known")
    return linear(builder, node, x, Weight(y.name))


SPATIAL |= dict.fromkeys(("matmul", "mm"), _matmul)


def _transposed(builder: Builder, node: fx.Node, x: Symbol) -> Symbol:
    if not isinstance(x, Weight):
        raise NoLimitError("the examples of a batch are moved to another axis")
    return Weight(x.name, not x.transposed)


SPATIAL |= dict.fromkeys(("t", "numpy_T", "mT"), _transposed)


def _concatenated(builder: Builder, node: fx.Node, parts: Sequence[Symbol], dim: int = 0) -> Symbol:
    if any(isinstance(part, (Input, Weight)) for part in parts):
        raise NoLimitError("only hidden neurons can be concatenated")
    values = [builder.value(part) for part in parts]
    axis = dim % len(shape_of(node)) - 1
    if axis < 0 or values[0].axes[axis] != CHANNEL:
        raise NoLimitError("positions or examples are concatenated; no limit is known")
    widths = [shape_of(part)[axis + 1] for part in node.args[0]]  # type: ignore[union-attr, arg-type]
    return builder.concatenation(values, widths)


SPATIAL["cat"] = _concatenated
