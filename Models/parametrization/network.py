"""A model under a parametrization: its parameters' places, initial numbers and scales.

Two ways to begin. Absolutely, weights of linear layers, convolutions and recurrent layers are

    W = n^{-s} √(n / fan-in) (gain U + μ),   U standard Gaussian

(gain and √(n / fan-in) are 1 in the readout's and √(1 / fan-in) in the input's place where they
stand for no growth), drawn from a stream that belongs to the seed, the width and the parameter's
name, so that all parametrizations begin with the same U. Biases begin at zero, or as n^{-s} U in
parametrizations that draw them; everything else (gains, embeddings, positions) keeps what the
model gives it. Relative to a base width N, the model keeps all numbers that it draws itself,
times (n/N)^{s₀−s}, where n^{-s₀} is how they shrink already: s₀ = ½ for weights whose fan-in
grows and for their biases, as torch's own layers are initialised, else 0.
"""

from dataclasses import dataclass
from functools import cached_property
from math import log2, sqrt

import torch
from torch import Tensor, nn

from Models.config import ModelConfig
from Models.construct import construct, skeleton
from Models.parametrization.abc_file import is_layerwise, parse_abc
from Models.parametrization.base_shapes import grown_dimensions
from Models.parametrization.exponents import ABC, HALF, ZERO, Family, WeightDecay
from Models.parametrization.gain import gain_of
from Models.parametrization.registry import build_parametrization, find_parametrization
from Models.parametrization.roles import Grown, Place, chain_of, grown, infer_roles
from Models.parametrization.scales import Scales, exponents_of, scales_of
from Utils.errors import UserError
from Utils.seeds import generator, stream_seed

_TOLERANCE = 0.25
"""By how much the exponent of a model's own initialisation may differ from what is assumed."""

_ENOUGH = 1000
"""Numbers from which a standard deviation is known to 2 %."""


