"""The calls whose derivatives are known: what they read, and how it enters the Jacobian.

A rule has the signature of its function, after the number n of examples. Positions of an example
may come as dimensions of their own or be merged into the first one, examples outermost.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from Metrics.tangent.pieces import Piece, Product, Reduction
from Metrics.tangent.recording import Function, Use


class Unknown(Exception):
    """There is no rule for a call."""


def pieces_of(use: Use, examples: int) -> list[Piece]:
    """The derivative with respect to every source of a call.

    Args:
        use: the call.
        examples: n.

    Raises:
        Unknown: there is no rule for the function, or not for these arguments.
    """
    rule = RULES.get(use.function)
    if rule is None or use.edge is None or not use.shape or use.shape[0] % examples:
        raise Unknown
    found = [piece for piece in rule(examples, *use.args, **use.kwargs) if piece is not None]
    pieces = [piece for piece in found if any(piece.source is s for s in use.sources)]
    if len(pieces) != len(use.sources):
        raise Unknown
    return pieces


def _linear(n: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Piece | None]:
    return [_product(n, x, weight, False), _shift(n, bias)]


def _matmul(n: int, x: Tensor, other: Tensor) -> list[Piece | None]:
    if other.dim() != 2 or x.dim() < 2:
        raise Unknown
    return [_product(n, x, other, True)]


def _addmm(n: int, bias: Tensor, x: Tensor, weight: Tensor) -> list[Piece | None]:
    return [_product(n, x, weight, True), _shift(n, bias)]


def _product(n: int, x: Tensor, weight: Tensor, transposed: bool) -> Product:
    k, o = weight.shape if transposed else weight.shape[::-1]
    x = x.detach()

    def unfold(rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), 1, -1, k)

    def fold(derivatives: Tensor) -> Tensor:
        return derivatives.reshape(len(derivatives), 1, -1, o)

    inputs = x.reshape(n, -1)
    return Product(weight, inputs, unfold, fold, transposed, (1, inputs.shape[1] // k, k, o))


def _shift(n: int, bias: Tensor | None) -> Reduction | None:
    """What is added, broadcast over the examples."""
    if bias is None:
        return None
    return Reduction(bias, partial(_summed, shape=bias.shape, examples=n), shift=True)


def _summed(values: Tensor, shape: torch.Size, examples: int) -> Tensor:
    """[n, *shape]: values [n k, ...] summed over what was broadcast and the positions."""
    missing = values.dim() - len(shape)
    aligned = (1,) * missing + tuple(shape)
    if aligned[0] != 1:
        raise Unknown  # has numbers of its own for each example
    axes = [i for i, (a, v) in enumerate(zip(aligned, values.shape, strict=True)) if a == 1 < v]
    axes = [axis for axis in axes if axis]
    summed = values.sum(axes, keepdim=True) if axes else values
    if len(values) != examples:
        summed = summed.reshape(examples, -1, *summed.shape[1:]).sum(1)
    return summed.reshape(examples, *shape)


def _convolution(
    dimensions: int,
    n: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> list[Piece | None]:
    if x.dim() != dimensions + 2 or len(x) != n:
        raise Unknown
    size = weight.shape[2:]
    strides, dilations = _each(stride, dimensions), _each(dilation, dimensions)
    pads = _padding(padding, size, dilations)
    x = x.detach()
    spans = [d * (s - 1) for d, s in zip(dilations, size, strict=True)]
    outs = [
        (length + sum(pad) - span - 1) // step + 1
        for length, pad, span, step in zip(x.shape[2:], pads, spans, strides, strict=True)
    ]
    o, k, channels = len(weight) // groups, weight[0].numel(), x.shape[1] // groups
    last = x.device.type == "cpu" and dimensions == 2

    def unfold(rows: Tensor) -> Tensor:
        rows = rows.contiguous(memory_format=torch.channels_last) if last else rows
        padded = functional.pad(rows, [p for pad in reversed(pads) for p in pad])
        batch, channel, *lines = padded.stride()
        taps = [d * line for d, line in zip(dilations, lines, strict=True)]
        steps = [s * line for s, line in zip(strides, lines, strict=True)]
        lead, leads = (len(rows), groups), (batch, channel * channels)
        if last:
            shape, line = (*lead, *outs, *size, channels), (*leads, *steps, *taps, channel)
            return padded.as_strided(shape, line).reshape(*lead, -1, k)
        shape, line = (*lead, channels, *size, *outs), (*leads, channel, *taps, *steps)
        return padded.as_strided(shape, line).reshape(*lead, k, -1).transpose(-1, -2)

    def fold(derivatives: Tensor) -> Tensor:
        return derivatives.reshape(len(derivatives), groups, o, -1).transpose(-1, -2)

    positions = 1
    for out in outs:
        positions *= out
    window = tuple(size) if last else ()
    product = Product(weight, x, unfold, fold, False, (groups, positions, k, o), window=window)
    if bias is None:
        return [product]
    shape = (len(bias), *(1,) * dimensions)
    reduce = partial(_summed, shape=torch.Size(shape), examples=n)
    return [product, Reduction(bias, lambda g: reduce(g).flatten(1), shift=True)]


def _each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    return (
        (value,) * dimensions
        if isinstance(value, int)
        else tuple(value) * (dimensions if len(value) == 1 else 1)
    )


def _padding(
    padding: int | str | Sequence[int], size: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    if isinstance(padding, str):
        spans = [d * (s - 1) for d, s in zip(dilations, size, strict=True)]
        return [(t // 2, t - t // 2) if padding == "same" else (0, 0) for t in spans]
    return [(p, p) for p in _each(padding, len(size))]


def _embedding(
    n: int,
    indices: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> list[Piece | None]:
    if max_norm is not None:
        raise Unknown  # the call changes the weight
    size, o = weight.shape
    left_out = -1 if padding_idx is None else padding_idx % size

    def unfold(rows: Tensor) -> Tensor:
        return rows.masked_fill(rows == left_out, -1)[:, None, :, None]

    def fold(derivatives: Tensor) -> Tensor:
        return derivatives.reshape(len(derivatives), 1, -1, o)

    places = indices.reshape(n, -1)
    return [Product(weight, places, unfold, fold, True, (1, places.shape[1], size, o), True)]


def _batch_norm(
    n: int,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[Piece | None]:
    if training or running_mean is None:
        raise Unknown
    normalised = functional.batch_norm(x.detach(), running_mean, running_var, eps=eps)
    return _affine(n, normalised, weight, bias, (-1, *(1,) * (x.dim() - 2)))


def _layer_norm(
    n: int,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> list[Piece | None]:
    normalised = functional.layer_norm(x.detach(), normalized_shape, eps=eps)
    return _affine(n, normalised, weight, bias, tuple(normalized_shape))


def _rms_norm(
    n: int,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> list[Piece | None]:
    normalised = functional.rms_norm(x.detach(), list(normalized_shape), eps=eps)
    return _affine(n, normalised, weight, None, tuple(normalized_shape))


def _group_norm(
    n: int,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> list[Piece | None]:
    normalised = functional.group_norm(x.detach(), num_groups, eps=eps)
    return _affine(n, normalised, weight, bias, (-1, *(1,) * (x.dim() - 2)))


def _affine(
    n: int, normalised: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]
) -> list[Piece | None]:
    """Of w x̂ + b, with the parameters seen as ``shape``."""
    pieces: list[Piece | None] = []
    for source, factor in ((weight, normalised), (bias, None)):
        if source is not None:
            seen = source.view(shape).shape
            pieces.append(Reduction(source, partial(_scaled, n, seen, source.shape, factor)))
    return pieces


def _scaled(
    n: int, seen: torch.Size, shape: torch.Size, factor: Tensor | None, derivatives: Tensor
) -> Tensor:
    values = derivatives if factor is None else derivatives * factor
    return _summed(values, seen, n).reshape(n, *shape)


def _add(n: int, x: Any, other: Any, *, alpha: float = 1) -> list[Piece | None]:
    return _terms(n, (x, 1.0), (other, alpha))


def _subtract(n: int, x: Any, other: Any, *, alpha: float = 1) -> list[Piece | None]:
    return _terms(n, (x, 1.0), (other, -alpha))


def _terms(n: int, *terms: tuple[Any, float]) -> list[Piece | None]:
    return [
        Reduction(t, lambda g, s=t.shape, a=a: _summed(g, s, n) * a)  # type: ignore[misc]
        for t, a in terms
        if isinstance(t, Tensor)
    ]


def _multiply(n: int, x: Any, other: Any) -> list[Piece | None]:
    if not (isinstance(x, Tensor) and isinstance(other, Tensor)):
        raise Unknown
    pairs = ((x, other.detach()), (other, x.detach()))
    return [Reduction(s, partial(_scaled, n, s.shape, s.shape, f)) for s, f in pairs]


Rule = Callable[..., list[Piece | None]]

RULES: Mapping[Function, Rule] = {
    functional.linear: _linear,
    torch.conv1d: partial(_convolution, 1),
    torch.conv2d: partial(_convolution, 2),
    torch.conv3d: partial(_convolution, 3),
    functional.embedding: _embedding,
    functional.batch_norm: _batch_norm,
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
    functional.group_norm: _group_norm,
    torch.addmm: _addmm,
    **dict.fromkeys((torch.matmul, Tensor.matmul, torch.mm, Tensor.mm), _matmul),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.add_), _add),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.sub_), _subtract),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.mul_), _multiply),
}
"""By function of torch; what a rule returns for arguments that are no sources is ignored."""
