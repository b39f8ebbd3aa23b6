"""Named streams of randomness: each depends on the seed and its own name alone."""

from itertools import combinations, product
from typing import get_args

import numpy as np
import pytest
import torch

from Utils.seeds import Stream, generator, stream_seed

STREAMS: tuple[Stream, ...] = get_args(Stream)


def test_no_two_streams_are_the_same() -> None:
    seeds = [stream_seed(seed, stream) for seed, stream in product(range(50), STREAMS)]
    assert len(set(seeds)) == len(seeds) == 50 * len(STREAMS)
    assert all(0 <= seed < 2**63 for seed in seeds)


KNOWN = {
    "init": 1351750760845235182,
    "data": 9050586632871538705,
    "augment": 128219507219149833,
    "dropout": 7763827051436133502,
    "probe": 7274050835335651863,
    "examples": 1504484244110499845,
    "content": 3897137974849523997,
    "weights": 139911415592349810,
    "tangent": 504638841587742694,
}


def test_published_runs_can_be_repeated() -> None:
    """These numbers must never change: whoever changes them changes every run."""
    assert {stream: stream_seed(1, stream) for stream in STREAMS} == KNOWN


@pytest.mark.parametrize(("a", "b"), list(combinations(STREAMS, 2)))
def test_streams_are_not_correlated(a: Stream, b: Stream) -> None:
    x, y = (torch.randn(10_000, generator=generator(1, stream)).numpy() for stream in (a, b))
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.05


def test_a_generator_starts_at_the_streams_seed_and_leaves_the_global_state() -> None:
    before = torch.get_rng_state()
    draws = torch.randint(100, (9,), generator=generator(3, "data"))
    again = torch.randint(
        100, (9,), generator=torch.Generator().manual_seed(stream_seed(3, "data"))
    )
    assert torch.equal(draws, again)
    assert torch.equal(torch.get_rng_state(), before)
