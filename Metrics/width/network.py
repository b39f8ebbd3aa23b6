"""A run's network at its checkpoints, and what its weight layers read and give there.

Shape letters: N examples of the probe batch, C outputs. Weight layers are linear layers and
convolutions, in the order in which the network calls them first.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from Metrics.config import CacheConfig
from Metrics.features import StepFeatures, step_features
from Metrics.kernels.at import as_floats
from Metrics.kernels.empirical import EmpiricalKernelAt
from Metrics.kernels.measures import Floats
from Metrics.model_at import ModelAt
from Metrics.spectrum import Loss
from Metrics.tangent import weighted_kernel
from Metrics.width.members import Member
from Models.symmetry import no_laws
from Utils.errors import UserError
from Utils.storage import open_hdf5

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

Weights = tuple[Tensor, Tensor | None]
"""Copies of a layer's weight and bias; ``None`` for no bias."""

AGAIN = "run extract.py again"

_UNREAD = no_laws("no metric of experiments is about laws")

_KERNELS = {"kernel": "traced", "kernel_on": "probe", "reference": 0}
"""Of which kernels metrics of experiments are, whatever metrics of runs are asked for."""


@dataclass(frozen=True)
class Pass:
    """One pass of the probe batch, by the names of the weight layers.

    Attributes:
        inputs: x, what each layer reads.
        outputs: h, what it gives.
        logits: [N, C].
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    logits: Tensor


class Checkpoint:
    """A run's network at one step, beside the same network at step 0.

    Nothing is computed before it is asked for: metrics that read saved numbers build no network.

    Args:
        network: of the run.
        features: of the step, open.

    Attributes:
        member: the run.
        step: updates done.
        metric: gives a number that was saved with the checkpoint, by its name.
    """

    def __init__(self, network: "Network", features: StepFeatures):
        self._network, self._features = network, features
        self.member, self.step = network.member, features.step
        self.metric = features.metric

    @cached_property
    def layers(self) -> dict[str, nn.Module]:
        """The weight layers, with the weights of this step."""
        layers = self._network.layers  # made at step 0
        self._network.model_at.load(self._features)
        return layers

    @cached_property
    def now(self) -> Pass:
        """What the network does at this step."""
        return self.start if self.step == 0 else self._network.passed(self.layers)

    @property
    def start(self) -> Pass:
        """What it did at step 0."""
        return self._network.start

    @property
    def probe_logits(self) -> Floats | None:
        """[N, C] as extract.py saved them; ``None`` with --probe none."""
        return self._features.probe("logits")

    def graph(self) -> Pass:
        """:attr:`now` with gradients from the logits to every layer's output."""
        return self._network.passed(self.layers, gradients=True)

    @property
    def last(self) -> str:
        """The readout: the layer that is called last."""
        return list(self.layers)[-1]

    def loss_gradient(self) -> Tensor:
        """∂L/∂f [N, C] of the probe batch, L being the loss of each example alone."""
        logits = self.now.logits.detach().requires_grad_()
        loss, targets = self._network.loss_and_targets
        (gradient,) = torch.autograd.grad(loss(logits, targets) * len(logits), [logits])
        return gradient

    def weight(self, layer: str) -> Tensor:
        """W_t of a layer."""
        return _weight(self.layers[layer]).detach()

    def initial(self, layer: str) -> Tensor:
        """W_0 of a layer."""
        return self._network.initial[layer][0]

    def moved(self, layer: str) -> Tensor:
        """ΔW = W_t − W_0 of a layer."""
        return self.weight(layer) - self.initial(layer)

    def own(self, layer: str) -> Tensor:
        """ΔW x_t: the part of a layer's change that its own weights make."""
        return apply(self.layers[layer], self.moved(layer), self.now.inputs[layer])

    @property
    def kernels(self) -> dict[str, Floats]:
        """[N, N] the traced tangent kernels of the layers' parameters at this step."""
        return dict(self._network.kernel_at.state(self._features).kernel.layers)

    @property
    def initial_kernels(self) -> dict[str, Floats]:
        """The same at step 0."""
        return dict(self._network.kernel_at.reference.kernel.layers)

    def weighted_kernel(self, factors: Mapping[str, float]) -> Floats:
        """[N, N] Σ_p s_p J_p J_pᵀ at this step, by the factors s_p of parameters."""
        kernel_at = self._network.kernel_at
        return as_floats(weighted_kernel(kernel_at.load(self._features), self.examples, factors))

    @property
    def examples(self) -> Tensor:
        """Those of kernels."""
        return self._network.kernel_at.batch[0]

    def lr_factors(self, layer: str) -> set[float]:
        """By what the parametrization multiplies the learning rates of a layer's parameters."""
        return self._network.lr_factors(layer)

    def bias(self, layer: str) -> Tensor | None:
        """Δb, the rest of a layer's change, [C, 1, …] as it is added; ``None`` without a bias."""
        module, (weight, before) = self.layers[layer], self._network.initial[layer]
        if before is None:
            return None
        assert isinstance(module.bias, Tensor)
        return (module.bias.detach() - before).reshape(-1, *(1,) * (weight.dim() - 2))


