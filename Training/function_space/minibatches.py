"""SGD of a linearised network on given mini-batches, for any loss."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from Training.discrete_laws import Coefficients, linear_step
from Training.function_space.kernels import apply, as_matrix, rows_of
from Training.function_space.losses import Loss, loss_slope
from Training.function_space.trajectory import Trajectory, missing_radial


def train_on_batches(
    kernel: Tensor,
    outputs: Tensor,
    targets: Tensor,
    loss: Loss,
    rules: Sequence[Coefficients],
    batches: Sequence[Tensor],
    at: Sequence[int],
    radial: Tensor | None = None,
    clip_norm: float | None = None,
) -> Trajectory:
    """The trajectory of ``torch.optim.SGD``, in the weights' dual: θ_t = ρ_t θ_0 + Jᵀ b_t.

    A gradient is JᵀE_B s with s the slopes of the batch's loss, so that b and its momentum take
    the optimizer's own steps with the gradient E_B s, and ρ with none. A step costs |B| N C.

    Args:
        kernel: Θ of the training examples, [N, N] or [N, N, C, C].
        outputs: f_0(X) [N, C].
        targets: of the loss, [N, ...].
        loss: of a batch's outputs and targets, a mean over its examples.
        rules: the hyper-parameters of each step; their ``first`` is not read.
        batches: the numbers [B] int64 of each step's examples.
        at: after how many steps, ascending.
        radial: J(X)θ_0 [N, C], needed for weight decay.
        clip_norm: of the gradient, as ``torch.nn.utils.clip_grad_norm_``.

    Raises:
        UserError: weights decay, and there is no ``radial``.
        ValueError: there are not as many batches as rules, or too few for ``at``.
    """
    if len(rules) != len(batches) or (at and at[-1] > len(rules)):
        raise ValueError(f"{len(rules)} rules and {len(batches)} batches for {at[-1:]} steps")
    if radial is None and any(rule.wd for rule in rules):
        raise missing_radial()
    matrix, outputs = as_matrix(kernel), outputs.double()
    radial = torch.zeros_like(outputs) if radial is None else radial.double()
    b, v = torch.zeros_like(outputs), torch.zeros_like(outputs)
    kept, pushed, fresh = outputs.new_ones(()), outputs.new_zeros(()), True
    states = {0: (b, kept)}
    for step, (rule, batch) in enumerate(zip(rules, batches, strict=True), start=1):
        rows = rows_of(matrix, batch, len(outputs))
        f = outputs[batch] + apply(rows, b) + (kept - 1) * radial[batch]
        slope = loss_slope(loss, f, targets[batch])
        if clip_norm is not None:
            slope = slope * _clip(rows_of(rows.T, batch, len(outputs)), slope, clip_norm)
        gradient = torch.zeros_like(b).index_add_(0, batch, slope)
        rule = replace(rule, first=fresh and rule.momentum > 0)
        fresh = fresh and not rule.first
        b, v = linear_step(b, v, rule, gradient)
        kept, pushed = linear_step(kept, pushed, rule, 0.0)
        if step in at:
            states[step] = b, kept
    dual, left = (torch.stack(parts) for parts in zip(*(states[t] for t in at), strict=True))
    train = outputs + apply(matrix, dual) + (left - 1)[:, None, None] * radial
    return Trajectory(train, dual, left)


def _clip(block: Tensor, slope: Tensor, largest: float) -> Tensor:
    """What torch multiplies a gradient by whose square is sᵀΘ_BB s."""
    norm = (slope * apply(block, slope)).sum().clamp(min=0).sqrt()
    return (largest / (norm + 1e-6)).clamp(max=1.0)
