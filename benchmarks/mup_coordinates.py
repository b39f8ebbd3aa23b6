"""mup's own coordinate check, as a script that imports nothing of this project.

    python benchmarks/mup_coordinates.py tasks.pt

``tasks.pt`` holds the batches, the widths, the number of seeds and the learning rate.
"""

import sys
from collections.abc import Sequence
from functools import partial

import torch
from mup import MuReadout, set_base_shapes
from mup.coord_check import get_coord_data
from torch import Tensor, nn

_BASE_WIDTH = 64


def network(width: int, batch: tuple[Tensor, Tensor]) -> nn.Sequential:
    """``--model fc --depth 3 --no-bias``, with mup's readout for ten classes."""
    layers = [nn.Linear(batch[0][0].numel(), width, bias=False), nn.ReLU()]
    layers += [nn.Linear(width, width, bias=False), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers, MuReadout(width, 10, bias=False))


def check(
    batches: Sequence[tuple[Tensor, Tensor]], widths: Sequence[int], seeds: int, lr: float
) -> int:
    """Train every width with every seed, a step for each batch; returns the numbers kept."""
    base, delta = (network(width, batches[0]) for width in (_BASE_WIDTH, _BASE_WIDTH + 1))

    def model(width: int) -> nn.Module:
        made: nn.Module = set_base_shapes(network(width, batches[0]), base, delta=delta)
        return made

    found = get_coord_data(
        {width: partial(model, width) for width in widths},
        batches,
        lr=lr,
        nsteps=len(batches),
        fix_data=False,
        cuda=False,
        nseeds=seeds,
        show_progress=False,
    )
    return len(found)


if __name__ == "__main__":
    check(*torch.load(sys.argv[1], weights_only=True))
