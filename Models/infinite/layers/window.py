"""Windows of convolutions, and sums of kernels over them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from torch import Tensor

from Models.infinite.layout import Layout

_ALL = slice(None)


@dataclass(frozen=True)
class Window:
    """Of one spatial dimension: output p reads inputs stride p + dilation k − padding.

    Attributes:
        size: how many k there are.
        stride: of outputs.
        padding: zeros before the first input.
        after: zeros after the last one.
        dilation: between inputs.
    """

    size: int
    stride: int = 1
    padding: int = 0
    after: int = 0
    dilation: int = 1

    def outputs(self, inputs: int) -> int:
        """How many outputs there are."""
        room = inputs + self.padding + self.after - self.dilation * (self.size - 1) - 1
        return room // self.stride + 1

    def taps(self, bounds: tuple[int, int], out: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """For each k, which outputs read which inputs, counted from the bounds' first.

        Args:
            bounds: first input that exists, and the one after the last.
            out: the same of outputs.
        """
        for k in range(self.size):
            shift = k * self.dilation - self.padding
            first = max(out[0], -((shift - bounds[0]) // self.stride))  # ⌈(bounds − shift)/stride⌉
            last = min(out[1], (bounds[1] - 1 - shift) // self.stride + 1)
            if first < last:
                start = first * self.stride + shift - bounds[0]
                stop = (last - 1) * self.stride + shift - bounds[0] + 1
                yield slice(first - out[0], last - out[0]), slice(start, stop, self.stride)


def box(block: Tensor, windows: Sequence[Window], layout: Layout, out: Layout) -> Tensor:
    """Σ_k block[p + k, p' + k], dimension by dimension; may return its argument.

    Args:
        block: of a kernel.
        windows: of each spatial dimension.
        layout: of the block.
        out: of the result.
    """
    for dimension, window in enumerate(windows):
        if window == Window(1):
            continue
        block = _sum(block, dimension, window, layout, out)
        # The dimensions before this one have their new sizes, those after it the old.
        sizes = (*out.sizes[: dimension + 1], *layout.sizes[dimension + 1 :])
        known = len(layout.offsets)
        offsets = (*out.offsets[: dimension + 1], *layout.offsets[dimension + 1 :])[:known]
        layout = Layout(sizes, offsets)
    return block


def _sum(block: Tensor, dimension: int, window: Window, layout: Layout, out: Layout) -> Tensor:
    axes = layout.axes(dimension)
    if dimension < len(layout.offsets):
        bounds, outputs = layout.span(dimension), out.span(dimension)
    else:
        bounds, outputs = (0, layout.sizes[dimension]), (0, out.sizes[dimension])
    length = max(0, outputs[1] - outputs[0])
    shape = list(block.shape)
    for axis in axes:
        shape[axis] = length
    taps = _taps(window, bounds, (outputs[0], outputs[0] + length))
    result: Tensor | None = None
    for here, there in taps:
        to, source = _index(axes, here), _index(axes, there)
        if result is None:
            whole = here.stop - here.start == length
            result = block[source].clone() if whole else block.new_zeros(shape)
            if whole:
                continue
        result[to] += block[source]
    return block.new_zeros(shape) if result is None else result


@lru_cache(maxsize=4096)
def _taps(
    window: Window, bounds: tuple[int, int], out: tuple[int, int]
) -> tuple[tuple[slice, slice], ...]:
    """Those of the window, the one that reaches most first."""
    found = list(window.taps(bounds, out))
    found.sort(key=lambda tap: tap[0].start - tap[0].stop)
    return tuple(found)


def _index(axes: Sequence[int], part: slice) -> tuple[slice, ...]:
    index = [_ALL] * (axes[-1] + 1)
    for axis in axes:
        index[axis] = part
    return tuple(index)


def patches(maps: Tensor, windows: Sequence[Window]) -> Tensor:
    """What each output reads, zeros included: [taps, *outputs, n] from [*sizes, n]."""
    sizes = maps.shape[:-1]
    outputs = [w.outputs(size) for w, size in zip(windows, sizes, strict=True)]
    result = maps.new_zeros([*(w.size for w in windows), *outputs, maps.shape[-1]])
    ranges = [
        _by_tap(window, size, count)
        for window, size, count in zip(windows, sizes, outputs, strict=True)
    ]
    for taps in product(*(r.items() for r in ranges)):
        to: tuple[int | slice, ...] = (
            *(k for k, _ in taps),
            *(here for _, (here, _) in taps),
        )
        result[to] = maps[tuple(there for _, (_, there) in taps)]
    return result.reshape(-1, *outputs, maps.shape[-1])


def _by_tap(window: Window, size: int, count: int) -> dict[int, tuple[slice, slice]]:
    found = {}
    for k in range(window.size):
        one = Window(1, window.stride, window.padding - k * window.dilation)
        for tap in one.taps((0, size), (0, count)):
            found[k] = tap
    return found


def total(maps: Tensor, windows: Sequence[Window]) -> Tensor:
    """Σ_k maps[p + k]: [*outputs, n] from [*sizes, n]."""
    layout = Layout(tuple(maps.shape[:-1]), (0,) * len(windows))
    sizes = tuple(w.outputs(s) for w, s in zip(windows, layout.sizes, strict=True))
    out = Layout(sizes, layout.offsets)
    return box(maps.unsqueeze(-1), windows, layout, out).squeeze(-1)
