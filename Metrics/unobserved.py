"""Predictions for runs of neural-mechanics, which recorded weights and buffers, but no charges.

Translation laws are closed: weights and hyper-parameters of the start tell them exactly. The
quadratic ones need squares of every update. Where ``custom_sgd`` kept their integrals, the
paper's curves follow, and without momentum and weight decay the discrete law with them, as both
are then q₀ + η²Σ|g|². What does not follow is closed, with the reason.

Shape letters: K laws, Q quadratic ones.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from Metrics.features import StepFeatures, step_features
from Metrics.predictions import Floats, Prediction
from Models.symmetry import Family, Laws
from Training.discrete_laws import Coefficients, linear_step, paper_linear_step
from Training.registry import SGDS
from Training.upstream import UPSTREAM, Phase, phases
from Training.upstream_integrals import paper_from_integral, paper_from_two_integrals
from Utils.errors import Unreadable
from Utils.rundir import RunFolder

_SAME_RATE = 1e-9
"""Recorded and scheduled hyper-parameters may differ so much, relatively."""

_START = np.ones(1), np.zeros(1), np.ones(1), np.zeros(1)
"""A linear charge of 1 and its velocity, by the discrete and by the paper's law."""

_ONLY = "neural-mechanics recorded no squared gradients: only custom_sgd's --save-buffers {} does"


