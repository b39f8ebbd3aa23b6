"""The conservation laws of matrix symmetries, and their certificate."""

import copy
from collections.abc import Iterable

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from Models.symmetry.charges import Charges, Reduction
from Models.symmetry.frames import Frame

_TOLERANCE = 1e-8  # of a sum that vanishes, relative to its terms, in float64


def balance(frame: Frame) -> Charges:
    """The n(n+1)/2 charges of a frame: the upper triangle of Σ ± W Wᵀ over its sides.

    What first writes the frame's vector counts negatively, as in rescale laws.
    """
    reductions = tuple(
        Reduction(side.parameter, "gram", axis=side.axis, places=side.places) for side in frame
    )
    first = next((side for side in frame if not side.reads), frame[0])
    n = len(first.places[0])
    identity = sparse.identity(n * (n + 1) // 2, format="csr")
    blocks = [-side.sign / first.sign * identity for side in frame]
    return Charges(reductions, sparse.hstack(blocks, format="csr"))


def certified(frames: Iterable[Frame], model: nn.Module, example: Tensor) -> list[Frame]:
    """The frames whose laws hold for the gradient of a random function of the model's outputs.

    Which of several copies of an entry belongs to which copy of another is inferred from their
    order; where that is wrong, or the graph is unusual in some other way, the gradient tells.

    Args:
        frames: candidates.
        model: the network; left unchanged.
        example: a batch of inputs; floating ones are replaced by random numbers.
    """
    frames = list(frames)
    if not frames:
        return []
    parameters = _with_gradients(model, example)

    def gradient(name: str) -> Tensor:
        found = parameters[name].grad
        return torch.zeros_like(parameters[name]) if found is None else found

    def holds(frame: Frame) -> bool:
        charges = balance(frame)
        sums = charges.form(lambda n: parameters[n].detach(), gradient)
        sizes = charges.form(
            lambda n: parameters[n].detach().abs(), lambda n: gradient(n).abs(), True
        )
        return bool((np.abs(sums) <= _TOLERANCE * sizes).all())

    return [frame for frame in frames if holds(frame)]


def _with_gradients(model: nn.Module, example: Tensor) -> dict[str, nn.Parameter]:
    """Parameters of a copy in float64, with the gradients of a random function."""
    generator = torch.Generator().manual_seed(0)
    twin = copy.deepcopy(model).double()
    inputs = example.detach()
    if inputs.is_floating_point():
        inputs = torch.randn(inputs.shape, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        outputs = [x for x in pytree.tree_leaves(twin(inputs)) if isinstance(x, Tensor)]
        parts = [
            (x * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum()
            for x in outputs
            if x.requires_grad
        ]
        torch.stack(parts).sum().backward()  # type: ignore[no-untyped-call]
    return dict(twin.named_parameters())
