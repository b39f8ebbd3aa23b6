"""From a finite network to the infinite one."""

from torch import nn

from Models.build import build_model
from Models.config import ModelConfig
from Models.infinite.network import InfiniteNetwork
from Models.infinite.scaling import OfConfig, Parametrization, Scaling
from Models.infinite.walk import program_of
from Utils.errors import UserError


def infinite_network(
    model: nn.Module | ModelConfig,
    input_shape: tuple[int, ...],
    num_classes: int | None = None,
    scaling: Scaling | None = None,
    training: bool = False,
) -> InfiniteNetwork:
    """The network that a finite one becomes as its hidden layers widen.

    Its layers are read off the graph of the finite network, so that both are always the same
    architecture. Widths of inputs count, those of hidden layers only in "standard".

    Args:
        model: a module, or the configuration of one.
        input_shape: of one example.
        num_classes: number of outputs; needed for a configuration.
        scaling: variances and rates of layers; left out, a configuration's own ``--param``, and for
            a module the NTK parametrization with weight variance 1 and bias variance 0.
        training: whether dropout is on.

    Raises:
        UserError: the network has no limit that is known; says which operation is why.
    """
    if isinstance(model, nn.Module):
        return InfiniteNetwork(
            program_of(model, input_shape, scaling or Parametrization(), training), input_shape
        )
    if num_classes is None:
        raise UserError("infinite width: a configuration needs the number of classes")
    scaling = scaling or OfConfig(model, input_shape, num_classes)
    module = build_model(model, input_shape, num_classes, weights=False)
    return InfiniteNetwork(program_of(module, input_shape, scaling, training), input_shape)
