"""What each operation of a graph means for infinitely wide networks.

Handlers are called as ``handler(builder, node, *args, **kwargs)`` with the arguments of the
operation, nodes replaced by symbols.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, fx

from Models.infinite.layers.pointwise import Dropout, Norm, Scale
from Models.infinite.layers.positions import Pad, Pool, adaptive_matrix, mean_matrix
from Models.infinite.layers.window import Window
from Models.infinite.walk.builder import Builder
from Models.infinite.walk.values import (
    CHANNEL,
    Expression,
    Handler,
    Input,
    NoLimitError,
    Symbol,
    Value,
    Weight,
    shape_of,
)
from Models.symmetry.export import IDENTITIES, operation

_MAX = "the covariance of maxima over positions has no closed form; use average pooling"
_BATCH = (
    "batch normalisation couples the examples of a batch, so that there is no kernel of two "
    "examples; use layer normalisation or none"
)
_SOFTMAX = "softmax attention with 1/√d has a random limit, not a kernel in closed form"
_INSTANCE = "each channel is normalised by itself, so that its values are not Gaussian"

REFUSED = {
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d"), _MAX),
    **dict.fromkeys(("max", "amax"), _MAX),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"), _BATCH),
    **dict.fromkeys(("softmax", "_softmax", "scaled_dot_product_attention"), _SOFTMAX),
    "instance_norm": _INSTANCE,
    "prelu": "a nonlinearity with trained parameters has no fixed dual activation",
    "embedding": "an embedding has no inputs whose covariance could be taken; use one-hot inputs",
}
"""Operations that have no limit, with the reason."""

HANDLERS: dict[str, Handler] = {}
"""By the operation's name."""

# ---------------------------------------------------------------------- elementwise

_UNARY = """relu leaky_relu abs gelu erf sin cos exp sign sgn tanh sigmoid silu softplus mish elu
    selu celu hardtanh hardsigmoid hardswish relu6 softsign log_sigmoid square pow sqrt rsqrt
    reciprocal log log1p expm1 clamp clamp_min clamp_max tan atan asinh sinh cosh logsigmoid
    hardshrink softshrink tanhshrink threshold rrelu heaviside sinc"""


def _unary(builder: Builder, node: fx.Node, x: Symbol, *args: Any, **kwargs: Any) -> Symbol:
    name, target = operation(node).name, node.target
    if any(isinstance(a, (Value, Input, Expression, Weight)) for a in (*args, *kwargs.values())):
        raise NoLimitError("no infinite-width limit of it is known")
    inner, source, operations, factors = _as_function(builder, x, name)

    def function(z: Tensor) -> Tensor:
        found: Tensor = target(inner(z).clone(), *args, **kwargs)  # type: ignore[operator]
        return found

    return Expression(source, function, (*operations, name), (*factors, *args, *kwargs.values()))


HANDLERS |= dict.fromkeys(_UNARY.split(), _unary)


def _as_function(
    builder: Builder, x: Symbol, what: str
) -> tuple[Any, Value, tuple[str, ...], tuple[Any, ...]]:
    if isinstance(x, Expression):
        return x.function, x.source, x.operations, x.factors
    return (lambda z: z), builder.gaussian(x, what), (), ()


def _arithmetic(builder: Builder, node: fx.Node, x: Any, y: Any, **kwargs: Any) -> Symbol:
    """Sums of branches, factors, and functions of one value put together."""
    name = operation(node).name
    if any(isinstance(z, Weight) for z in (x, y)):
        raise NoLimitError("a parameter is added or multiplied outside of a layer")
    if kwargs.get("alpha", 1) != 1:
        y = (
            y * kwargs["alpha"]
            if isinstance(y, (int, float))
            else _scaled(builder, y, float(kwargs["alpha"]))
        )
    numbers = [isinstance(z, (int, float)) for z in (x, y)]
    if all(_source(z) is not None for z in (x, y)) and _source(x) == _source(y):
        return _together(builder, node, x, y)
    if not any(numbers):
        if name not in {"add", "sub"}:
            raise NoLimitError("a product of two branches is not Gaussian; no limit is known")
        return builder.sum(x, y if name == "add" else _scaled(builder, y, -1.0))
    symbol, number = (y, x) if numbers[0] else (x, y)
    if name == "mul" or (name == "div" and numbers[1]):
        factor = float(number) if name == "mul" else 1 / float(number)
        return _scaled(builder, symbol, factor)
    return _together(builder, node, x, y)


def _source(x: Any) -> Value | None:
    if isinstance(x, Expression):
        return x.source
    return x if isinstance(x, Value) and x.gaussian else None


