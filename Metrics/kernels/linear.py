"""What training would do to the outputs if the network were linear in its weights.

Three ways from the network at ``--reference``: *weights*, the linear model trained by the run's
own optimizer on the run's own batches; and, in function space, from the tangent kernel on
training examples, *descent*, full batches at the run's learning rates and momentum, and *flow*,
gradient flow.

Shape letters: N examples of the metrics, n training examples, C outputs.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from Metrics.config import CacheConfig
from Metrics.kernels.at import KernelAt, State, as_floats
from Metrics.kernels.measures import Floats
from Metrics.kernels.moving import Moving
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
from Utils.errors import UserError

WEIGHTS, DESCENT, FLOW = "weights", "descent", "flow"

_LARGEST_STIFF = 1500
"""Equations that the solver of gradient flow takes: its Jacobian is dense."""

_MATRICES = 4
"""Of the kernel's size, in float64, that its eigenvectors take to be found."""

Outputs = Mapping[int, Floats]
"""[N, C] by step."""


class Linear:
    """The linear model's outputs on the examples of the metrics, at the steps with features.

    Args:
        config: the command line.
        hyperparameters: the run's.
        model_at: how it was trained, and its training examples.
        kernel_at: its kernel, and the examples of the metrics.

    Attributes:
        moving: the kernel of the predictions in function space.
    """

    def __init__(
        self,
        config: CacheConfig,
        hyperparameters: Mapping[str, Any],
        model_at: ModelAt,
        kernel_at: KernelAt,
    ):
        self._config, self._hyperparameters = config, hyperparameters
        self._model_at, self._at = model_at, kernel_at
        self.moving = Moving(config, model_at, kernel_at)
        self._known: dict[str, Outputs] = {}

    def outputs(self, way: str, step: int) -> Floats | None:
        """[N, C] after so many updates; ``None`` before the reference, or where nothing is known.

        Args:
            way: "weights", "descent" or "flow".
            step: with features.
        """
        if step < self._start or self.why_not(way):
            return None
        if step not in self._known.get(way, {}):
            ways: dict[str, Callable[[list[int]], Outputs]] = {
                WEIGHTS: self._weights,
                DESCENT: self._descent,
                FLOW: self._flow,
            }
            steps = self._at.feature_steps()
            self._known[way] = ways[way]([s for s in steps if s >= self._start])
        return self._known[way][step]

    def with_weights(self, state: State) -> Floats:
        """[N, C] f_0 + J_0 (θ − θ_0) with the weights of the network at a step."""
        model = self._linearized
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state.parameters[name])
            return as_floats(model(self._at.batch[0]))

    def why_not(self, way: str) -> str:
        """Why there is no prediction of this way; empty if there is one."""
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
        """What the predictions of function space take; raises ``UserError`` if it is too much."""
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
        """In what the predictions of function space differ from the run, if in anything."""
        training, all_ = self._model_at.training, self._hyperparameters["task"]["train_size"]
        examples = len(self._sample[0])
        batch = self._model_at.schedule.phases[0].batch_size
        differences = [f"from {examples} of {all_} training examples"] if examples < all_ else []
        differences += [f"full batches instead of {batch}"] if batch < all_ else []
        differences += ["one kernel for all outputs"] if self._config.kernel == "traced" else []
        differences += ["unclipped"] if training.clip_norm and not self._clips else []
        return ", ".join(differences)

    @property
    def _start(self) -> int:
        return self._config.reference

    @property
    def _is_squared(self) -> bool:
        return self._model_at.training.loss == "mse"

    @property
    def _clips(self) -> bool:
        """Whether the steps' gradients have norms that are known: sᵀΘs of the plain kernel."""
        return not (self._is_squared or self.moving.is_weighted)

    @cached_property
    def _rules(self) -> list[Coefficients] | str:
        """The hyper-parameters of each step from the reference on, or why they do not suffice."""
        training, schedule = self._model_at.training, self._model_at.schedule
        if self._start and training.momentum:
            return f"the velocity is not zero at --reference {self._start}"
        if self._start >= schedule.total:
            return f"no step follows --reference {self._start}"
        try:
            return sgd_rules(training, schedule, self.moving.scales)[self._start :]
        except UserError as error:
            return str(error)

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
        """[n, C] of squared error, [n] of cross-entropy."""
        targets = self._sample[1].cpu()
        if self._is_squared and not targets.is_floating_point():
            outputs = self._at.targets.shape[1]
            targets = torch.nn.functional.one_hot(targets, outputs).double()
        return targets

    def _there(self, steps: list[int], path: Trajectory) -> Outputs:
        """The outputs of a trajectory on the metrics' examples."""
        _, _, start, radial = self._beginning
        found = path.at(self._kernels[1], start, radial)
        return {step: as_floats(f) for step, f in zip(steps, found, strict=True)}
