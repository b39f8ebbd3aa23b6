"""Rows of the Jacobian, example by example or logit by logit."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from Metrics.tangent.network import Network, Rows
from Metrics.tangent.pieces import slow_operations_allowed


def jacobian_rows(
    network: Network, inputs: Tensor, names: Sequence[str], chunk: int | None = None
) -> Rows:
    """∂f(x_n)_c/∂θ of examples that do not see each other: ``vmap(jacrev)``.

    Args:
        network: whose examples are independent.
        inputs: [N, ...].
        names: of the parameters.
        chunk: examples at a time.

    Returns:
        [N, C, *shape] by parameter. Operations that ``vmap`` does not know are differentiated
        one example after another.
    """
    parameters = {name: network.parameters[name].detach() for name in names}

    def logits(values: dict[str, Tensor], example: Tensor) -> Tensor:
        return network.logits(example[None], values)[0]

    try:
        # Fused attention has no rule; and nothing is asked of the parameters that are not named.
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), slow_operations_allowed():
            rows: Rows = vmap(jacrev(logits), (None, 0), chunk_size=chunk)(parameters, inputs)
    except RuntimeError:
        pieces = [coupled_rows(network, inputs[n : n + 1], names) for n in range(len(inputs))]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in names}
    return rows


def coupled_rows(
    network: Network, batch: Tensor, names: Sequence[str], examples: slice = slice(None)
) -> Rows:
    """The same for a batch whose examples may see each other: a backward pass for every row.

    Args:
        network: whose logits are functions of the whole batch.
        batch: [N, ...], all of it.
        names: of the parameters.
        examples: whose rows are wanted.
    """
    parameters = {name: network.parameters[name] for name in names}
    with torch.set_grad_enabled(True):
        logits = network.logits(batch)[examples]
    rows = {
        name: logits.new_empty((logits.numel(), *p.shape), dtype=p.dtype)
        for name, p in parameters.items()
    }
    values = list(parameters.values())
    for index, logit in enumerate(logits.flatten()):
        gradients = torch.autograd.grad(logit, values, retain_graph=True, materialize_grads=True)
        for row, gradient in zip(rows.values(), gradients, strict=True):
            row[index] = gradient
    return {name: torch.unflatten(row, 0, logits.shape) for name, row in rows.items()}


def flat(rows: Tensor) -> Tensor:
    """[N, C, *shape] as [N, C, numbers]; a parameter without dimensions is one number."""
    return rows.flatten(2) if rows.dim() > 2 else rows[..., None]
