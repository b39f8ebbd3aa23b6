"""The conservation observer: predicts every charge of a model while it trains.

It attaches to any optimizer through step hooks. Each step leaves a vector of reductions of
the update on the device; :meth:`ConservationObserver.record` brings them to the host and
advances, in float64, a few numbers per law (:mod:`Training.updates`).

Shape letters: K laws, F families of laws, T recorded steps, M members of an ensemble.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import vmap
from torch.optim import Optimizer

from Models.symmetry import Laws
from Training.discrete_laws import Coefficients
from Training.law_state import LawState
from Training.updates import updates_of
from Utils.devices import for_float64, full_products, to_host

_STATE = tuple(field.name for field in fields(LawState))

_WITH_MOMENTUM = frozenset(("velocity", "kinetic_velocity", "leak_velocity", "paper_rate"))
"""What is zero, and not saved, as long as there is no momentum."""

_WHILE_DIVERGING = np.errstate(over="ignore", invalid="ignore")
"""What numbers overflow in a run that diverges, the loss tells."""

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

_WITHOUT_LAWS = ("step", "time")
"""What is recorded where no law was looked for, or none could be found."""


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

    # ------------------------------------------------------------------ every record

    @_WHILE_DIVERGING
    def record(self, step: int) -> None:
        """Advance the predictions to the present weights and record them beside the charges.

        Synchronises with the device. A second call at the same step does nothing.

        Args:
            step: the number of updates done.
        """
        if step == self._recorded:
            return
        steps = [coefficients for coefficients, _ in self._pending]
        if steps:
            rows = to_host([row for _, row in self._pending]).numpy()
            self._updates.advance(self._state, steps, rows.astype(np.float64))
        self._pending.clear()
        compared: Mapping[str, Any] = {}
        if not self.laws.note:
            charges = self.laws.measure_with_sizes(self._weight)
            compared = self._state.compare(self.laws, *charges)
        self._enter(step, steps, compared)

    def _enter(
        self, step: int, steps: Sequence[list[Coefficients]], values: Mapping[str, Any]
    ) -> None:
        """Add to the record what has come of the steps since the last one."""
        self._recorded = step
        for coefficients in steps:
            self.time += coefficients[0].effective_lr
        for name, value in {"step": step, "time": self.time, **values}.items():
            self._record[name].append(value)

    @property
    def open(self) -> NDArray[np.bool_]:
        """Which laws' preconditions have held so far, [K]."""
        return self._state.open

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly, and the record since the last checkpoint.

        Returns:
            plain tensors: ``time``; ``record`` with ``step`` [T] and ``time`` [T]; and if laws were
            looked for the fields of :class:`LawState`, those about momentum only where there is
            some, the gates ``open`` [K] bool, and in the record per-family curves [T, F].
        """
        names = _WITHOUT_LAWS if self.laws.note else _RECORD
        record = {name: torch.from_numpy(np.array(self._record[name])) for name in names}
        whole = {"time": self.time, "last": self._recorded, "record": record}
        if self.laws.note:
            return whole
        arrays = {name: getattr(self._state, name) for name in _STATE}
        arrays = {n: a for n, a in arrays.items() if n not in _WITH_MOMENTUM or a.any()}
        arrays["open"] = self.open
        state = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return state | whole

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint, with an empty record."""
        for name in _STATE:
            getattr(self._state, name)[:] = state[name].numpy() if name in state else 0
        self.time, self._recorded = state["time"], state["last"]
        self._pending.clear()
        self.checkpointed()

    def checkpointed(self) -> None:
        """Start a new record: the last one is safe in a checkpoint."""
        self._record = {name: [] for name in _RECORD}


class EnsembleObserver:
    """What observers do, for several networks of one architecture that take their steps together.

    Args:
        observers: the networks' own, whose predictions it advances, and whose records it writes.
        alike: for each of them what is equal where the hyper-parameters of all steps are.
    """

    def __init__(self, observers: Sequence[ConservationObserver], alike: Sequence[Hashable]):
        self.laws = observers[0].laws
        self._updates = observers[0]._updates
        self._pending: list[tuple[Mapping[Hashable, list[Coefficients]], Tensor]] = []
        self._groups: dict[Hashable, tuple[list[int], list[ConservationObserver], LawState]] = {}
        for key in dict.fromkeys(alike):
            places = [place for place, other in enumerate(alike) if other == key]
            members = [observers[place] for place in places]
            state = LawState.of_all([member._state for member in members])
            self._groups[key] = (places, members, state)

    def note(self, coefficients: Mapping[Hashable, list[Coefficients]], rows: Tensor) -> None:
        """Account for a step that no hook saw.

        Args:
            coefficients: its hyper-parameters by parameter group, for each set of observers.
            rows: what :meth:`Training.updates.Updates.after` would have measured, [M, numbers].
        """
        self._pending.append((coefficients, rows))

    @_WHILE_DIVERGING
    def record(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """What :meth:`ConservationObserver.record` does, for all.

        Args:
            step: the number of updates done.
            weights: by parameter name, [M, ...].
        """
        reduced = vmap(lambda own: self.laws.reduced(own.__getitem__))(dict(weights)).cpu().numpy()
        rows = to_host([rows for _, rows in self._pending]).numpy().astype(np.float64)
        for key, (places, members, state) in self._groups.items():
            steps = [coefficients[key] for coefficients, _ in self._pending]
            self._updates.advance(state, steps, rows[:, places])
            values = state.compare(self.laws, *self.laws.combined(reduced[places]))
            for row, member in enumerate(members):
                member._enter(step, steps, {name: value[row] for name, value in values.items()})
        self._pending.clear()