class Network:
    """A run's network, on its probe batch.

    Args:
        member: the run.
        config: the command line.

    Attributes:
        member: as given.
        model_at: gives the network the weights of a step.
        kernel_at: its tangent kernel.
    """

    def __init__(self, member: Member, config: CacheConfig):
        self.member, self._run = member, member.run
        self.model_at = ModelAt(member.run, dict(member.hyperparameters), config)
        said = dict(member.hyperparameters)
        same = config.model_copy(update=_KERNELS)
        self.kernel_at = EmpiricalKernelAt(member.run, said, same, _UNREAD, self.model_at)

    @contextmanager
    def at(self, step: int) -> Iterator[Checkpoint]:
        """The network at a step; raises ``Unreadable`` if its features are damaged."""
        with self._features(step) as features:
            yield Checkpoint(self, features)

    @contextmanager
    def _features(self, step: int) -> Iterator[StepFeatures]:
        path = self._run.fetch(self._run.features(step))
        with step_features(path, _UNREAD) as features:
            yield features

    @cached_property
    def inputs(self) -> Tensor:
        """The run's probe batch."""
        return self._probe("inputs").to(self.model_at.dtype)

    @cached_property
    def loss_and_targets(self) -> tuple[Loss, Tensor]:
        """The run's mean loss, and the targets of the probe batch."""
        targets = self._probe("targets")
        is_real = targets.is_floating_point()
        return self.model_at.loss, targets.to(self.model_at.dtype) if is_real else targets

    def _probe(self, what: str) -> Tensor:
        with open_hdf5(self._run.fetch(self._run.probe), AGAIN) as file:
            array = torch.from_numpy(file[what][()])
        return array.to(self.model_at.device)

    @cached_property
    def _beginning(self) -> tuple[dict[str, nn.Module], dict[str, Weights], Pass]:
        """The weight layers, their numbers at step 0, and what they do there."""
        with self._features(0) as features:
            model = self.model_at.load(features).model
        weighted: dict[str, nn.Module] = {
            name: module for name, module in model.named_modules() if isinstance(module, _WEIGHTED)
        }
        called = self.passed(weighted)
        if not called.outputs:
            raise UserError(f"{self._run.path}: the network has no linear or convolutional layers")
        layers = {name: weighted[name] for name in called.outputs}
        return layers, {name: _weights(layer) for name, layer in layers.items()}, called

    def lr_factors(self, layer: str) -> set[float]:
        """By what the parametrization multiplies the learning rates of a layer's parameters."""
        if self.model_at.scales is None:
            return {1.0}
        parameters = self.model_at.scales.parameters
        return {p.lr for p in parameters if layer in (p.name, p.name.rpartition(".")[0])}

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The weight layers, with the weights that were loaded last."""
        return self._beginning[0]

    @property
    def initial(self) -> dict[str, Weights]:
        """W_0 and b_0 by layer."""
        return self._beginning[1]

    @property
    def start(self) -> Pass:
        """What the network does at step 0."""
        return self._beginning[2]

    def passed(self, layers: dict[str, nn.Module], gradients: bool = False) -> Pass:
        """Send the probe batch through; with ``gradients``, the outputs are part of a graph."""
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        with torch.set_grad_enabled(gradients), _hooks(layers, inputs, outputs):
            logits = self.model_at.model(self.inputs)
        return Pass(inputs, outputs, logits)


def apply(layer: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
    """What a layer does to its inputs with another weight and without a bias.

    Args:
        layer: a weight layer, whose output is linear in its weight and in its inputs.
        weight: of the layer's shape.
        inputs: what it reads.
    """
    bias = getattr(layer, "bias", None)
    replaced = {"weight": weight} | ({} if bias is None else {"bias": torch.zeros_like(bias)})
    with torch.no_grad():
        outputs: Tensor = functional_call(layer, replaced, (inputs,))
    return outputs


@contextmanager
def _hooks(
    layers: dict[str, nn.Module], inputs: dict[str, Tensor], outputs: dict[str, Tensor]
) -> Iterator[None]:
    """Note what layers read and give when they are called first."""

    def hook(name: str) -> object:
        def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs.setdefault(name, args[0].detach().clone())
            outputs.setdefault(name, output)
            return output.clone()  # nonlinearities may work in place

        return note

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _weights(layer: nn.Module) -> Weights:
    bias = getattr(layer, "bias", None)
    return _weight(layer).detach().clone(), None if bias is None else bias.detach().clone()


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight
