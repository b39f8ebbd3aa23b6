"""The conservation laws of matrix symmetries, and their certificate."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from Models.symmetry.charges import Charges
from Models.symmetry.frames import Frame
from Models.symmetry.reductions import Reduction

_TOLERANCE = 1e-8  # of a sum that vanishes, relative to its terms, in float64


def alike(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Frames by the form of their sides, such as all heads of one attention layer."""
    groups: dict[tuple[object, ...], list[Frame]] = {}
    for frame in frames:
        form = (replace(side, places=()) for side in frame)
        sizes = ((len(side.places), len(side.places[0])) for side in frame)
        groups.setdefault((*form, *sizes), []).append(frame)
    return list(groups.values())


def balance(frames: Sequence[Frame]) -> Charges:
    """The n(n+1)/2 charges of each of several frames that are alike.

    They are the upper triangle of Σ ± W Wᵀ over a frame's sides. What first writes the frame's
    vector counts negatively, as in rescale laws.
    """
    sides = frames[0]
    reductions = tuple(
        Reduction(side.parameter, "gram", axis=side.axis, places=tuple(f[i].places for f in frames))
        for i, side in enumerate(sides)
    )
    first = next((side for side in sides if not side.reads), sides[0])
    n = len(first.places[0])
    identity = sparse.identity(len(frames) * n * (n + 1) // 2, format="csr")
    blocks = [-side.sign / first.sign * identity for side in sides]
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
    groups = alike(frames)
    if not groups:
        return []
    parameters = _with_gradients(model, example)

    def theta(name: str) -> Tensor:
        return parameters[name].detach()

    def g(name: str) -> Tensor:
        found = parameters[name].grad
        return torch.zeros_like(parameters[name]) if found is None else found

    held = []
    for group in groups:
        charges = balance(group)
        sums = charges.form(theta, g)
        sizes = charges.form(lambda n: theta(n).abs(), lambda n: g(n).abs(), True)
        vanish = (np.abs(sums) <= _TOLERANCE * sizes).reshape(len(group), -1)
        held += [frame for frame, all_of_it in zip(group, vanish, strict=True) if all_of_it.all()]
    return held


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
