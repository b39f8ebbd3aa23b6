"""The limit of the networks that a configuration builds as their width grows: ``--width inf``."""

from dataclasses import replace

from Models.config import ModelConfig
from Models.infinite.build import infinite_network
from Models.infinite.layers.affine import Rates
from Models.infinite.network import InfiniteNetwork
from Models.infinite.scaling import LayerShape, OfConfig
from Models.parametrization.network import Parametrized
from Models.parametrization.scales import exponents_of
from Models.parametrization.theory import Theory, explain
from Utils.errors import UserError


class AtInfinity(OfConfig):
    """Variances and rates in the limit n → ∞, from those at a finite width.

    The rate of a layer's weights is lr' times their number per output, which goes as n^{1−C} above
    hidden layers and as n^{−C} elsewhere (C = 2a + c, :mod:`Models.parametrization.exponents`).

    Args:
        config: with ``--param`` or ``--abc``, at a finite width.
        input_shape: of one example.
        num_classes: number of outputs.
        readout_only: whether all other layers stay as they begin.
    """

    def __init__(
        self,
        config: ModelConfig,
        input_shape: tuple[int, ...],
        num_classes: int,
        readout_only: bool = False,
    ):
        super().__init__(config, input_shape, num_classes)
        self._readout_only = readout_only

    def rates(self, layer: LayerShape) -> Rates:
        """Of a linear layer or convolution; raises as :class:`OfConfig`."""
        there = super().rates(layer)
        if self._readout_only and self._places[layer.weight].role != "readout":
            return replace(there, weight_rate=0.0, bias_rate=0.0)
        bias = self._limit(layer.bias) if layer.bias else 0.0
        weight = self._limit(layer.weight)
        return replace(
            there, weight_rate=weight * there.weight_rate, bias_rate=bias * there.bias_rate
        )

    def vector_rate(self, name: str) -> float:
        """Learning rate of a gain or bias of a normalisation."""
        return 0.0 if self._readout_only else self._limit(name) * super().vector_rate(name)

    def _limit(self, name: str) -> float:
        """What a rate at the finite width is multiplied by: 1 or 0."""
        place = self._places[name]
        summed = place.kind == "weight" and place.fan_in_grows
        power = summed - exponents_of(place, self._abc).rate("sgd")
        if power > 0:
            raise UserError(
                f"--width inf: under {self._name} the rate of {name} grows as width^{power}, which "
                "smaller weights elsewhere undo; such limits are not computed, use --param ntk"
            )
        return 1.0 if power == 0 else 0.0


def limit_network(
    config: ModelConfig,
    input_shape: tuple[int, ...],
    num_classes: int,
    readout_only: bool = False,
) -> InfiniteNetwork:
    """What the networks of ``config`` become as their width grows, if that is a kernel.

    Args:
        config: with ``--param`` or ``--abc``; its width is not looked at.
        input_shape: of one example.
        num_classes: number of outputs.
        readout_only: whether only the readout is trained: its kernel is that of the last
            features, and so with ``--no-bias`` the covariance of the initial outputs (NNGP).

    Raises:
        UserError: wide networks have no fixed kernel, or none that is known, with the reason.
    """
    finite = config.at_reference_width()  # whose graph is read and whose scales are extrapolated
    if config.is_parametrized:
        _check_regime(Parametrized(finite, input_shape, num_classes), config)
    scaling = AtInfinity(finite, input_shape, num_classes, readout_only)
    return infinite_network(finite, input_shape, num_classes, scaling)


def _check_regime(network: Parametrized, config: ModelConfig) -> None:
    depth = network.hidden_layers or 2
    theory = explain(network.abc("sgd"), depth, "sgd", config.bias)
    if theory.regime != "kernel regime":
        name = f"--param {config.param}" if config.param else "--abc"
        raise UserError(f"--width inf: under {name} {_reason(theory)}; use --param ntk or sp-lr1n")


def _reason(theory: Theory) -> str:
    if theory.regime == "feature learning":
        return (
            f"wide networks learn features (r = {theory.r}): their tangent kernel moves while they "
            "train, and is no limit to train with"
        )
    if theory.regime == "unstable":
        return "outputs or features of wide networks grow with the width at a constant --lr"
    return "the outputs of wide networks do not move"
