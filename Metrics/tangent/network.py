"""What the engine must know of a network before it differentiates it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from Utils.errors import UserError

Rows = Mapping[str, Tensor]
"""Derivatives of logits: [N, C, *shape] of each parameter, by its name."""


@dataclass(frozen=True)
class Network:
    """A module as it stands, as a function of its trained parameters and a batch.

    Attributes:
        module: maps [N, ...] to logits [N, C]; in training or evaluation mode.
        couples_examples: whether the logits of an example depend on the others of its batch.
        channels_last: whether it takes images whose channels are innermost in memory.
    """

    module: nn.Module
    couples_examples: bool = False
    channels_last: bool = False

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters; one that has several names goes by the first."""
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    @cached_property
    def buffers(self) -> dict[str, Tensor]:
        """The tensors beside the parameters."""
        return dict(self.module.named_buffers())

    @cached_property
    def layers(self) -> dict[str, list[str]]:
        """Names of parameters, by the module that owns them.

        Parameters of the network itself are layers of their own; their names are free, as a
        module and a parameter of the same parent never share one.
        """
        layers: dict[str, list[str]] = {}
        for name in self.parameters:
            owner = name.rpartition(".")[0] or name
            layers.setdefault(owner, []).append(name)
        return layers

    @cached_property
    def layer_of(self) -> dict[str, str]:
        """The layer of each parameter."""
        return {name: layer for layer, names in self.layers.items() for name in names}

    @cached_property
    def normalisation(self) -> str:
        """What batch normalisation divides by: "running statistics", "batch" or "none"."""
        norms = [m for m in self.module.modules() if isinstance(m, _BatchNorm)]
        if not norms:
            return "none"
        by_batch = any(m.training or m.running_mean is None for m in norms)
        return "batch" if by_batch else "running statistics"

    def laid_out(self, inputs: Tensor) -> Tensor:
        """The same inputs, images in the layout that passes are fastest in.

        Args:
            inputs: [N, ...].
        """
        return (
            inputs.contiguous(memory_format=torch.channels_last) if self.channels_last else inputs
        )

    def logits(self, inputs: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """The logits [N, C]; buffers that the forward pass changes are left as they were.

        Args:
            inputs: [N, ...].
            parameters: replace the network's, by their names.

        Raises:
            UserError: the outputs have another shape.
        """
        replaced = dict(parameters or {})
        if any(module.training for module in self.module.modules()):
            replaced |= {name: buffer.clone() for name, buffer in self.buffers.items()}
        call = partial(functional_call, self.module, replaced) if replaced else self.module
        logits = call((inputs,)) if replaced else call(inputs)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(inputs):
            seen = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"a tangent kernel needs logits of shape (inputs, classes), but "
                f"{type(self.module).__name__} maps {tuple(inputs.shape)} to {seen}; wrap it in a "
                "module that returns them"
            )
        return logits


def look_at(module: nn.Module, inputs: Tensor) -> Network:
    """A network, and whether its examples see each other.

    The modules tell (batch normalisation by the batch, dropout), and a pair of examples: whether
    the first one's logits are those it has alone.

    Args:
        module: maps [N, ...] to logits [N, C].
        inputs: [N, ...].

    Raises:
        UserError: there are no parameters or inputs, the outputs are no logits, or the examples
            see each other and the logits differ from call to call.
    """
    network = Network(module)
    if not len(inputs):
        raise UserError("a tangent kernel of no inputs was asked for; give at least one")
    if not network.parameters:
        raise UserError(
            f"{type(module).__name__} has no parameter that requires a gradient, so it has no "
            "tangent kernel; set requires_grad on those that are trained"
        )
    couples = network.normalisation == "batch" or any(map(_drops, module.modules()))
    last = False
    if not couples:
        with torch.no_grad():
            last, pair = _pair(network, inputs[:2])
            alone = network.logits(inputs[:1])
        scale = pair.abs().max().nan_to_num()
        couples = bool(((pair[:1] - alone).abs() > _ROUNDING[pair.dtype] * scale).any())
    if couples:
        _require_repeatable(network, inputs)
    return Network(module, couples, last and not couples)


def _pair(network: Network, pair: Tensor) -> tuple[bool, Tensor]:
    """Whether channels may be innermost, and the logits of a pair of examples.

    On CPUs images in that layout pass convolutions up to three times as fast (16 channels in
    float32: 106 instead of 34 GFLOP/s). Networks that ``view`` images otherwise refuse it.
    """
    if pair.device.type == "cpu" and pair.dim() == 4:
        with suppress(RuntimeError):
            return True, network.logits(pair.contiguous(memory_format=torch.channels_last))
    return False, network.logits(pair)


_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far equal logits may differ that were computed in batches of different sizes."""


def _drops(module: nn.Module) -> bool:
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    attention = isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0
    return module.training and (dropout or attention)


def _require_repeatable(network: Network, inputs: Tensor) -> None:
    """Refuse a network whose logits differ from call to call."""
    with torch.no_grad():
        first, second = (network.logits(inputs) for _ in range(2))
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise UserError(
            "the network gives other logits at every call (dropout?), so its tangent kernel is "
            "not defined; call .eval(), or give it a fixed random seed in its forward"
        )
