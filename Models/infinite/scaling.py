"""Initial variances and learning rates of the layers of an infinitely wide network."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isclose
from typing import Literal, Protocol

from Models.config import ModelConfig
from Models.infinite.layers.affine import Rates
from Models.parametrization.network import Parametrized
from Models.parametrization.scales import exponents_of
from Utils.errors import UserError

Variances = float | Mapping[str, float]
"""One number, or numbers by the names or patterns of layers, the first that fits counting."""


@dataclass(frozen=True)
class LayerShape:
    """What rates may depend on.

    Attributes:
        weight: name of the weight.
        bias: of the bias, if there is one.
        fan_in: weights per output.
        wide: whether the layer reads hidden neurons, not the inputs.
        trained: whether weight and bias are trained.
    """

    weight: str
    bias: str | None
    fan_in: int
    wide: bool
    trained: tuple[bool, bool] = (True, True)


class Scaling(Protocol):
    """What gives layers their variances and rates."""

    def rates(self, layer: LayerShape) -> Rates:
        """Of a linear layer or convolution."""

    def vector_rate(self, name: str) -> float:
        """Learning rate of a gain or bias of a normalisation."""


@dataclass(frozen=True)
class Parametrization:
    """The two parametrizations of the literature, with gradient descent at learning rate 1.

    In "ntk" the network computes with W = √(A/fan-in) w, b = √B β and trains the standard normal
    w, β (Jacot et al. 2018, arXiv 1806.07572). In "standard" it trains W and b themselves, and
    the kernel grows with the fan-in; with ``width_scale`` s, W = w/√s and fan-in/s counts
    (Sohl-Dickstein et al. 2020, arXiv 2001.07301), so that the limit s → ∞ exists.

    Attributes:
        kind: which.
        weight_variance: A, the variance of weights times the fan-in, of layers.
        bias_variance: B, of biases.
        width_scale: s, width over base width; in "standard" only.
    """

    kind: Literal["ntk", "standard"] = "ntk"
    weight_variance: Variances = 1.0
    bias_variance: Variances = 0.0
    width_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in {"ntk", "standard"}:
            raise UserError(f"parametrization {self.kind!r} is unknown; use 'ntk' or 'standard'")
        if self.width_scale <= 0 or (self.kind == "ntk" and self.width_scale != 1):
            raise UserError(
                f"width_scale {self.width_scale} belongs to parametrization 'standard' and is "
                "positive; leave it out"
            )

    def rates(self, layer: LayerShape) -> Rates:
        """Of a linear layer or convolution."""
        name = layer.weight.removesuffix(".weight")
        weight = _of(self.weight_variance, name, "weight_variance")
        bias = _of(self.bias_variance, name, "bias_variance") if layer.bias else 0.0
        if weight <= 0 or bias < 0:
            raise UserError(
                f"{name}: weight variance {weight:g} and bias variance {bias:g}; the first must be "
                "positive, the second not negative"
            )
        if self.kind == "ntk":
            rate, bias_rate = weight, bias
        else:
            rate = layer.fan_in / (self.width_scale if layer.wide else 1.0)
            bias_rate = 1.0 if layer.bias else 0.0
        trained = layer.trained
        return Rates(weight, bias, rate * trained[0], bias_rate * trained[1])

    def vector_rate(self, name: str) -> float:
        """1: gains and biases of normalisations are the same in both."""
        return 1.0


def _of(values: Variances, name: str, what: str) -> float:
    if not isinstance(values, Mapping):
        return float(values)
    for pattern, value in values.items():
        if fnmatchcase(name, pattern):
            return float(value)
    raise UserError(f"{what}: no pattern of {', '.join(values)} fits layer {name}; add '*'")


class OfConfig:
    """Those of a model's ``--param`` or ``--abc`` under SGD; learning rates in units of ``--lr``.

    Args:
        config: with either, absolute, whose weights shrink as √fan-in and keep its gains.
        input_shape: of one example.
        num_classes: number of outputs.

    Raises:
        UserError: there is neither, or wide networks of it have no kernel.
    """

    def __init__(self, config: ModelConfig, input_shape: tuple[int, ...], num_classes: int):
        if not config.is_parametrized:
            raise UserError(
                "infinite width: without --param nothing says how the model grows; use --param ntk"
            )
        if config.base_width or config.base_shapes:
            raise UserError(
                "infinite width: relative to a base width the initial variances are the model's "
                "own; leave out --base-width and --base-shapes"
            )
        self._network = Parametrized(config, input_shape, num_classes)
        self._abc = self._network.abc("sgd")
        self._scales = self._network.scales("sgd", "gradient")
        self._places = {place.name: place for place in self._network.places}
        self._name = config.param or "--abc"

    def rates(self, layer: LayerShape) -> Rates:
        """Of a linear layer or convolution.

        Raises:
            UserError: its weights do not shrink as the root of their number. Those of a readout
                may be smaller: then it makes the outputs smaller, and no more.
        """
        place = self._places[layer.weight]
        s = float(exponents_of(place, self._abc).s)
        expected = 0.5 if place.fan_in_grows else 0.0
        smaller = place.role == "readout" and s > expected
        if not (isclose(s, expected) or smaller) or self._abc.mean:
            raise UserError(
                f"infinite width: under {self._name} {layer.weight} begins as width^{-s:g}, so "
                "that wide networks have no kernel at initialisation; use --param ntk"
            )
        weight = self._network.initial_std(layer.weight) ** 2 * layer.fan_in
        bias = self._network.initial_std(layer.bias) ** 2 if layer.bias else 0.0
        rate = self._scales.of(layer.weight).lr * layer.fan_in
        bias_rate = self._scales.of(layer.bias).lr if layer.bias else 0.0
        return Rates(weight, bias, rate * layer.trained[0], bias_rate * layer.trained[1])

    def vector_rate(self, name: str) -> float:
        """Learning rate of a gain or bias of a normalisation."""
        return self._scales.of(name).lr
