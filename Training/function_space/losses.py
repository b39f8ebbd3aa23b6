"""Losses as functions of the outputs: slopes and curvatures.

Shape letters: N examples, C outputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vjp

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of outputs [N, C] and targets [N, ...]; a mean over the examples."""


def loss_slope(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """∂L/∂f [N, C]."""
    slope: Tensor = grad(loss)(outputs.detach(), targets)
    return slope


def loss_hessian(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """∂²L/∂f_n² [N, C, C]; a mean over examples has no other second derivatives."""
    slope, pull = vjp(lambda f: grad(loss)(f, targets), outputs.detach())
    columns = torch.eye(slope.shape[1], dtype=slope.dtype, device=slope.device)
    return torch.stack([pull(column.expand_as(slope))[0] for column in columns], dim=1)
