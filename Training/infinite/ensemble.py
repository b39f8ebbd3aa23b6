"""How the outputs of infinitely wide networks spread over their initial weights, during training.

With squared error f_t = f_0 + Θ(x, X) B_t (y − f_0(X)), where f_0 ~ GP(0, K), and B_t [N, N]
follows from the run's own steps: b = B_t y is linear in the targets. So f_t is Gaussian, with the
run's outputs for its mean and the variance (Lee et al. 2019, arXiv 1902.06720, equation 16)

    K(x, x) − 2 A K(X, x) + A K(X, X) Aᵀ,    A = Θ(x, X) B_t.

Shape letters: N training examples, P others, C outputs, B examples of a batch.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from Data import load_dataset
from Training.config import TrainConfig
from Training.discrete_laws import linear_step
from Training.function_space import Modes, batch_numbers, sgd_rules
from Training.infinite.kernels import Prior
from Training.schedule import Schedule


class Variance(Protocol):
    """How outputs spread during training."""

    def __call__(self, step: int) -> Tensor:
        """[P], after ``step`` steps."""

    def of_losses(self, step: int) -> float:
        """By how much the mean training loss is above that of the mean outputs."""


class NoVariance:
    """Of networks that begin at f = 0 and follow one kernel, under any loss.

    Args:
        examples: P.
    """

    def __init__(self, examples: int):
        self._examples = examples

    def __call__(self, step: int) -> Tensor:
        """0 at every step."""
        return torch.zeros(self._examples, dtype=torch.float64)

    def of_losses(self, step: int) -> float:
        """0."""
        return 0.0


class EnsembleVariance:
    """The variance of every output at some examples, after any of a run's steps.

    The steps of a run with mini-batches are taken again, |B| N² each, from the last one asked for.

    Args:
        config: the run's configuration.
        kernel: Θ(X, X) [N, N].
        cross: Θ(x, X) [P, N].
        prior: K.
        outputs: C.
    """

    def __init__(
        self, config: TrainConfig, kernel: Tensor, cross: Tensor, prior: Prior, outputs: int
    ):
        self._config, self._kernel, self._outputs = config, kernel.double(), outputs
        self._cross = cross.double()
        self._prior = Prior(*(part.double() for part in vars(prior).values()))
        self._schedule = Schedule(config, len(kernel))
        self._modes = Modes.of(kernel) if config.optimizer == "flow" else None
        self._step, self._solvers = -1, self._replayed()
        self._of_batches: dict[int, float] = {}

    def __call__(self, step: int) -> Tensor:
        """[P], after ``step`` steps."""
        weights = self._cross @ self._solver(step)
        mixed = (weights * self._prior.probe).sum(1)
        own = ((weights @ self._prior.train) * weights).sum(1)
        return (self._prior.probe_variance - 2 * mixed + own).clamp(min=0)  # but for rounding

    def of_losses(self, step: int) -> float:
        """By how much the ensemble's mean training loss is above that of its mean outputs.

        A mean square is that of the mean, plus the variance: here of each batch's outputs before
        its step, in the mean over the steps of the epoch that has ended after ``step`` ones. NaN
        under gradient flow, which finite networks do not follow.
        """
        if self._modes is not None:
            return float("nan")
        steps = self._schedule.steps_of(self._schedule.epoch(step - 1))
        if step - 1 not in self._of_batches:
            self._solver(step)
        return float(np.mean([self._of_batches[s] for s in steps]))

    def _solver(self, step: int) -> Tensor:
        """B_t."""
        if self._modes is not None:
            gain = self._modes.gain(sum(map(self._schedule.lr, range(step))), self._w)
            return (self._modes.vectors * gain) @ self._modes.vectors.T
        if step <= self._step:
            self._solvers = self._replayed()
        for reached, solver in self._solvers:
            self._step = reached
            if reached == step:
                return solver
        raise ValueError(f"the run has no step {step}")

    @property
    def _w(self) -> float:
        """∂L/∂f = w (f − y) of the whole training set."""
        return 2 / (len(self._kernel) * self._outputs)

    def _replayed(self) -> Iterator[tuple[int, Tensor]]:
        """After each step, from 0 on, B_t: b for the targets 1 [N, N]."""
        config, schedule, kernel = self._config, self._schedule, self._kernel
        solver, velocity, fresh = torch.zeros_like(kernel), torch.zeros_like(kernel), True
        yield 0, solver
        data = load_dataset(config.dataset, config.data_dir, config.seed, **config.data_options)
        batches = batch_numbers(config, schedule, data.train)
        rules = sgd_rules(config, schedule)
        for step, (rule, batch) in enumerate(zip(rules, batches, strict=True), start=1):
            residual = kernel[batch] @ solver
            residual[torch.arange(len(batch)), batch] -= 1
            variance = ((residual @ self._prior.train) * residual).sum(1)
            self._of_batches[step - 1] = float(variance.mean())
            slope = 2 / (len(batch) * self._outputs) * residual
            gradient = torch.zeros_like(solver).index_copy_(0, batch, slope)
            rule = replace(rule, first=fresh and rule.momentum > 0)
            solver, velocity = linear_step(solver, velocity, rule, gradient)
            fresh = fresh and not rule.first
            yield step, solver
