"""The empirical neural tangent kernel Θ(x, x') = J(x) J(x')ᵀ of any network.

J is the derivative of the logits with respect to the trained parameters. Letters in shapes: N
inputs, M other inputs, C logits, P parameters.
"""

from Metrics.tangent.cost import Forecast, forecast
from Metrics.tangent.estimate import Estimate, estimate
from Metrics.tangent.kernel import TangentKernel, tangent_kernel
from Metrics.tangent.weighted import weighted_kernel

__all__ = [
    "Estimate",
    "Forecast",
    "TangentKernel",
    "estimate",
    "forecast",
    "tangent_kernel",
    "weighted_kernel",
]
