"""Named streams of randomness: each derived from the seed and its own name alone.

Changing how many numbers one stream draws (a wider network, an added stream) changes no
other stream.
"""

import zlib
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

Stream = Literal[
    "init", "data", "augment", "dropout", "probe", "examples", "content", "weights", "tangent"
]


def stream_seed(seed: int, stream: Stream, *parts: int | str) -> int:
    """The 63-bit seed of a named stream.

    Args:
        seed: the run's ``--seed``.
        stream: the stream's name.
        parts: numbers and names that tell streams of one name apart, such as a width.
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    sequence = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), *words])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(
    seed: int, stream: Stream, *parts: int | str, device: str = "cpu"
) -> "torch.Generator":
    """A fresh torch generator for a named stream.

    Args:
        seed: the run's ``--seed``.
        stream: the stream's name.
        parts: as in :func:`stream_seed`.
        device: where its numbers are drawn.
    """
    import torch

    return torch.Generator(device).manual_seed(stream_seed(seed, stream, *parts))
