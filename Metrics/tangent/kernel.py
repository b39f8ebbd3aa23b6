"""One entry to the three ways of computing a tangent kernel."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from Metrics.tangent.cost import needed_bytes
from Metrics.tangent.jacobian import jacobian_kernels
from Metrics.tangent.network import Network, look_at
from Metrics.tangent.plan import Plan, make_plan
from Metrics.tangent.products import product_kernels
from Metrics.tangent.routes import Form, Route, check_choice, choose
from Metrics.tangent.schedule import available_memory, default_memory
from Metrics.tangent.structured import structured_kernels
from Utils.amounts import bytes_text
from Utils.errors import UserError


@dataclass(frozen=True)
class TangentKernel:
    """Θ(x, x') = J(x) J(x')ᵀ.

    Attributes:
        total: [N, M], the mean over the logits of Θ_cc; or full, [N, M, C, C].
        layers: Θ_l of the parameters of each layer, which add up to the total; empty if not
            asked for. A layer is the module that owns them; parameters of the network itself
            are layers of their own.
        normalisation: what batch normalisation divided by: "running statistics", "batch" (then
            every example's row depends on its whole batch) or "none".
        routes: how each layer was computed.
    """

    total: Tensor
    layers: Mapping[str, Tensor]
    normalisation: str
    routes: Mapping[str, str]


def tangent_kernel(
    model: nn.Module,
    inputs: Tensor,
    others: Tensor | None = None,
    *,
    form: Form = "traced",
    per_layer: bool = False,
    route: Route = "auto",
    memory: int | None = None,
) -> TangentKernel:
    """The empirical tangent kernel of a network as it stands, in its own number format.

    Args:
        model: maps [N, ...] to logits [N, C]; in the mode (training, evaluation) it is in.
        inputs: [N, ...], on the model's device.
        others: [M, ...]; ``None`` stands for ``inputs``, and halves the work.
        form: "traced" is the mean over logits, "full" has all pairs of them.
        per_layer: whether to keep Θ_l of every layer.
        route: how; "auto" takes the cheapest.
        memory: bytes that temporaries may take; ``None`` follows from the machine.

    Raises:
        UserError: an unknown form or route; the outputs are no logits, differ from call to call,
            or the work does not fit into the memory.
    """
    check_choice("form", form, Form)
    network = look_at(model, inputs)
    traced = form == "traced"
    plan = make_plan(network, inputs, None if others is None else len(others), traced)
    memory = default_memory(inputs.device) if memory is None else memory
    chosen = choose(network, plan, route, memory)
    _require_memory(network, plan, chosen, per_layer, memory)
    compute = {
        "structured": structured_kernels,
        "jacobian": jacobian_kernels,
        "products": product_kernels,
    }[chosen]
    kernels = compute(network, inputs, others, plan, per_layer, memory)
    total = torch.stack(list(kernels.values())).sum(0) if per_layer else kernels[""]
    return TangentKernel(
        total=total,
        layers=kernels if per_layer else {},
        normalisation=network.normalisation,
        routes=_routes(network, plan, chosen),
    )


def _require_memory(network: Network, plan: Plan, route: str, per_layer: bool, memory: int) -> None:
    needed = needed_bytes(network, plan, route, per_layer, memory)
    free = available_memory(next(iter(network.parameters.values())).device)
    if needed <= free:
        return
    sizes = plan.sizes
    advice = [] if sizes.traced else ["form='traced'"]
    advice += ["per_layer=False"] if per_layer else []
    raise UserError(
        f"the kernel of {sizes.rows} by {sizes.columns} examples with {plan.logits} logits needs "
        f"{bytes_text(needed)}, and {bytes_text(free)} are free; take "
        f"{', '.join([*advice, 'fewer examples'])}, or an estimate (Metrics.tangent.estimate)"
    )


def _routes(network: Network, plan: Plan, chosen: str) -> dict[str, str]:
    """What was done to each layer: the forms of its parameters, or the route of all."""
    if chosen != "structured":
        return dict.fromkeys(network.layers, chosen)
    kinds: dict[str, list[str]] = {layer: [] for layer in network.layers}
    for term in plan.terms:
        kinds[term.layer].append(term.kind)
    return {layer: " and ".join(dict.fromkeys(found)) for layer, found in kinds.items()}