class Unobserved:
    """Gives what can be predicted of a run's charges at its checkpoints.

    Everything is computed when it is first asked for.

    Args:
        run: the run's folder.
        laws: the run's.
        hyperparameters: translated ones (:mod:`Training.upstream`).
    """

    def __init__(self, run: RunFolder, laws: Laws, hyperparameters: Mapping[str, Any]):
        self._run, self._laws, self._hyperparameters = run, laws, hyperparameters
        self._quadratic = len(laws.quadratic)
        self._factors = _START
        self._reached = 0
        self._at_drops: dict[int, Floats | None] = {}
        self._last: tuple[Path, Prediction] | None = None

    def __call__(self, features: StepFeatures) -> Prediction:
        """The predictions at a checkpoint; kept until another is asked for."""
        if self._last is None or self._last[0] != features.path:
            self._last = features.path, self._predict(features)
        return self._last[1]

    def _predict(self, features: StepFeatures) -> Prediction:
        nothing = np.full(len(self._laws), np.nan)
        exact, paper = nothing.copy(), nothing.copy()
        never = why_not = self._never or self._contradiction(features.step)
        if not never:
            linear = slice(self._quadratic, None)
            exact_factor, paper_factor = self._linear_factors(features.step)
            exact[linear] = exact_factor * self._initial[linear]
            paper[linear] = paper_factor * self._initial[linear]
            with np.errstate(invalid="ignore", over="ignore"):  # of integrals that overflowed
                curve = self._quadratic_curve(features)
            if isinstance(curve, str):
                why_not = curve
            else:
                paper[: self._quadratic] = curve
                if not (self._first.wd or self._first.momentum):
                    exact[: self._quadratic] = curve
        known = np.isfinite(paper)

        def reason(family: Family) -> str:
            missing = int((~known[family.units]).sum())
            if not missing:
                return ""
            if family.kind == "translation":
                return never or f"not finite in {missing} of {len(family)} laws"
            overflown = f"the integrals overflowed in {missing} of {len(family)} laws"
            return why_not or overflown

        return Prediction(exact, paper, nothing, known, reason)

    # ------------------------------------------------------------------ preconditions

    @cached_property
    def _never(self) -> str:
        """Why nothing at all can be predicted of the run; empty if something can."""
        optimizer = self._hyperparameters["optimizer"]
        if optimizer not in SGDS:
            return f"{optimizer} has no law that follows from what was recorded"
        if self._hyperparameters[UPSTREAM]["annealed"]:
            return "train_annealed counted steps anew and changed hyper-parameters unrecorded"
        if self._charges_at_start is None:
            return "there are no features of step 0, from which predictions start"
        return ""

    @cached_property
    def _charges_at_start(self) -> Floats | None:
        """The charges [K] at step 0; ``None`` if it has no features."""
        try:
            with step_features(self._run.fetch(self._run.features(0)), self._laws) as features:
                return features.charges[0]
        except Unreadable:
            return None

    @property
    def _initial(self) -> Floats:
        assert self._charges_at_start is not None  # or nothing is predicted
        return self._charges_at_start

    def _contradiction(self, step: int) -> str:
        """What the checkpoints up to a step say against the schedule; empty if nothing."""
        return next((why for at, why in self._contradictions if at <= step), "")

    @cached_property
    def _contradictions(self) -> list[tuple[int, str]]:
        """Checkpoints that do not fit the schedule, the first of all in the order of steps."""
        found = []
        for step in self._run.feature_steps():
            try:
                with step_features(
                    self._run.fetch(self._run.features(step)), self._laws
                ) as features:
                    why = self._against(features)
            except Unreadable:  # the pass over the features reports it
                continue
            if why:
                found.append((step, why))
        return found

    def _against(self, features: StepFeatures) -> str:
        """Why a checkpoint cannot be of the run that ``hyperparameters.json`` describes."""
        step = features.step
        scheduled = next(p.coefficients for p in reversed(self._phases) if p.start < max(step, 1))
        update = features.conservation
        values = {
            "lr": scheduled.lr,
            "weight_decay": scheduled.wd,
            "momentum": scheduled.momentum,
            "nesterov": float(scheduled.nesterov),
        }
        if scheduled.momentum:
            values["dampening"] = scheduled.dampening
        for name, expected in values.items():
            value = float(update(f"update/{name}"))
            if abs(value - expected) > _SAME_RATE * abs(expected):
                return f"step {step} was made with {name} {value:g}, not {expected:g} as scheduled"
        per_epoch = self._hyperparameters["task"]["steps_per_epoch"]
        epoch, done = features.metric("epoch"), features.metric("step")
        at_its_end = not np.isnan(features.metric("test_loss"))
        low = per_epoch * (epoch + 1) if at_its_end else per_epoch * epoch + 1
        if done != step or (step > 0 and not low <= step <= per_epoch * (epoch + 1)):
            return f"step {step} in epoch {epoch:g} is not of {per_epoch} steps per epoch"
        return ""

    # ------------------------------------------------------------------ linear laws

    @cached_property
    def _phases(self) -> tuple[Phase, ...]:
        return phases(self._hyperparameters)

    def _linear_factors(self, step: int) -> tuple[float, float]:
        """What linear charges are multiplied with up to a step, exactly and by the paper.

        It is the same for all laws, as all parameters have the same hyper-parameters.
        """
        if step < self._reached:
            self._factors, self._reached = _START, 0
        nothing = np.zeros(1)
        s, p, u, rate = self._factors
        dampens = self._hyperparameters[UPSTREAM]["dampens_first_step"]
        for phase in self._phases:
            for k in range(max(phase.start, self._reached), int(min(phase.stop, step))):
                c = phase.coefficients
                if k == 0 and not dampens:
                    c = replace(c, first=bool(c.momentum))
                s, p = linear_step(s, p, c, nothing)
                u, rate = paper_linear_step(u, rate, c)
        self._factors, self._reached = (s, p, u, rate), step
        return float(s[0]), float(u[0])

    # ------------------------------------------------------------------ quadratic laws

    @property
    def _first(self) -> Coefficients:
        return self._phases[0].coefficients

    def _quadratic_curve(self, features: StepFeatures) -> Floats | str:
        """The paper's prediction of quadratic charges, [Q], or why there is none."""
        if features.step == 0:
            return self._initial[: self._quadratic]
        if self._first.momentum:
            return self._curve_with_momentum(features)
        if self._first.wd and float(features.conservation("update/dampening")):
            return "custom_sgd weighted its integral with a time that the dampening shortened"
        latest = self._charges_of(features, "integral_buffer")
        if latest is None:
            return _ONLY.format("sgd")
        curve, before = self._initial[: self._quadratic], np.zeros(self._quadratic)
        for phase in self._phases:
            steps = phase.steps(features.step)
            end = phase.start + steps
            if not steps:
                break
            integral = latest if end == features.step else self._at_drop(end)
            if integral is None:
                return f"there are no features of step {end}, where the learning rate drops"
            added, before = integral - before, integral
            curve = paper_from_integral(curve, added, phase.coefficients, phase.start, steps)
        return curve

    def _curve_with_momentum(self, features: StepFeatures) -> Floats | str:
        if self._first.nesterov:
            return "custom_sgd integrated Nesterov's steps, the law asks for velocities"
        if features.step > self._phases[0].stop:
            return f"custom_sgd kept the first learning rate after step {self._phases[0].stop}"
        one, two = (self._charges_of(features, f"integral_buffer_{i}") for i in (1, 2))
        if one is None or two is None:
            return _ONLY.format("mom")
        start = self._initial[: self._quadratic]
        return paper_from_two_integrals(start, one, two, self._first, features.step)

    def _at_drop(self, step: int) -> Floats | None:
        """``integral_buffer`` as charges, [Q], at an earlier step."""
        if step not in self._at_drops:
            try:
                with step_features(
                    self._run.fetch(self._run.features(step)), self._laws
                ) as features:
                    self._at_drops[step] = self._charges_of(features, "integral_buffer")
            except Unreadable:
                return None
        return self._at_drops[step]

    def _charges_of(self, features: StepFeatures, buffer: str) -> Floats | None:
        """What elements of integrated squares sum up to in each quadratic law, [Q]."""
        quadratic, kept = self._laws.quadratic, dict[str, Tensor]()
        for name in {reduction.parameter for reduction in quadratic.reductions}:
            value = features.buffer(name, buffer)
            if value is None:
                return None
            kept[name] = value.double()
        return quadratic.evaluate(kept.__getitem__)
