"""Memory for large intermediate results.

A system hands out fresh memory page by page, which takes longer than to write it: on Linux 0.5 ms
per MB where it was measured, five times as long as a copy. So what can be is written to the same
place again and again, and on CPUs large arrays are NumPy's, which asks for huge pages (2 MB, a
quarter of the time) where the system allows it; torch does not.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_LARGE = 4 << 20
"""Bytes from which NumPy asks for huge pages."""

_ALIGNED = 64
"""Bytes to whose multiples torch aligns what it allocates."""


def room_for(like: Tensor, shape: Sequence[int], order: Sequence[int] | None = None) -> Tensor:
    """An uninitialised tensor.

    Args:
        like: has the device and number format.
        shape: of the result.
        order: its dimensions as they lie in memory, outermost first; as they are counted where
            none is given.
    """
    order = range(len(shape)) if order is None else order
    lying = [shape[dimension] for dimension in order]
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size < _LARGE:
        numbers = like.new_empty(lying)
    else:
        bytes_ = np.empty(size + _ALIGNED, np.uint8)
        start = -bytes_.ctypes.data % _ALIGNED
        numbers = torch.from_numpy(bytes_[start : start + size]).view(like.dtype).view(lying)
    places = sorted(range(len(shape)), key=lambda place: order[place])
    return numbers.permute(places)


def more_of(few: Tensor, count: int) -> Tensor:
    """Room for as many examples, which lie in memory as these few do.

    Args:
        few: [n, ...], examples outermost in memory.
        count: of examples.
    """
    order = sorted(range(few.dim()), key=lambda d: (d > 0, -few.stride(d), d))
    return room_for(few, (count, *few.shape[1:]), order)


class Room:
    """Memory that each of several results takes in its turn."""

    def __init__(self) -> None:
        self._numbers: Tensor | None = None

    def take(self, like: Tensor, *shape: int) -> Tensor:
        """Uninitialised, contiguous, of this shape; what was taken before is overwritten.

        Args:
            like: has the device and number format.
            shape: of the result.
        """
        size = math.prod(shape)
        if self._numbers is None or self._numbers.numel() < size:
            self._numbers = None  # given back before more is asked for
            self._numbers = room_for(like, (size,))
        return self._numbers[:size].view(shape)