def _together(builder: Builder, node: fx.Node, x: Any, y: Any) -> Expression:
    """A function of one value, made of two or of one and a number."""
    name, target = operation(node).name, node.target
    parts, source, operations = [], None, ()
    for z in (x, y):
        if isinstance(z, (int, float)):
            parts.append(lambda _, z=z: z)
            continue
        function, source, more, _ = _as_function(builder, z, name)
        parts.append(function)
        operations = (*operations, *more)
    assert source is not None

    def function_of_both(z: Tensor) -> Tensor:
        left, right = parts[0](z), parts[1](z)
        found: Tensor = target(left.clone() if isinstance(left, Tensor) else left, right)  # type: ignore[operator]
        return found

    numbers = tuple(z for z in (x, y) if isinstance(z, (int, float)))
    return Expression(source, function_of_both, (*operations, name), numbers)


def _scaled(builder: Builder, x: Symbol, factor: float) -> Symbol:
    value = builder.value(x)
    if factor == 0:
        raise NoLimitError("everything is multiplied by zero")
    return builder.step("scale", Scale(factor), value)


def _neg(builder: Builder, node: fx.Node, x: Symbol) -> Symbol:
    return _scaled(builder, x, -1.0)


HANDLERS |= dict.fromkeys(("add", "sub", "mul", "div"), _arithmetic)
HANDLERS["neg"] = _neg


def _identity(builder: Builder, node: fx.Node, x: Symbol, *_: Any, **__: Any) -> Symbol:
    return x


HANDLERS |= dict.fromkeys(IDENTITIES, _identity)


def _dropout(builder: Builder, node: fx.Node, x: Symbol, p: float, train: bool) -> Symbol:
    if not train or p == 0:
        return x
    return builder.step("dropout", Dropout(1 - p), builder.value(x), gaussian=False)


HANDLERS["dropout"] = _dropout

# ---------------------------------------------------------------------- layers with weights


def _linear(builder: Builder, node: fx.Node, x: Symbol, weight: Any, bias: Any = None) -> Symbol:
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


HANDLERS["linear"] = _linear


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
    strides, dilations = _each(stride, count), _each(dilation, count)
    windows = []
    for k, size in enumerate(kernel):
        before, after = _padding(padding, k, count, dilations[k] * (size - 1))
        windows.append(Window(size, strides[k], before, after, dilations[k]))
    return builder.affine(
        value, weight, bias, windows, prod(builder.parameters[weight.name].shape[1:])
    )


def _each(value: Any, count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _padding(padding: Any, dimension: int, count: int, reach: int) -> tuple[int, int]:
    if padding == "valid":
        return 0, 0
    if padding == "same":
        return reach // 2, reach - reach // 2
    both = _each(padding, count)[dimension]
    return both, both


HANDLERS |= dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution)


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
        raise NoLimitError(_INSTANCE)
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


HANDLERS |= {"layer_norm": _layer_norm, "rms_norm": _rms_norm, "group_norm": _group_norm}

# ---------------------------------------------------------------------- positions


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


HANDLERS |= dict.fromkeys(("flatten", "view", "reshape", "_unsafe_view"), _reshape)


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
    sizes, pads = _each(size, count), _each(padding, count)
    strides = _each(stride, count) if stride else sizes
    inputs = builder.sizes(value)
    matrices = [
        mean_matrix(inputs[k], sizes[k], strides[k], pads[k], outputs[k], count_include_pad)
        for k in range(count)
    ]
    pooled = builder.step("average pooling", Pool(tuple(matrices)), value)
    if divisor_override is None:
        return pooled
    return _scaled(builder, pooled, prod(sizes) / divisor_override)


HANDLERS |= dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _average)


def _adaptive(builder: Builder, node: fx.Node, x: Symbol, *_: Any) -> Symbol:
    outputs = shape_of(node)[2:]
    value = _spatial(builder, x, len(outputs))
    sizes = builder.sizes(value)
    if sizes == outputs:
        return value
    matrices = tuple(adaptive_matrix(a, b) for a, b in zip(sizes, outputs, strict=True))
    return builder.step("average pooling", Pool(matrices), value)


_ADAPTIVE = ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
HANDLERS |= dict.fromkeys(_ADAPTIVE, _adaptive)


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


HANDLERS |= dict.fromkeys(("mean", "sum"), _reduced)


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


HANDLERS |= {"pad": _pad, "constant_pad_nd": _constant_pad}


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


HANDLERS |= {"permute": _axes_moved, "transpose": _axes_moved}


def _matmul(builder: Builder, node: fx.Node, x: Symbol, y: Symbol) -> Symbol:
    if not isinstance(y, Weight) or not y.transposed:
        raise NoLimitError("a product of two branches is not Gaussian; no limit is known")
    return _linear(builder, node, x, Weight(y.name))


HANDLERS |= dict.fromkeys(("matmul", "mm"), _matmul)


def _transposed(builder: Builder, node: fx.Node, x: Symbol) -> Symbol:
    if not isinstance(x, Weight):
        raise NoLimitError("the examples of a batch are moved to another axis")
    return Weight(x.name, not x.transposed)


HANDLERS |= dict.fromkeys(("t", "numpy_T", "mT"), _transposed)
