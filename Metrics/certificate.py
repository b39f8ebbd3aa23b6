"""Every law's symmetry, acted out: the network must not notice, its charge must.

Shape letters: N examples, C classes, K laws.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Context, Curves, Verdict
from Models.symmetry import Family
from Models.symmetry.actions import act, generators

Floats = NDArray[np.float64]

_TOLERANCE = 1e-3
"""What may change of the logits, and the largest leak, relative to their sizes."""

_CHARGE_TOLERANCE = 1e3
"""Charges move as stated up to so many machine epsilons of their size."""

_SMALL_GRADIENT = 0.1
"""Gradients below this part of the network's largest one count as if they were so large: those
that vanish (of a dead bias) are nothing but rounding, and no leak."""


@dataclass(frozen=True)
class Findings:
    """What the symmetry of one family was seen to do.

    Attributes:
        loss: |ΔL| / L.
        logits: largest |Δlogit| / largest |logit|; with cross-entropy, logits without their
            mean over the classes, which the loss does not see.
        charges: [units] after the move.
        stated: [units] what the move makes of the charges in closed form.
        sizes: [units] of the moved charges, without cancellation.
        leak: [units] |⟨θ, g⟩_S| / Σ|s θ g|, the change of the loss at first order.
    """

    loss: float
    logits: float
    charges: Floats
    stated: Floats
    sizes: Floats
    leak: Floats

    @property
    def astray(self) -> Floats:
        """[units] how far charges are from where they should be, relative to their size."""
        with np.errstate(invalid="ignore"):  # ∞ − ∞ of a network that has diverged
            apart = np.abs(self.charges - self.stated)
            return apart / np.where(self.sizes > 0, self.sizes, 1.0)


class Certificate(Curves):
    """Acts every family's symmetry out on the weights of each checkpoint."""

    def __init__(self, context: Context):
        super().__init__(context)
        self._laws = replace(context.laws, rates={})  # symmetries know of no learning rate
        self._source = ""
        self._findings: dict[str, Findings] = {}

    @property
    def settings(self) -> Mapping[str, int | str]:
        return {"examples": self.context.config.examples}

    def rows(self, features: StepFeatures) -> Arrays:
        """Per unit: the moved charge, its stated value and size, the leak; per layer: the rest."""
        epsilon, tolerance = np.array(self._epsilon), np.array(_TOLERANCE)
        curves: dict[str, Callable[[Findings], Floats]] = {
            "empirical": lambda found: found.charges,
            "exact": lambda found: found.stated,
            "size": lambda found: found.sizes,
            "leak": lambda found: found.leak,
            "logits": lambda found: np.array(found.logits),
            "loss": lambda found: np.array(found.loss),
            "rounding": lambda found: epsilon,
            "tolerance": lambda found: tolerance,
        }
        findings = self._found(features)
        return {
            f"{curve}/{name}": value(found)
            for curve, value in curves.items()
            for name, found in findings.items()
        }

    def verdicts(self, features: StepFeatures) -> Mapping[str, Verdict]:
        """Which units are certified at this checkpoint."""
        return {name: self._verdict(found) for name, found in self._found(features).items()}

    @property
    def _epsilon(self) -> float:
        """Of the run's number format."""
        return float(torch.finfo(self.context.model_at.dtype).eps)

    def _verdict(self, found: Findings) -> Verdict:
        # "not below" instead of "above": what is not finite is not certified
        astray = ~(found.astray <= _CHARGE_TOLERANCE * self._epsilon)
        leaking = ~(found.leak <= _TOLERANCE)
        unseen = found.logits <= _TOLERANCE
        count, reasons = len(found.leak), []
        if not unseen:
            reasons.append(f"logits move by {found.logits:.0e}")
        if leaking.any():
            reasons.append(f"leak {found.leak.max():.0e} in {leaking.sum()} of {count} laws")
        if astray.any():
            reasons.append(f"charges off by {found.astray.max():.0e} in {astray.sum()} of {count}")
        return Verdict(~astray & ~leaking & unseen, "; ".join(reasons))

    def _found(self, features: StepFeatures) -> dict[str, Findings]:
        """By family; kept for the verdict that is asked for after the rows."""
        if self._source != features.source:
            self._findings, self._source = self._examine(features), features.source
        return self._findings

    def _examine(self, features: StepFeatures) -> dict[str, Findings]:
        at, laws = self.context.model_at, self._laws
        at.load(features)
        logits = at.logits({})
        loss = at.loss(logits, at.batch[1])
        leak = self._leak(loss)
        loss, logits = loss.detach(), self._seen(logits.detach())
        parameters = {name: p.detach() for name, p in at.parameters.items()}
        findings = {}
        for family in laws.families:
            moved = act(laws, family, parameters, self._draws(family))
            there = parameters | moved.parameters
            charges, sizes = laws.measure_with_sizes(there.__getitem__)
            with torch.no_grad():
                new = at.logits(moved.parameters)
                change = (at.loss(new, at.batch[1]) - loss).abs() / loss.abs()
            findings[f"{family.kind} {family.layer}"] = Findings(
                float(change),
                float((self._seen(new) - logits).abs().max() / logits.abs().max()),
                charges[family.units],
                moved.charges,
                sizes[family.units],
                leak[family.units],
            )
        return findings

    def _seen(self, logits: Tensor) -> Tensor:
        """[N, C] what the loss sees of the logits."""
        cross_entropy = self.context.model_at.training.loss == "ce"
        return logits - logits.mean(1, keepdim=True) if cross_entropy else logits

    def _leak(self, loss: Tensor) -> Floats:
        """[K] |⟨θ, g⟩_S| / Σ|s θ g|, or |⟨c, g⟩| / Σ|c g|."""
        parameters, laws = self.context.model_at.parameters, self._laws
        gradients = {name: torch.zeros_like(p) for name, p in parameters.items()}
        names = [name for name, p in parameters.items() if p.requires_grad]
        found = torch.autograd.grad(loss, [parameters[n] for n in names], materialize_grads=True)
        gradients |= dict(zip(names, found, strict=True))
        weights = {name: p.detach() for name, p in parameters.items()}
        value, size = generators(laws, weights, gradients)
        ones = {name: torch.ones_like(p) for name, p in weights.items()}
        largest = max((float(g.abs().max()) for g in found if g.numel()), default=0.0)
        floor = _SMALL_GRADIENT * largest * generators(laws, weights, ones)[1]
        size = np.maximum(size, floor)
        leak: Floats = np.abs(value) / np.where(size > 0, size, 1.0)
        return leak

    def _draws(self, family: Family) -> np.random.Generator:
        """A stream of the run's seed and the family: the same group element at every step."""
        name = f"{family.kind} {family.layer}"
        return np.random.default_rng([self.context.seed, zlib.crc32(name.encode())])
