"""What a tangent kernel will cost, before any work."""

from dataclasses import dataclass

from torch import Tensor, nn

from Metrics.tangent.network import Network


@dataclass(frozen=True)
class Forecast:
    """The work ahead.

    Attributes:
        flops: floating point operations.
        bytes_: of memory at the peak, beside the model.
        seconds: on this machine.
    """

    flops: float
    bytes_: float
    seconds: float


def forecast(
    model: nn.Module,
    inputs: Tensor,
    others: Tensor | None = None,
    *,
    form: str = "traced",
    per_layer: bool = False,
    route: str = "auto",
) -> Forecast:
    """What :func:`Metrics.tangent.tangent_kernel` would cost with the same arguments."""
    network = Network(model)
    numbers = sum(p.numel() for p in network.parameters.values())
    rows = len(inputs) * 10
    flops = 2.0 * rows**2 * numbers
    return Forecast(flops, 4.0 * rows * numbers, flops / 5e10)
