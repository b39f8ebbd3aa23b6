"""The kernel that moves outputs where parameters have learning rates of their own."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from Metrics.tangent.kernel import tangent_kernel


def weighted_kernel(model: nn.Module, inputs: Tensor, factors: Mapping[str, float]) -> Tensor:
    """[N, N] Σ_p s_p J_p J_pᵀ, the mean over logits, in float64.

    Args:
        model: maps [N, ...] to logits [N, C]; in the mode (training, evaluation) it is in.
        inputs: [N, ...], on the model's device.
        factors: s_p, by name; parameters without one do not count, nor do frozen ones.

    Raises:
        UserError: as :func:`tangent_kernel` does.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = torch.zeros(len(inputs), len(inputs), dtype=torch.float64, device=inputs.device)
    try:
        for factor in {factors[name] for name in trained if factors.get(name)}:
            for name, parameter in trained.items():  # one kernel for all that share a factor
                parameter.requires_grad_(factors.get(name) == factor)
            total += factor * tangent_kernel(model, inputs).total.double()
    finally:
        for parameter in trained.values():
            parameter.requires_grad_(True)
    return total
