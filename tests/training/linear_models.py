"""Explicit linear models, trained by torch's own optimizers: what function space must equal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from Training.discrete_laws import Coefficients

D = torch.float64
TRAIN, OTHERS, OUTPUTS = 12, 5, 3


@dataclass
class LinearModel:
    """f(θ) = offset + J θ of all examples, the first TRAIN of which are trained on.

    Attributes:
        jacobian: J [N+E, C, P].
        offset: [N+E, C].
        start: θ_0 [P].
        kernel: Θ, [N+E, N+E] if all outputs have the same, else [N+E, N+E, C, C].
    """

    jacobian: Tensor
    offset: Tensor
    start: Tensor
    kernel: Tensor

    @property
    def radial(self) -> Tensor:
        return self.jacobian @ self.start

    @property
    def outputs(self) -> Tensor:
        return self.offset + self.radial

    @property
    def train(self) -> Tensor:
        return self.kernel[:TRAIN, :TRAIN]

    @property
    def cross(self) -> Tensor:
        return self.kernel[TRAIN:, :TRAIN]

    def descend(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        targets: Tensor,
        rules: Sequence[Coefficients],
        at: Sequence[int],
        batches: Sequence[Tensor] | None = None,
        clip_norm: float | None = None,
    ) -> Tensor:
        """f_t of all examples [T, N+E, C], trained by ``torch.optim.SGD``."""
        weights = torch.nn.Parameter(self.start.clone())
        optimizer = torch.optim.SGD([weights], 1.0)
        path = []
        for step in range(at[-1] + 1):
            with torch.no_grad():
                outputs = self.offset + self.jacobian @ weights
            if step in at:
                path.append(outputs)
            if step == at[-1]:
                break
            rule = rules[step]
            optimizer.param_groups[0] |= {
                "lr": rule.lr,
                "weight_decay": rule.wd,
                "momentum": rule.momentum,
                "dampening": rule.dampening,
                "nesterov": rule.nesterov,
            }
            batch = torch.arange(TRAIN) if batches is None else batches[step]
            optimizer.zero_grad()
            moved = self.offset[batch] + self.jacobian[batch] @ weights
            torch.autograd.backward(loss(moved, targets[batch]))
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_([weights], clip_norm)
            optimizer.step()
        return torch.stack(path)


def full_model(parameters: int = 60, seed: int = 0) -> LinearModel:
    """Every output has its own features; with few parameters the kernel is singular."""
    g = torch.Generator().manual_seed(seed)
    total = TRAIN + OTHERS
    jacobian = torch.randn(total, OUTPUTS, parameters, generator=g, dtype=D)
    offset = torch.randn(total, OUTPUTS, generator=g, dtype=D)
    start = torch.randn(parameters, generator=g, dtype=D)
    kernel = torch.einsum("ncp,mdp->nmcd", jacobian, jacobian)
    return LinearModel(jacobian, offset, start, kernel)


def traced_model(parameters: int = 20, seed: int = 0) -> LinearModel:
    """All outputs have the same features, and weights of their own."""
    g = torch.Generator().manual_seed(seed)
    total = TRAIN + OTHERS
    features = torch.randn(total, parameters, generator=g, dtype=D)
    offset = torch.randn(total, OUTPUTS, generator=g, dtype=D)
    start = torch.randn(OUTPUTS * parameters, generator=g, dtype=D)
    jacobian = torch.einsum("cd,np->ncdp", torch.eye(OUTPUTS, dtype=D), features)
    return LinearModel(jacobian.flatten(2), offset, start, features @ features.T)


def targets(seed: int = 1) -> Tensor:
    """Of a regression, [N, C]."""
    return torch.randn(TRAIN, OUTPUTS, generator=torch.Generator().manual_seed(seed), dtype=D)


def labels(seed: int = 1) -> Tensor:
    """Classes, [N] int64."""
    return torch.randint(0, OUTPUTS, (TRAIN,), generator=torch.Generator().manual_seed(seed))
