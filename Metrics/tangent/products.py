"""Θ column by column, v ↦ J (J'ᵀ v): hardly more memory than the network needs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from Metrics.tangent.network import Network
from Metrics.tangent.plan import Plan
from Metrics.tangent.schedule import blocks, passed


def product_kernels(
    network: Network,
    inputs: Tensor,
    others: Tensor | None,
    plan: Plan,
    per_layer: bool,
    memory: int,
) -> dict[str, Tensor]:
    """Θ_l of every layer, or their sum under the name "".

    J v is the derivative of w ↦ ⟨Jᵀ w, v⟩: both derivatives are taken backwards, which every
    operation with a second derivative allows.

    Args:
        network: whose kernel it is.
        inputs: [N, ...].
        others: [M, ...] or ``None`` for the same.
        plan: of the network.
        per_layer: whether the layers are kept apart.
        memory: bytes for temporaries; examples that see each other go through the network
            together all the same.
    """
    whole, logits, traced = network.couples_examples, plan.logits, plan.sizes.traced
    columns = inputs if others is None else others
    like = next(iter(network.parameters.values()))
    chunk = max(1, memory // (2 * passed(plan) * like.element_size()))
    parts = blocks(len(inputs), len(inputs) if whole else chunk)
    groups = network.layers if per_layer else {"": list(network.parameters)}
    shape = (len(inputs), len(columns), *(() if traced else (logits, logits)))
    kernels = {name: like.new_zeros(shape) for name in groups}
    with sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(True):
        together = network.logits(columns) if whole else None
        for part in parts:
            pushed = Pushed(network, inputs[part])
            for m in range(len(columns)):
                seen = network.logits(columns[m : m + 1]) if together is None else together
                for d in range(logits):
                    values = list(network.parameters.values())
                    row = _gradient(seen[m if whole else 0, d], values)
                    v = dict(zip(network.parameters, row, strict=True))
                    for name, members in groups.items():
                        column = pushed(v, members)  # [n, C]
                        if traced:
                            kernels[name][part, m] += column[:, d] / logits
                        else:
                            kernels[name][part, m, :, d] = column
    return kernels


class Pushed:
    """v ↦ J v [n, C] for the parameters of some layers."""

    def __init__(self, network: Network, inputs: Tensor):
        logits = network.logits(inputs)
        self._w = torch.zeros_like(logits, requires_grad=True)
        values = list(network.parameters.values())
        pulled = torch.autograd.grad(
            logits, values, self._w, create_graph=True, materialize_grads=True
        )
        self._pulled = dict(zip(network.parameters, pulled, strict=True))

    def __call__(self, v: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
        product = torch.stack([(self._pulled[n] * v[n]).sum() for n in names]).sum()
        (column,) = _gradient(product, [self._w])
        return column


def _gradient(value: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not value.requires_grad:
        return tuple(torch.zeros_like(source) for source in sources)
    return torch.autograd.grad(value, sources, retain_graph=True, materialize_grads=True)
