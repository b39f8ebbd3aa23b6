"""Rows of the Jacobian, example by example or logit by logit."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from Metrics.tangent.network import Network, Rows


def jacobian_rows(network: Network, inputs: Tensor, names: Sequence[str] | None = None) -> Rows:
    """∂f(x_n)_c/∂θ of examples that do not see each other: ``vmap(jacrev)``.

    Args:
        network: whose examples are independent.
        inputs: [N, ...].
        names: of the parameters; all, if not given.

    Returns:
        [N, C, *shape] by parameter. Operations that ``vmap`` does not know are differentiated
        one example after another.
    """
    names = list(network.parameters) if names is None else names
    parameters = {name: network.parameters[name].detach() for name in names}

    def logits(values: dict[str, Tensor], example: Tensor) -> Tensor:
        return network.logits(example[None], values)[0]

    try:
        with torch.no_grad():  # of the parameters that are not asked for
            rows: Rows = vmap(jacrev(logits), (None, 0))(parameters, inputs)
    except RuntimeError:
        return _one_by_one(network, inputs, names)
    return rows


def _one_by_one(network: Network, inputs: Tensor, names: Sequence[str]) -> Rows:
    pieces = [coupled_rows(network, inputs[n : n + 1], names) for n in range(len(inputs))]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in names}


def coupled_rows(network: Network, inputs: Tensor, names: Sequence[str] | None = None) -> Rows:
    """The same for a batch whose examples see each other, by N C backward passes.

    Args:
        network: whose logits are functions of the whole batch.
        inputs: [N, ...], all of it.
        names: of the parameters; all, if not given.
    """
    with torch.enable_grad():
        logits = network.logits(inputs)
    shape = logits.shape
    parameters = {name: network.parameters[name] for name in names or network.parameters}
    rows = {
        name: logits.new_empty((logits.numel(), *p.shape), dtype=p.dtype)
        for name, p in parameters.items()
    }
    values = list(parameters.values())
    for index, logit in enumerate(logits.flatten()):
        gradients = torch.autograd.grad(logit, values, retain_graph=True, materialize_grads=True)
        for row, gradient in zip(rows.values(), gradients, strict=True):
            row[index] = gradient
    return {name: torch.unflatten(row, 0, shape) for name, row in rows.items()}
