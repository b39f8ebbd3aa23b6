"""The limit of the networks that a configuration builds as their width grows: ``--width inf``.

A readout that begins as n^{−½−δ}, δ > 0, makes the outputs n^{−δ} times those of δ = 0, and so the
gradients below it. Where learning rates there are n^{2δ} times as large, networks are those of
δ = 0 with their outputs multiplied by α = n^{−δ} and their learning rates by 1/α²: at every width
they have the same tangent kernel at the start, and f₀ = O(α). In training features move by
O(1/(α√n)), which still vanishes where the regime is the kernel's (``hybrid:s``: δ = s/2, and
1/(α√n) = n^{−r} with r = (1 − s)/2 > 0). So in the limit f₀ = 0, and outputs move by that kernel
(Chizat, Oyallon and Bach 2019, arXiv 1812.07956, section 2; Geiger et al. 2020, arXiv 1906.08034).
"""

from dataclasses import replace
from fractions import Fraction

from Models.config import ModelConfig
from Models.infinite.build import infinite_network
from Models.infinite.layers.affine import Affine, Rates
from Models.infinite.network import InfiniteNetwork
from Models.infinite.scaling import LayerShape, OfConfig
from Models.parametrization.exponents import ABC, HALF, ZERO
from Models.parametrization.network import Parametrized
from Models.parametrization.roles import Place
from Models.parametrization.scales import exponents_of
from Models.parametrization.theory import Theory, explain
from Utils.errors import UserError


class AtInfinity(OfConfig):
    """Variances and rates in the limit n → ∞, from those at a finite width.

    The rate of a layer's weights is lr' times their number per output, which goes as n^{1−C} above
    hidden layers and as n^{−C} elsewhere (C = 2a + c, :mod:`Models.parametrization.exponents`).
    What all but the readout do to the outputs passes it, and shrinks as the square of n^{−δ} there.

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

    @property
    def readouts(self) -> frozenset[str]:
        """The names of the layers with the exponents of a readout."""
        own = (place for place in self._places.values() if self._is_readouts(place))
        return frozenset(place.name.rpartition(".")[0] for place in own)

    def _is_readouts(self, place: Place) -> bool:
        """Of a chain's last layer, or where there is none, of one that has the role."""
        if place.layer is not None:
            return place.layer == self._abc.hidden_layers
        return place.role == "readout" or place.reads == "readout"

    def rates(self, layer: LayerShape) -> Rates:
        """Of a linear layer or convolution; raises as :class:`OfConfig`."""
        there = super().rates(layer)
        if layer.bias and exponents_of(self._places[layer.bias], self._abc).s > 0:
            there = replace(there, bias=0.0)
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
        if not self._is_readouts(place):
            power -= 2 * _delta(self._abc)
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
    network = infinite_network(finite, input_shape, num_classes, scaling)
    network.begins_at_zero = begins_at_zero(config, input_shape, num_classes)
    if network.begins_at_zero:
        _check_end(network, scaling.readouts, config)
    return network


def begins_at_zero(config: ModelConfig, input_shape: tuple[int, ...], num_classes: int) -> bool:
    """Whether the initial outputs vanish as networks widen: a readout of δ > 0.

    Args:
        config: with ``--param`` or ``--abc``; its width is not looked at.
        input_shape: of one example.
        num_classes: number of outputs.
    """
    finite = Parametrized(config.at_reference_width(), input_shape, num_classes)
    return _delta(finite.abc("sgd")) > 0


def _delta(abc: ABC) -> Fraction:
    """δ, where the readout begins as n^{−½−δ}; a larger one has no limit."""
    return max(ZERO, abc.layers[-1].s - HALF)


def _check_end(network: InfiniteNetwork, readouts: frozenset[str], config: ModelConfig) -> None:
    """Multiplying the outputs is all that a small readout does if what follows it is linear."""
    name = f"--param {config.param}" if config.param else "--abc"
    steps = list(enumerate(network.program.steps, start=1))
    first = next((k for k, step in steps if step.name in readouts), 0)
    if network.program.last_reader > first:
        raise UserError(
            f"--width inf: under {name} what reads hidden neurons begins small, and here it is not "
            "the end of the network; such limits are not computed, use --param ntk"
        )
    if any(isinstance(s.layer, Affine) and s.layer.rates.bias and k >= first for k, s in steps):
        raise UserError(
            f"--width inf: under {name} initial outputs are a bias that does not shrink beside "
            "weights that do; such limits are not computed, use bias_std: 0"
        )


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
