"""Angles by which scale-invariant groups of weights turn, and the equilibrium they tend to.

Shape letters: T checkpoints, D dense steps, U units of a layer, n either T or D.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from Metrics.budget import PARTS
from Metrics.charges import OfCharges
from Metrics.equilibrium import Equilibrium, decay, equilibrium
from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Context, Verdict
from Metrics.predictions import APART
from Models.symmetry import Family
from Training.config import TrainConfig
from Training.registry import SGDS

Floats = NDArray[np.float64]

_LEAK = 0.01
"""A broken scale symmetry counts where it has moved the norm by more than this part of what decay
and random walk have since the start: when learning rates and norms have fallen, and leaks of an ε
have grown, it is the larger part of what still happens."""


class Rotation(OfCharges):
    """Every family of scale laws: one group of weights per unit.

    ``rows`` and ``dense`` hold sums since the start of training; what happens per step follows
    from their differences (:meth:`derived`).
    """

    def __init__(self, context: Context):
        super().__init__(context.laws)
        self._context, self._laws = context, context.laws
        families = enumerate(context.laws.families)
        self._families = [(index, f) for index, f in families if f.kind == "scale"]
        self._counts: Floats | None = None  # the same at every checkpoint

    @property
    def settings(self) -> Mapping[str, int | str]:
        return {}

    def rows(self, features: StepFeatures) -> Arrays:
        """Per unit: |θ|², the angle turned so far, the squares of updates, how many weights."""
        if self._counts is None:
            shapes, one = features.parameters, torch.ones(())
            self._counts = replace(self._laws, rates={}).measure(
                lambda name: one.expand(shapes[name])
            )
        curves = {
            "turned": features.conservation("turned"),
            "square": features.charges[0],
            "kinetic": features.conservation("kinetic"),
            "weights": self._counts,
        }
        return {
            f"{name}/{family.layer}": values[family.units]
            for name, values in curves.items()
            for _, family in self._families
        }

    def dense(self, features: StepFeatures) -> Arrays:
        """Per layer: means over its units of the same."""
        record = features.record
        units = np.array([len(family) for family in self._laws.families])
        means = {
            "turned": record["turned"],
            "square": record["empirical"] / units,
            "kinetic": record["kinetic"] / units,
        }
        return {
            "dense/steps": record["step"].astype(np.int64),
            "dense/time": record["time"],
            **{
                f"dense/{name}/{family.layer}": values[:, index]
                for name, values in means.items()
                for index, family in self._families
            },
        }

    def derived(self, curves: Arrays) -> Arrays:
        """Angle per step since the row before, norm, effective learning rate, and predictions."""
        made: dict[str, Floats] = {}
        for _, family in self._families:
            weights = curves[f"weights/{family.layer}"][0].astype(float)
            for prefix, count in (("", weights), ("dense/", weights.mean())):
                turned, square, kinetic = (
                    curves[f"{prefix}{name}/{family.layer}"]
                    for name in ("turned", "square", "kinetic")
                )
                steps = curves[f"{prefix}steps"]
                values = self._per_step(steps, turned, square, kinetic, count)
                made |= {f"{prefix}{name}/{family.layer}": v for name, v in values.items()}
        return made

    def verdicts(self, features: StepFeatures) -> Mapping[str, Verdict]:
        """Whether there is an equilibrium to tend to, and the scale symmetry it needs."""
        return {f.layer: self._verdict(features, f) for _, f in self._families}

    def _verdict(self, features: StepFeatures, family: Family) -> Verdict:
        if isinstance(self._theory, str):
            return Verdict(np.zeros(len(family), bool), self._theory)
        spared = self._spared(features, family)
        if spared.any():
            reason = f"weight decay spares a part of {spared.sum()} of {len(family)} norms"
            return Verdict(~spared, reason)
        if self._config.optimizer not in SGDS:  # their leak tells nothing of the network
            return Verdict(np.ones(len(family), bool), "")
        decay, kinetic, leak = (np.abs(features.parts[name][family.units]) for name in PARTS)
        broken = ~(leak <= _LEAK * (decay + kinetic))
        apart = features.conservation("apart")[family.units].astype(bool)
        reasons = [f"leaks move {broken.sum()} of {len(family)} norms"] if broken.any() else []
        reasons += [APART] if apart.any() else []
        return Verdict(~broken & ~apart, "; ".join(reasons))

    def _spared(self, features: StepFeatures, family: Family) -> NDArray[np.bool_]:
        """Units in which weights that do not decay count."""
        if self._config.wd_on == "all":
            return np.zeros(len(family), bool)

        def vectors(name: str) -> torch.Tensor:
            weight = features.parameter(name)
            return weight if weight.dim() < 2 else torch.zeros_like(weight)

        spared = self._laws.measure(vectors)[family.units]
        counts: NDArray[np.bool_] = spared > _LEAK * features.charges[0][family.units]
        return counts

    @property
    def _config(self) -> TrainConfig:
        return self._context.model_at.training

    @cached_property
    def _theory(self) -> Equilibrium | str:
        if len(self._context.model_at.schedule.phases) > 1:
            return "the momentum is annealed"
        return equilibrium(self._config, self._context.model_at.scales)

    def _rates(self, steps: int) -> Floats:
        """[steps] the learning rates of the first updates."""
        schedule = self._context.model_at.schedule
        return np.array([schedule.lr(step) for step in range(steps)])

    def _per_step(
        self,
        steps: NDArray[np.int64],
        turned: Floats,
        square: Floats,
        kinetic: Floats,
        count: Floats | float,
    ) -> dict[str, Floats]:
        """What a step does, averaged over those since the row before, or since step 0.

        Args:
            steps: [n].
            turned, square, kinetic: [n] or [n, U].
            count: weights in a group, one number or [U].

        Returns:
            arrays like ``turned``; NaN at step 0, which no update precedes.
        """
        rates = self._rates(int(steps.max(initial=0)))
        column = (-1, *[1] * (turned.ndim - 1))
        gaps = np.diff(steps, prepend=0).reshape(column).astype(float)
        gaps[gaps == 0] = np.nan
        norm = np.sqrt(square)
        last = rates[np.maximum(steps, 1) - 1].reshape(column) if len(rates) else np.nan
        made = {
            "empirical": np.diff(turned, axis=0, prepend=0) / gaps,
            "norm": norm,
            "effective_lr": self._gain * last / norm**self._power,
        }
        theory = self._theory
        if isinstance(theory, str):
            return made
        wd = decay(self._config, self._context.model_at.scales)
        angles = np.array([theory.angle(rate, wd) for rate in rates])
        means = (_sums(angles, steps), _sums(rates, steps))
        angle, rate = (np.diff(x, prepend=0).reshape(column) / gaps for x in means)
        if theory.walk is None:
            before = np.concatenate([square[:1], square[:-1]])
            spread = np.diff(kinetic, axis=0, prepend=0) / gaps * (before + square) / 2
            balanced = np.sqrt(spread / (2 * rate * theory.gain * wd))
        else:
            balanced = rate * count * theory.walk / (2 * wd)
        predicted = {"theoretical": angle, "norm_equilibrium": np.sqrt(balanced)}
        return made | {name: np.broadcast_to(x, turned.shape) for name, x in predicted.items()}

    @property
    def _gain(self) -> float:
        """By how much momentum prolongs a step of SGD."""
        if self._config.optimizer not in SGDS:
            return 1.0
        return (1 - (self._config.dampening or 0.0)) / (1 - (self._config.momentum or 0.0))

    @property
    def _power(self) -> int:
        """The power of the norm by which an update of this length turns the weights less."""
        return 2 if self._config.optimizer in SGDS else 1


def _sums(values: Floats, steps: NDArray[np.int64]) -> Floats:
    """Sums of the first so many values."""
    sums: Floats = np.concatenate([[0.0], np.cumsum(values)])[steps]
    return sums
