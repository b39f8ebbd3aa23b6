"""What the linear model of a network with weights does, by three ways.

Shape letters: N examples of the metrics, n training examples, C outputs.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from Metrics.config import CacheConfig
from Metrics.kernels.at import State, as_floats
from Metrics.kernels.empirical import EmpiricalKernelAt
from Metrics.kernels.linear import DESCENT, FLOW, WEIGHTS, Linear, Outputs
from Metrics.kernels.measures import Floats
from Metrics.kernels.replay import train_linear
from Metrics.model_at import ModelAt
from Metrics.tangent import forecast
from Training.discrete_laws import Coefficients
from Training.function_space import (
    LinearizedModel,
    SquaredError,
    Trajectory,
    gradient_flow,
    sgd_rules,
    stretches,
    train_on_batches,
)

_LARGEST_STIFF = 1500
"""Equations that the solver of gradient flow takes: its Jacobian is dense."""

_MATRICES = 4
"""Of the kernel's size, in float64, that its eigenvectors take to be found."""


class LinearNetwork(Linear):
    """Of a network with weights: from its kernel on a sample of the training examples.

    Args:
        config: the command line.
        hyperparameters: the run's.
        model_at: how it was trained, and its training examples.
        kernel_at: its kernel, and the examples of the metrics.
    """

    def __init__(
        self,
        config: CacheConfig,
        hyperparameters: Mapping[str, Any],
        model_at: ModelAt,
        kernel_at: EmpiricalKernelAt,
    ):
        super().__init__(config, hyperparameters, model_at, kernel_at)
        self._at = kernel_at

    def _follow(self, way: str, steps: list[int]) -> Outputs:
        ways: dict[str, Callable[[list[int]], Outputs]] = {
            WEIGHTS: self._weights,
            DESCENT: self._descent,
            FLOW: self._flow,
        }
        return ways[way](steps)

    def with_weights(self, state: State) -> Floats:
        """[N, C] f_0 + J_0 (θ − θ_0) with the weights of the network at a step."""
        model = self._linearized
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state.parameters[name])
            return as_floats(model(self._at.batch[0]))

    def why_not(self, way: str) -> str:
        if way == WEIGHTS:
            return ""
        if isinstance(self._rules, str):
            return self._rules
        if way == FLOW and not self._is_squared:
            equations = self._sample[0].shape[0] * self._at.targets.shape[1]
            if equations > _LARGEST_STIFF:
                return f"gradient flow of cross-entropy: {equations} equations are too many"
        return ""

    def forecast(self) -> list[str]:
        if self.why_not(DESCENT):
            return []
        form, inputs = self._config.kernel, self._sample[0]
        size = len(inputs) * (self._at.targets.shape[1] if form == "full" else 1)
        cost = forecast(self._at.model, inputs, form=form)
        what = f"{form} tangent kernel of {len(inputs)} training examples"
        needed = cost.bytes_ + _MATRICES * 8 * size**2
        return [self._at.within_memory(what, cost.seconds, needed)]

    @property
    def remark(self) -> str:
        training, all_ = self._model_at.training, self._hyperparameters["task"]["train_size"]
        examples = len(self._sample[0])
        batch = self._model_at.schedule.phases[0].batch_size
        differences = [f"from {examples} of {all_} training examples"] if examples < all_ else []
        differences += [f"full batches instead of {batch}"] if batch < all_ else []
        differences += ["one kernel for all outputs"] if self._traces else []
        differences += ["unclipped"] if training.clip_norm and not self._clips else []
        return ", ".join(differences)

    @property
    def _clips(self) -> bool:
        """Whether the steps' gradients have norms that are known: sᵀΘs of the plain kernel."""
        return not (self._is_squared or self.moving.is_weighted)

    @cached_property
    def _rules(self) -> list[Coefficients] | str:
        """The hyper-parameters of each step from the reference on, or why they do not suffice."""
        training, schedule = self._model_at.training, self._model_at.schedule
        if reason := self._late():
            return reason
        if reason := self.moving.why_not:
            return f"training in function space: {reason}"
        return sgd_rules(training, schedule, self.moving.scales)[self._start :]

    @property
    def _traces(self) -> bool:
        """Whether the kernels between outputs are left out."""
        return self._config.kernel == "traced" and not self._at.is_exact

    @cached_property
    def _sample(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the training examples whose kernel moves the outputs."""
        inputs, targets = self._model_at.batch
        targets = targets.double() if targets.is_floating_point() else targets
        return inputs.to(self._at.dtype), targets

    @cached_property
    def _linearized(self) -> LinearizedModel:
        return LinearizedModel(self._at.restored(self._at.reference))

    @cached_property
    def _kernels(self) -> tuple[Tensor, Tensor]:
        """Θ of the sample, and Θ between the metrics' examples and the sample."""
        if self._config.kernel_on == "train":
            total = torch.from_numpy(self.moving.kernel(self._at.reference))
            return total, total
        model, sample = self._at.restored(self._at.reference), self._sample[0]
        own = self.moving.of(model, sample)
        cross = self.moving.of(model, self._at.batch[0], sample)
        return own.cpu(), cross.cpu()

    @cached_property
    def _beginning(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """f_0 and Jθ_0, [n, C] of the sample and [N, C] of the metrics' examples."""
        assert not isinstance(self._rules, str)
        model = self._at.restored(self._at.reference)
        inputs = self._sample[0], self._at.batch[0]
        with torch.no_grad():
            f, f_there = (model(x).double().cpu() for x in inputs)
        if any(rule.wd for rule in self._rules):
            z, z_there = (self._linearized.radial(x).double().cpu() for x in inputs)
        else:  # nothing pulls along it, and a network that lacks the derivative can be predicted
            z, z_there = torch.zeros_like(f), torch.zeros_like(f_there)
        return f, z, f_there, z_there

    def _weights(self, steps: list[int]) -> Outputs:
        def logits(model: torch.nn.Module) -> Floats:
            with torch.no_grad():
                return as_floats(model(self._at.batch[0]))

        model = LinearizedModel(self._at.restored(self._at.reference))
        task = self._hyperparameters["task"]
        return train_linear(self._model_at, task, model, self._at.run, steps, logits)

    def _descent(self, steps: list[int]) -> Outputs:
        assert not isinstance(self._rules, str)
        start, radial, *_ = self._beginning
        own, targets, times = self._kernels[0], self._targets, [s - self._start for s in steps]
        if self._is_squared:
            closed = SquaredError(own, start, targets, radial=radial)
            return self._there(steps, closed.descent(stretches(self._rules), times))
        loss, everything = self._model_at.loss, torch.arange(len(start))
        count = max(times, default=0)
        path = train_on_batches(
            own,
            start,
            targets,
            loss,
            self._rules[:count],
            [everything] * count,
            times,
            radial,
            self._model_at.training.clip_norm if self._clips else None,
        )
        return self._there(steps, path)

    def _flow(self, steps: list[int]) -> Outputs:
        assert not isinstance(self._rules, str)
        start, radial, *_ = self._beginning
        own, targets, decay = self._kernels[0], self._targets, self._rules[0].wd
        sums = np.cumsum([0.0, *(rule.effective_lr for rule in self._rules)])
        times = [float(sums[step - self._start]) for step in steps]
        if self._is_squared:
            path = SquaredError(own, start, targets, radial=radial).flow(times, decay)
        else:
            loss = self._model_at.loss
            path = gradient_flow(own, start, targets, loss, times, decay, radial)
        return self._there(steps, path)

    @cached_property
    def _targets(self) -> Tensor:
        return self._wanted(self._sample[1])

    def _there(self, steps: list[int], path: Trajectory) -> Outputs:
        """The outputs of a trajectory on the metrics' examples."""
        _, _, start, radial = self._beginning
        found = path.at(self._kernels[1], start, radial)
        return {step: as_floats(f) for step, f in zip(steps, found, strict=True)}
