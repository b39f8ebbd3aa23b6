"""The step with which others are compared: whether it is there, and is what it is taken for.

Batch normalisation begins with running statistics 0 and 1 and forgets them as (1 − m)^n in n
batches, m its momentum. Until then the network in evaluation mode, whose tangent kernel is
computed, is another one than that in training mode, which divides by the statistics of its batches.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from Utils.errors import UserError
from Utils.rundir import RunFolder

_LITTLE = 0.1
"""The part of the initial statistics that no longer matters much."""


def reference_step(run: RunFolder, step: int) -> int:
    """``--reference``, as given.

    Raises:
        UserError: that step has no features.
    """
    steps = run.feature_steps()
    if step in steps:
        return step
    told = f"--reference {step}: {run.path} has no features of that step"
    if step in run.checkpoint_steps():
        raise UserError(f"{told}; run extract.py for this run first")
    around = [s for s in steps if s < step][-1:] + [s for s in steps if s > step][:1]
    raise UserError(f"{told}; choose one that has, such as {' or '.join(map(str, around))}")


def unsettled(
    model: nn.Module, state: Mapping[str, Tensor], step: int, steps: Sequence[int]
) -> list[str]:
    """A line that says so if running statistics at a step are not yet those of the data.

    Args:
        model: the network.
        state: its parameters and buffers at the step.
        step: updates done, one batch each.
        steps: that have features, of which a later one may be recommended.
    """
    part, batches = initial_part(model, state)
    if part < _LITTLE:
        return []
    later = [s for s in steps if s >= step + batches][:1]
    return [
        "batch normalisation divides by running statistics; at step "
        f"{step} they are to {part:.0%} the initial 0 and 1, to less than {_LITTLE:.0%} from step "
        f"{step + batches} on: kernels before are not of the network that trains"
        + "".join(f"; --reference {s} compares with a later one" for s in later)
    ]


def initial_part(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[float, int]:
    """How much of its initial value any running statistic still is, and for how long.

    Statistics whose batches were not counted, or that are plain means of all batches, are taken
    for settled.

    Args:
        model: the network.
        state: its parameters and buffers.

    Returns:
        the largest (1 − m)^n, and the batches until all of them are small.
    """
    most, batches = 0.0, 0
    for name, module in model.named_modules():
        seen = state.get(f"{name}.num_batches_tracked")
        if not isinstance(module, _BatchNorm) or seen is None or not 0 < (module.momentum or 0) < 1:
            continue
        assert module.momentum is not None
        kept, done = 1 - module.momentum, int(seen)
        most = max(most, kept**done)
        batches = max(batches, math.ceil(math.log(_LITTLE) / math.log(kept)) - done)
    return most, batches
