"""Networks of infinite width: their covariance and tangent kernels, exactly."""

from Models.infinite.build import infinite_network
from Models.infinite.network import Forecast, InfiniteNetwork, Kernels
from Models.infinite.scaling import Parametrization

__all__ = ["Forecast", "InfiniteNetwork", "Kernels", "Parametrization", "infinite_network"]