@dataclass(frozen=True)
class Parametrized:
    """A model's configuration and parametrization, and what follows for its parameters.

    Args:
        config: with ``--param`` or ``--abc``.
        input_shape: of one example.
        num_classes: number of outputs.
    """

    config: ModelConfig
    input_shape: tuple[int, ...]
    num_classes: int

    @cached_property
    def shapes(self) -> nn.Module:
        """The model without numbers."""
        return self._skeleton(self.config.finite_width)

    def _skeleton(self, width: int | None) -> nn.Module:
        return skeleton(self.config, self.input_shape, self.num_classes, width)

    @cached_property
    def _dimensions(self) -> tuple[Grown, dict[str, float]]:
        """What grows, and n or n/N of every parameter."""
        names = {name: tuple(p.shape) for name, p in self.shapes.named_parameters()}
        if self.config.base_shapes:
            return grown_dimensions(self.config.base_shapes, names)
        width = self.config.finite_width
        assert width is not None
        growth = width / (self.config.base_width or 1)
        wide = self._skeleton(2 * width)
        return grown(self.shapes, wide), dict.fromkeys(names, growth)

    @property
    def growth(self) -> dict[str, float]:
        """n, or n/N relative to a base width, by parameter."""
        return self._dimensions[1]

    @cached_property
    def places(self) -> list[Place]:
        """Of all parameters."""
        return infer_roles(self.shapes, self._dimensions[0], self.config.given_roles)

    @cached_property
    def hidden_layers(self) -> int | None:
        """L of a chain; ``None`` if the model is none."""
        chain = chain_of(self.shapes)
        return None if chain is None or len(chain) < 2 else len(chain) - 1

    def abc(self, family: Family) -> ABC:
        """The exponents, for a family of optimizers.

        Raises:
            UserError: it has none, or is about chains and the model is none.
        """
        param, depth = self.config.param, self.hidden_layers
        needs_chain = (
            find_parametrization(param)[0].chain if param else is_layerwise(self.config.abc)
        )
        if needs_chain and depth is None:
            raise UserError(
                f"--param {param}: its learning rates depend on each layer's place in a plain "
                "chain of layers, without normalisations and residual connections, which --model "
                f"{self.config.model} is not; use fc or conv, or another parametrization"
                if param
                else f"--abc: layers are those of a plain chain, which --model {self.config.model} "
                "is not; give input, hidden and readout"
            )
        if param:
            abc = build_parametrization(param, family, depth or 2)
        else:
            abc = parse_abc(self.config.abc, depth or 2)
        self._check_attention(abc)
        return abc

    def _check_attention(self, abc: ABC) -> None:
        """muP's 1/d of attention is folded into the queries; normalised, they forget it."""
        folded = abc.query.a != abc.of("hidden").a
        if folded and self.config.qk_norm and any(p.role == "query" for p in self.places):
            raise UserError(
                f"--param {self.config.param}: attention needs 1/d instead of 1/√d, which is put "
                "into the queries' weights; --qk-norm takes it out again, leave it out"
            )

    def scales(self, family: Family, decay: WeightDecay) -> Scales:
        """What the optimizer is to know.

        Args:
            family: of the optimizer.
            decay: how it decays weights.
        """
        abc, config = self.abc(family), self.config
        inits = {p.name: self._initial(p, abc) for p in self.places}
        base = "base shapes" if config.base_shapes else str(config.base_width or 1)
        return scales_of(self.places, abc, self.growth, inits, (family, decay), base)

    # ------------------------------------------------------------------ initial numbers

    @property
    def _anchored(self) -> bool:
        return bool(self.config.base_width or self.config.base_shapes)

    def _factor(self, place: Place, abc: ABC) -> float:
        """Of what the model draws itself."""
        s = exponents_of(place, abc).s
        own = HALF if place.fan_in_grows else ZERO
        factor: float = pow(self.growth[place.name], float(own - s))
        return factor

    def _std(self, place: Place, abc: ABC) -> float:
        """Of absolute numbers; 0 where there is no noise."""
        n = self.growth[place.name]
        size: float = pow(n, -float(exponents_of(place, abc).s))
        if place.kind == "bias":
            return size * abc.bias_std
        gain = 1.0 if place.role == "readout" else gain_of(self.config)
        return size * sqrt((n if place.fan_in_grows else 1.0) / place.fan_in) * gain

    def initial_std(self, name: str) -> float:
        """Standard deviation of a layer's weight or bias at the start, where scales are absolute.

        Args:
            name: of the parameter.
        """
        place = next(place for place in self.places if place.name == name)
        return self._std(place, self.abc(self._family_of_init))

    def _initial(self, place: Place, abc: ABC) -> str:
        if self._anchored or place.kind == "other":
            return f"own × {self._factor(place, abc):.4g}"
        return f"std {self._std(place, abc):.4g}"

    def build(self) -> nn.Module:
        """The model with its initial numbers, on the CPU.

        Raises:
            UserError: it cannot be built, or its own initialisation does not shrink as assumed.
        """
        config, abc = self.config, self.abc(self._family_of_init)
        at_base = self._anchored and set(self.growth.values()) == {1.0}
        width = [] if at_base else [config.finite_width or 0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(config.weights_seed, "init", *width))
            model = construct(config, self.input_shape, self.num_classes)
        if at_base:
            return model
        if config.base_width:
            self._check_own_initialisation(model)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for place in self.places:
                self._begin(place, parameters[place.name], abc)
        return model

    @property
    def _family_of_init(self) -> Family:
        """Initial weights do not depend on the optimizer; some parametrizations exist for SGD."""
        return "sgd"

    def _begin(self, place: Place, parameter: Tensor, abc: ABC) -> None:
        if self._anchored or place.kind == "other":
            parameter.mul_(self._factor(place, abc))
            return
        std = self._std(place, abc)
        if std == 0:
            parameter.zero_()
            return
        stream = generator(
            self.config.weights_seed, "weights", self.config.finite_width or 0, place.name
        )
        drawn = torch.randn(place.shape, generator=stream, dtype=torch.float32).to(parameter)
        parameter.copy_(drawn.mul_(std))
        if abc.mean and place.kind == "weight" and place.fan_in_grows:
            gain = 1.0 if place.role == "readout" else gain_of(self.config)
            parameter.add_(abc.mean * std / gain)

    def _check_own_initialisation(self, model: nn.Module) -> None:
        """Refuse an initialisation whose weights do not shrink as fan-in^{-1/2}."""
        config = self.config.model_copy(update={"width": self.config.base_width})
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(config.weights_seed, "init"))
            base = dict(construct(config, self.input_shape, self.num_classes).named_parameters())
        parameters = dict(model.named_parameters())
        for place in self.places:
            now, then = parameters[place.name].detach(), base[place.name].detach()
            if place.kind != "weight" or min(now.numel(), then.numel()) < _ENOUGH:
                continue
            stds = float(now.std()), float(then.std())
            if 0.0 in stds:
                continue
            power = log2(stds[0] / stds[1]) / log2(self.growth[place.name])
            expected = -0.5 if place.fan_in_grows else 0.0
            if abs(power - expected) > _TOLERANCE:
                raise UserError(
                    f"--base-width: the model's own initialisation of {place.name} goes as "
                    f"width^{power:.2f}, not width^{expected:.2g} as torch's does; draw it so, or "
                    "leave out --base-width"
                )


def build_parametrized(
    config: ModelConfig, input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    """The model with the initial numbers of its parametrization.

    Args:
        config: with ``--param`` or ``--abc``.
        input_shape: of one example.
        num_classes: number of outputs.
    """
    return Parametrized(config, input_shape, num_classes).build()
