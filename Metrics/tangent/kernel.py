"""One entry to the three ways of computing a tangent kernel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from Metrics.tangent.jacobian import jacobian_kernel
from Metrics.tangent.network import Network, require_repeatable
from Metrics.tangent.plan import make_plan
from Metrics.tangent.structured import structured_kernels

Form = Literal["traced", "full"]
Route = Literal["auto", "structured", "jacobian", "products"]


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
        UserError: the outputs are no logits, differ from call to call, or the work does not fit
            into the memory.
    """
    network = Network(model)
    if network.couples_examples:
        require_repeatable(network, inputs)
    if network.couples_examples or route == "jacobian":
        layers = jacobian_kernel(network, inputs, others, form=form)
    else:
        columns = None if others is None else len(others)
        plan = make_plan(network, inputs, columns, form == "traced")
        import os

        chunk = int(os.environ.get("CHUNK", 16))
        layers = structured_kernels(network, inputs, others, plan, form == "traced", chunk, 1 << 28)
    total = sum(layers.values(), start=next(iter(layers.values())).new_zeros(()))
    return TangentKernel(
        total=total,
        layers=layers if per_layer else {},
        normalisation=network.normalisation,
        routes=dict.fromkeys(layers, "jacobian"),
    )
