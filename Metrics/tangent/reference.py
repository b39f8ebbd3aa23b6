"""The kernel by its definition: the dense Jacobian in float64."""

import copy

import torch
from torch import Tensor, nn

from Metrics.tangent.network import Network
from Metrics.tangent.rows import coupled_rows, flat


def dense_kernels(
    model: nn.Module, inputs: Tensor, others: Tensor | None = None
) -> dict[str, Tensor]:
    """Θ_l = J_l J_l'ᵀ of every layer, one backward pass for every logit of every example.

    Args:
        model: maps [N, ...] to logits [N, C]; is copied, and left as it is.
        inputs: [N, ...].
        others: [M, ...]; ``None`` stands for ``inputs``.

    Returns:
        [N, M, C, C] float64, by layer; their sum is Θ.
    """
    network = Network(copy.deepcopy(model).double())

    def rows(batch: Tensor) -> dict[str, Tensor]:
        batch = batch.double() if batch.is_floating_point() else batch
        exact = coupled_rows(network, batch, list(network.parameters))
        return {
            layer: torch.cat([flat(exact[name]) for name in names], 2)
            for layer, names in network.layers.items()
        }

    left = rows(inputs)
    right = left if others is None else rows(others)
    return {layer: torch.einsum("ncp,mdp->nmcd", left[layer], right[layer]) for layer in left}
