"""A network's empirical tangent kernel at a checkpoint."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from Metrics.features import StepFeatures
from Metrics.kernels.activity import Activity, activity
from Metrics.kernels.at import PLAIN, Kernel, KernelAt, State, as_floats
from Metrics.kernels.measures import traced
from Metrics.kernels.reference import unsettled
from Metrics.model_at import INSTEAD, load_weights
from Metrics.tangent import forecast, tangent_kernel
from Metrics.tangent.network import Network
from Training.rebuild import rebuild_model
from Utils.errors import Unreadable


class EmpiricalKernelAt(KernelAt):
    """Of a run's network in evaluation mode.

    Batch normalisation uses its running statistics and dropout is off: in training mode the
    examples of a batch would depend on each other, and a kernel of pairs would not exist.
    """

    _loaded = ""

    @property
    def normalisation(self) -> str:
        return Network(self.model).normalisation

    @property
    def is_exact(self) -> bool:
        return bool(self.targets.shape[1] == 1)

    @property
    def formula(self) -> str:
        return PLAIN

    @cached_property
    def model(self) -> nn.Module:
        """The network in evaluation mode; its weights are those of the last step asked for."""
        model = rebuild_model(self.run, self._hyperparameters, INSTEAD)
        return model.to(self._at.device, self.dtype).eval()

    def load(self, features: StepFeatures) -> nn.Module:
        """The network with the weights and running statistics of a step."""
        if self._loaded != features.source:
            load_weights(self.model, features.model_state(), features)
            self._loaded = features.source
        return self.model

    def forecast(self, steps: int) -> str:
        inputs, form = self.batch[0], self._config.kernel
        one = forecast(self.model, inputs, form=form, per_layer=True)
        examples = f"{len(inputs)} example{'s' * (len(inputs) > 1)}"
        what = f"{form} tangent kernels of {examples}, {steps} checkpoint{'s' * (steps > 1)}"
        return self.within_memory(what, steps * one.seconds, one.bytes_ + self._stored(steps))

    def unsettled(self, step: int) -> list[str]:
        try:
            with self.features_of(step) as features:
                return unsettled(self.model, features.model_state(), step, self.feature_steps())
        except Unreadable:
            return []  # which is told when its turn comes

    def _compute(self, features: StepFeatures) -> State:
        model, inputs = self.load(features), self.batch[0]
        found = tangent_kernel(model, inputs, form=self._config.kernel, per_layer=True)
        layers = {name: traced(_array(part)) for name, part in found.layers.items()}
        with torch.no_grad():
            logits = as_floats(model(inputs))
        parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        kernel = Kernel(_array(found.total), layers)
        return State(features.step, logits, kernel, parameters, buffers)

    def activity(self, state: State) -> Activity:
        """What the network's inside does on the examples."""
        return activity(self.model, {**state.parameters, **state.buffers}, self.batch[0])

    def restored(self, state: State) -> nn.Module:
        """The network with the weights and running statistics of a state."""
        self._loaded = ""
        self.model.load_state_dict({**state.parameters, **state.buffers}, strict=False)
        return self.model


def _array(tensor: Tensor) -> NDArray[np.floating]:
    array: NDArray[np.floating] = tensor.detach().cpu().numpy()
    return array
