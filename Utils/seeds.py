"""Named streams of randomness: each derived from the seed and its own name alone.

Changing how many numbers one stream draws (a wider network, an added stream) changes no
other stream.
"""

import zlib
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

Stream = Literal["init", "data", "augment", "dropout", "probe", "examples", "content"]


def stream_seed(seed: int, stream: Stream) -> int:
    """The 63-bit seed of a named stream.

    Args:
        seed: the run's ``--seed``.
        stream: the stream's name.
    """
    sequence = np.random.SeedSequence([seed, zlib.crc32(stream.encode())])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, stream: Stream, device: str = "cpu") -> "torch.Generator":
    """A fresh torch generator for a named stream.

    Args:
        seed: the run's ``--seed``.
        stream: the stream's name.
        device: where its numbers are drawn.
    """
    import torch

    return torch.Generator(device).manual_seed(stream_seed(seed, stream))
