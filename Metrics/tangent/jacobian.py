"""Θ = J Jᵀ by rows of J."""

import torch
from torch import Tensor

from Metrics.tangent.network import Network
from Metrics.tangent.rows import coupled_rows, jacobian_rows


def jacobian_kernel(
    network: Network, inputs: Tensor, others: Tensor | None, *, form: str
) -> dict[str, Tensor]:
    """The kernels of all layers.

    Args:
        network: whose kernel it is.
        inputs: [N, ...].
        others: [M, ...] or ``None`` for the same.
        form: "traced" or "full".
    """
    find = coupled_rows if network.couples_examples else jacobian_rows
    left = find(network, inputs)
    right = left if others is None else find(network, others)
    equation = "ncp,mcp->nm" if form == "traced" else "ncp,mdp->nmcd"
    kernels = {}
    for layer, names in network.layers.items():
        products = [
            torch.einsum(equation, left[name].flatten(2), right[name].flatten(2)) for name in names
        ]
        kernels[layer] = torch.stack(products).sum(0)
        if form == "traced":
            kernels[layer] /= left[names[0]].shape[1]
    return kernels
