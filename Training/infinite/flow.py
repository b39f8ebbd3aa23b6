"""Gradient flow as an optimizer: each step follows it exactly for a time --lr.

Shape letters: N training examples, C outputs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from Training.function_space import Modes, gradient_flow
from Training.function_space.losses import Loss
from Training.infinite.network import FunctionSpaceNetwork
from Training.losses import mean_squared_error

Moves = Callable[[Tensor, float], Tensor]
"""How b moves from a value in a time."""


class Flow(Optimizer):
    """ḃ = −∂L/∂f, f = Θ b, over the whole training set.

    Flows of consecutive times compose: --lr says only when the outputs are seen.

    Args:
        groups: with the dual variables b alone.
        lr: the time of a step.
        moves: how b, with its gradient ∂L/∂f, moves.
    """

    def __init__(self, groups: Any, lr: float, moves: Moves):
        super().__init__(groups, {"lr": lr})
        self._moves = moves

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Follow the flow from where the gradient was taken."""
        for group in self.param_groups:
            for dual in group["params"]:
                dual.add_(self._moves(dual, group["lr"]))


def flow(groups: Any, lr: float, network: FunctionSpaceNetwork) -> Flow:
    """The flow of a network that begins with f = 0, under its loss.

    Args:
        groups: parameter groups with its dual variables.
        lr: the time of a step.
        network: with its loss.

    Raises:
        UserError: its kernel is none.
    """
    modes = Modes.of(network.tangent[: len(network.dual)])
    if network.loss is mean_squared_error:
        slope = 2 / network.dual.numel()
        return Flow(groups, lr, partial(_with_squared_error, modes, slope))
    targets = network.targets.to(network.dual.device)
    return Flow(groups, lr, partial(_with_any_loss, modes, network.loss, targets))


def _with_squared_error(modes: Modes, slope: float, dual: Tensor, time: float) -> Tensor:
    """With ∂L/∂f = w (f − y): −U diag((1 − e^{−wλt}) / (wλ)) Uᵀ ∂L/∂f."""
    assert dual.grad is not None
    gain = modes.gain(time, slope) / slope
    return -modes.vectors @ (gain[:, None] * modes.amplitudes(dual.grad))


def _with_any_loss(modes: Modes, loss: Loss, targets: Tensor, dual: Tensor, time: float) -> Tensor:
    """By the solver, from f = Θ b."""
    outputs = modes.outputs(modes.values[:, None] * modes.amplitudes(dual), dual.shape[1])
    return gradient_flow(modes, outputs, targets, loss, [time]).dual[0]
