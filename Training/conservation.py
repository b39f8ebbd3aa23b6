"""The conservation observer: predicts every charge of a model while it trains.

It attaches to any optimizer through step hooks. Each step leaves a vector of reductions of
the update on the device; :meth:`ConservationObserver.record` brings them to the host and
advances, in float64, a few numbers per law (:mod:`Training.updates`).

Shape letters: K laws, F families of laws, T recorded steps.
"""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from Models.symmetry import Laws
from Training.discrete_laws import Coefficients, Floats
from Training.law_state import LawState
from Training.updates import updates_of
from Utils.devices import for_float64, full_products, to_host

LEAK_TOLERANCE = 1e-3
"""A law's gate closes when the measured leak ⟨θ, g⟩_S has added more than this to its charge,
relative to the charge's size, and more than a twentieth of what decay and the squares of updates
have: the parameters then have no such symmetry to speak of. Below it, the leak (usually the ε of
a normalisation) is a measured source in the law."""

_TRANSPORT = 50
"""A leak of LEAK_TOLERANCE times this is a twentieth."""

_STATE = tuple(field.name for field in fields(LawState))

_WITH_MOMENTUM = frozenset(("velocity", "kinetic_velocity", "leak_velocity", "paper_rate"))
"""What is zero, and not saved, as long as there is no momentum."""

#: the dense record: the time [T] and, per family, [T, F]
_RECORD = (
    "step",
    "time",
    "empirical",
    "exact",
    "theoretical",
    "decay",
    "kinetic",
    "leak",
    "residual",
    "turned",
)


class ConservationObserver:
    """Predictions of a model's charges, and the account of what has changed them.

    Args:
        model: the network being trained; at its present weights the predictions start.
        optimizer: its optimizer, before its first step.
        laws: the model's laws.

    Attributes:
        laws: as given.
        time: of gradient flow, Σ η(1−α)/(1−β) over the steps taken; Σ η for other optimizers
            than SGD.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, laws: Laws):
        self.laws = laws
        self.time = 0.0
        self._parameters = dict(model.named_parameters())
        self._updates = updates_of(optimizer, self._parameters, laws)
        self._state = LawState.at(laws.measure(self._weight), len(laws.quadratic))
        self._leak_peak = np.zeros(len(laws), np.float32)
        self._pending: list[tuple[list[Coefficients], Tensor]] = []
        self._record: dict[str, list[Any]] = {name: [] for name in _RECORD}
        self._recorded = -1
        optimizer.register_step_pre_hook(lambda o, *_: self._before(o))
        optimizer.register_step_post_hook(lambda o, *_: self._after(o))

    @full_products()
    def _before(self, optimizer: Optimizer) -> None:
        self._updates.before(optimizer)

    @full_products()
    def _after(self, optimizer: Optimizer) -> None:
        self._pending.append(self._updates.after(optimizer))

    def _weight(self, name: str) -> Tensor:
        return for_float64(self._parameters[name].detach())

    def note(self, coefficients: list[Coefficients], row: Tensor) -> None:
        """Account for a step that no hook saw, as several networks took it together.

        Args:
            coefficients: its hyper-parameters by parameter group.
            row: what :meth:`Training.updates.Updates.after` would have measured.
        """
        self._pending.append((coefficients, row))

    # ------------------------------------------------------------------ every record

    @np.errstate(over="ignore", invalid="ignore")  # in a run that diverges, which its loss tells
    def record(self, step: int) -> None:
        """Advance the predictions to the present weights and record them beside the charges.

        Synchronises with the device. A second call at the same step does nothing.

        Args:
            step: the number of updates done.
        """
        if step == self._recorded:
            return
        self._recorded = step
        self._advance()
        state = self._state
        measured, size = self.laws.measure_with_sizes(self._weight)
        size = np.where(size > 0, size, 1.0)
        moved = np.abs(state.decay) + np.abs(state.kinetic)
        peak = (np.abs(state.leak) / np.maximum(size, _TRANSPORT * moved)).astype(np.float32)
        np.maximum(self._leak_peak, peak, out=self._leak_peak)
        residual = np.where(self.open, np.abs(measured - state.charge) / size, 0.0)
        turned = np.zeros(len(self.laws))
        turned[: len(state.turned)] = state.turned
        sums = {
            "empirical": measured,
            "exact": state.charge,
            "theoretical": state.paper,
            "decay": state.decay,
            "kinetic": state.kinetic,
            "leak": state.leak,
        }
        values: dict[str, Any] = {"step": step, "time": self.time}
        values |= {name: self._by_family(np.add, curve) for name, curve in sums.items()}
        values["residual"] = self._by_family(np.maximum, residual)
        values["turned"] = self._by_family(np.add, turned) / self._units
        for name, value in values.items():
            self._record[name].append(value)

    def _by_family(self, combine: np.ufunc, values: Floats) -> Floats:
        """[K] -> [F]."""
        starts = [family.start for family in self.laws.families]
        return combine.reduceat(values, starts) if starts else np.zeros(0)

    @property
    def _units(self) -> list[int]:
        return [len(family) for family in self.laws.families]

    @property
    def open(self) -> NDArray[np.bool_]:
        """Which laws' preconditions have held so far, [K]."""
        return (self._leak_peak <= LEAK_TOLERANCE) & ~self._state.apart

    def _advance(self) -> None:
        """Take the laws through the steps since the last record."""
        if not self._pending:
            return
        rows = to_host([row for _, row in self._pending]).numpy()
        steps = [coefficients for coefficients, _ in self._pending]
        self._updates.advance(self._state, steps, rows.astype(np.float64))
        for coefficients in steps:
            self.time += coefficients[0].effective_lr
        self._pending.clear()

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly, and the record since the last checkpoint.

        Returns:
            plain tensors: the fields of :class:`LawState`, those about momentum only where
            there is some; ``leak_peak`` [K] float32, the largest relative leak seen; the gates
            ``open`` [K] bool; ``time``; and ``record`` with ``step`` [T], ``time`` [T] and
            per-family curves [T, F].
        """
        arrays = {name: getattr(self._state, name) for name in _STATE}
        arrays = {n: a for n, a in arrays.items() if n not in _WITH_MOMENTUM or a.any()}
        arrays |= {"leak_peak": self._leak_peak, "open": self.open}
        record = {name: torch.from_numpy(np.array(values)) for name, values in self._record.items()}
        state = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return {**state, "time": self.time, "last": self._recorded, "record": record}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint, with an empty record."""
        for name in _STATE:
            getattr(self._state, name)[:] = state[name].numpy() if name in state else 0
        self._leak_peak = state["leak_peak"].numpy().copy()
        self.time, self._recorded = state["time"], state["last"]
        self._pending.clear()
        self.checkpointed()

    def checkpointed(self) -> None:
        """Start a new record: the last one is safe in a checkpoint."""
        self._record = {name: [] for name in _RECORD}
