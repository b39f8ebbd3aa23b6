"""Rows of the Jacobian, example by example or logit by logit."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from Metrics.tangent.network import Network, Rows


def jacobian_rows(network: Network, inputs: Tensor) -> Rows:
    """∂f(x_n)_c/∂θ of examples that do not see each other: ``vmap(jacrev)``.

    Args:
        network: whose examples are independent.
        inputs: [N, ...].

    Returns:
        [N, C, *shape] by parameter. Operations that ``vmap`` does not know are differentiated
        one example after another.
    """
    parameters = {name: p.detach() for name, p in network.parameters.items()}

    def logits(values: dict[str, Tensor], example: Tensor) -> Tensor:
        return network.logits(example[None], values)[0]

    try:
        rows: Rows = vmap(jacrev(logits), (None, 0))(parameters, inputs)
    except RuntimeError:
        return _one_by_one(network, inputs)
    return rows


def _one_by_one(network: Network, inputs: Tensor) -> Rows:
    pieces = [coupled_rows(network, inputs[n : n + 1]) for n in range(len(inputs))]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in network.parameters}


def coupled_rows(network: Network, inputs: Tensor) -> Rows:
    """The same for a batch whose examples see each other, by N C backward passes.

    Args:
        network: whose logits are functions of the whole batch.
        inputs: [N, ...], all of it.
    """
    with torch.enable_grad():
        logits = network.logits(inputs)
    shape = logits.shape
    parameters = network.parameters
    rows = {
        name: logits.new_empty((logits.numel(), *p.shape), dtype=p.dtype)
        for name, p in parameters.items()
    }
    for index, gradients in enumerate(_gradients(network, logits)):
        for row, gradient in zip(rows.values(), gradients, strict=True):
            row[index] = gradient
    return {name: row.unflatten(0, shape) for name, row in rows.items()}


def _gradients(network: Network, logits: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of every logit in turn."""
    values = list(network.parameters.values())
    flat = logits.flatten()
    for logit in flat:
        yield torch.autograd.grad(logit, values, retain_graph=True, materialize_grads=True)
