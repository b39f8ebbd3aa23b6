"""How one mode of a linearised network responds to training with squared error.

With slopes w(f − y) of the loss and a kernel's eigenvalue λ, the curvature of a mode is h = wλ.
Weights are θ_t = (1 + e_t) θ_0 + J(X)ᵀ b_t, and in a mode b_t = w (x_t r + y_t z), r the initial
residual's and z the radial derivative's amplitude (z = Jθ_0). What pulls on them is

    d_x = (h + μ) x + 1,     d_y = (h + μ) y + e,     d_e = μ e + μ,

μ the weight decay: gradient flow is ẋ = −d, and an optimizer's step takes d for the gradient. Only
these functions are computed, never a quotient by λ, so that singular kernels need no care.

Shape letters: n modes, T times, m = 1 (x) or, with weight decay, 3 (x, y, e).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from Training.discrete_laws import Coefficients, linear_step
from Training.function_space.stable_rate import largest_lr
from Utils.errors import UserError


class Response(NamedTuple):
    """Of every mode at every time.

    Attributes:
        residual: x [T, n]: 0 at first, −1/h in the end.
        radial: y [T, n].
        kept: 1 + e [T], what is left of the initial weights.
    """

    residual: Tensor
    radial: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps with the same hyper-parameters, by default for ever.

    Attributes:
        rule: of each step; its ``first`` is not read.
        steps: how many.
    """

    rule: Coefficients
    steps: float = math.inf


def stretches(rules: Sequence[Coefficients]) -> list[Stretch]:
    """The stretches of a schedule, given by the hyper-parameters of each step."""
    return [Stretch(rule, len(list(same))) for rule, same in groupby(rules)]


def flow_response(curvatures: Tensor, times: Sequence[float], decay: float = 0.0) -> Response:
    """Gradient flow with weight decay, after ascending times of which the last may be infinite.

    Args:
        curvatures: h [n].
        times: in units of learning rate times steps.
        decay: μ.
    """
    t = torch.tensor(times, dtype=curvatures.dtype, device=curvatures.device)[:, None]
    x = -_relaxed(curvatures + decay, t)
    e = -decay * _relaxed(torch.full_like(t[:1], decay), t)
    y = torch.zeros_like(x)
    if decay:
        y = -x - torch.exp(-decay * t) * _relaxed(curvatures, t)
    return Response(x, y, 1 + e[:, 0])


def _relaxed(rate: Tensor, t: Tensor) -> Tensor:
    """∫₀ᵗ e^{−rate τ} dτ = (1 − e^{−rate t})/rate, with its limits."""
    safe = torch.where(rate > 0, rate, 1.0)
    grown = torch.where(rate > 0, -torch.expm1(-safe * t) / safe, t)
    ended = torch.where(rate > 0, 1 / safe, 0.0)
    return torch.where(t.isinf(), ended, grown)


def descent_response(
    curvatures: Tensor, schedule: Sequence[Stretch], at: Sequence[float]
) -> Response:
    """Steps of SGD, exactly: products and powers of affine maps, one of each mode.

    Args:
        curvatures: h [n].
        schedule: what the steps are.
        at: after how many steps, ascending; the last may be infinite.

    Raises:
        UserError: an infinite time is asked for, and the learning rate is too large for a limit.
        ValueError: steps after the schedule's end are asked for.
    """
    decays = any(stretch.rule.wd for stretch in schedule)
    m = 3 if decays else 1
    state = curvatures.new_zeros(len(curvatures), 2 * m + 1)
    state[:, -1] = 1
    rows, pending, done = [], list(at), 0.0
    for stretch in _with_fresh_buffers(schedule):
        end, powers = done + stretch.steps, _Powers(_change(curvatures, stretch.rule, m))
        while pending and pending[0] <= end:
            time = pending.pop(0)
            if math.isinf(time):
                state = _limit(curvatures, stretch.rule, state)
            else:
                state, done = powers.after(state, int(time - done)), time
            rows.append(state[:, :m])
        if not pending:
            break
        state, done = powers.after(state, int(end - done)), end
    if pending:
        raise ValueError(f"step {pending[0]} is after the schedule's {done:g} steps")
    path = torch.stack(rows)
    if not decays:
        return Response(path[..., 0], torch.zeros_like(path[..., 0]), path.new_ones(len(path)))
    return Response(path[..., 0], path[..., 1], 1 + path[:, 0, 2])


def _with_fresh_buffers(schedule: Sequence[Stretch]) -> Iterator[Stretch]:
    """The first step with momentum, where the buffer is made, apart from the others."""
    fresh = True
    for stretch in schedule:
        rule, rest = replace(stretch.rule, first=False), stretch.steps
        if fresh and rule.momentum and rest:
            yield Stretch(replace(rule, first=True), 1)
            fresh, rest = False, rest - 1
        yield Stretch(rule, rest)


def _change(curvatures: Tensor, rule: Coefficients, m: int) -> Tensor:
    """X [n, 2m+1, 2m+1], where 1 + X takes (x, y, e), their velocities and 1 through a step."""
    size = 2 * m + 1
    pull = curvatures.new_zeros(len(curvatures), m, size)
    pull[:, 0, 0], pull[:, 0, -1] = curvatures + rule.wd, 1
    if m > 1:
        pull[:, 1, 1], pull[:, 1, 2] = curvatures + rule.wd, 1
        pull[:, 2, 2], pull[:, 2, -1] = rule.wd, rule.wd
    velocity = torch.eye(size, dtype=pull.dtype, device=pull.device)[m : 2 * m].expand_as(pull)
    moved, pushed = linear_step(torch.zeros_like(pull), velocity, replace(rule, wd=0.0), pull)
    return torch.cat([moved, pushed - velocity, torch.zeros_like(pull[:, :1])], dim=1)


class _Powers:
    """Powers of 1 + X by repeated squaring; the 1 is kept apart, so that slow modes are exact."""

    def __init__(self, change: Tensor):
        self._squares = [change]

    def after(self, state: Tensor, steps: int) -> Tensor:
        """(1 + X)^steps state, for states [n, 2m+1]."""
        for k in range(steps.bit_length()):
            if k == len(self._squares):
                last = self._squares[-1]
                self._squares.append(2 * last + last @ last)
            if steps >> k & 1:
                state = state + (self._squares[k] @ state[..., None])[..., 0]
        return state


def _limit(curvatures: Tensor, rule: Coefficients, state: Tensor) -> Tensor:
    """Where nothing pulls any more."""
    rate, state = curvatures + rule.wd, state.clone()
    largest = largest_lr(float(curvatures.max()), rule)
    if rule.lr >= largest:
        raise UserError(
            f"--lr {rule.lr:g} has no limit: steps do not converge from {largest:.4g} on; "
            "choose a smaller one"
        )
    inverse = torch.where(rate > 0, 1 / rate, 0.0)
    state[:, 0] = -inverse
    if state.shape[1] > 3:
        e = (
            torch.full_like(inverse, -1.0)
            if rule.wd
            else state[:, 2] + _coasted(rule) * state[:, 5]
        )
        state[:, 1], state[:, 2] = -inverse * e, e
    return state


def _coasted(rule: Coefficients) -> float:
    """How far a unit of velocity carries what nothing pulls on: −η (β + β² + …), after Nesterov
    −η (β² + β³ + …)."""
    decay = rule.momentum ** (2 if rule.nesterov else 1)
    return -rule.lr * decay / (1 - rule.momentum)
