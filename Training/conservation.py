"""The conservation observer: predicts every charge of a model while it trains.

It attaches to a stock optimizer through step hooks. Each step leaves a vector of reductions of
the update on the device; :meth:`ConservationObserver.record` brings them to the host and
advances, in float64, a few numbers per law (:mod:`Training.discrete_laws`).

Shape letters: K laws, F families of laws, T recorded steps.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from Models.symmetry import Laws
from Training.discrete_laws import (
    Coefficients,
    Floats,
    linear_step,
    paper_linear_step,
    paper_quadratic_step,
    quadratic_step,
)

LEAK_TOLERANCE = 1e-3
"""A law's gate closes when the measured leak ⟨θ, g⟩_S has moved its charge by more than this,
relative to the charge's size: the parameters then have no such symmetry to speak of. Below it,
the leak (usually the ε of a normalisation, 1e-6 to 1e-4) is a measured source in the law."""

#: what is known of each law between steps, [K] each
_STATE = ("charge", "velocity", "leak", "leak_velocity", "paper", "paper_rate", "leak_peak")

#: the dense record: the time [T] and, summed over each family, [T, F]
_RECORD = ("step", "time", "empirical", "exact", "theoretical", "residual")

Tensors = Callable[[str], Tensor]
"""Gives a parameter-shaped tensor by the parameter's name."""


class ConservationObserver:
    """Exact and continuous predictions of a model's charges under ``torch.optim.SGD``.

    Args:
        model: the network being trained; at its present weights the predictions start.
        optimizer: its optimizer, before its first step.
        laws: the model's laws.

    Attributes:
        laws: as given.
        time: Σ η(1−α)/(1−β) over the steps taken, the time of gradient flow.
    """

    def __init__(self, model: nn.Module, optimizer: SGD, laws: Laws):
        self.laws = laws
        self.time = 0.0
        self._parameters = dict(model.named_parameters())
        self._mine, self._spanning = _groups(laws, self._parameters, optimizer)
        self._apart = np.zeros(len(laws), bool)
        charges = laws.measure(self._weight)
        self._state = {name: np.zeros(len(laws)) for name in _STATE}
        self._state |= {"charge": charges.copy(), "paper": charges.copy()}
        self._scratch: Tensor | None = None
        self._row: Tensor
        self._pending: list[tuple[list[Coefficients], Tensor]] = []
        self._record: dict[str, list[Any]] = {name: [] for name in _RECORD}
        self._recorded = -1
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    # ------------------------------------------------------------------ every step

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._coefficients = [_coefficients(optimizer, group) for group in optimizer.param_groups]
        c, gradient = self._coefficients[0], self._gradient
        pairs: list[tuple[Tensors, Tensors]] = [(self._weight, gradient)]
        if c.nesterov:  # both v' and u follow from g, which the optimizer may overwrite
            v = lru_cache(1)(lambda name: self._next_buffer(optimizer, c, name))
            u = lru_cache(1)(lambda name: self._decayed(c, name).add_(v(name), alpha=c.momentum))
            pairs += [(v, v), (u, u), (u, v)]
        elif c.momentum == 0:
            pairs += [(gradient, gradient)]
        leak, *squares = self._products(pairs)
        linear_leak = [r(gradient(r.parameter)) for r in self.laws.linear.reductions]
        self._row = _joined([*leak, *linear_leak, *(part for form in squares for part in form)])

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        c = self._coefficients[0]
        if c.momentum and not c.nesterov:

            def v(name: str) -> Tensor:
                buffer: Tensor = optimizer.state[self._parameters[name]]["momentum_buffer"]
                return buffer

            self._row = _joined([self._row, *self._products([(v, v)])[0]])
        self._pending.append((self._coefficients, self._row))

    def _products(self, pairs: list[tuple[Tensors, Tensors]]) -> list[list[Tensor]]:
        """The quadratic charges' reductions of ``left * right``, for each pair."""
        rows: list[list[Tensor]] = [[] for _ in pairs]
        for name, same in groupby(self.laws.quadratic.reductions, lambda r: r.parameter):
            reductions = list(same)
            for (left, right), parts in zip(pairs, rows, strict=True):
                x, y = left(name), right(name)
                keeps = reductions[0].kind == "element"  # its reduction is the product itself
                product = x * y if keeps else torch.mul(x, y, out=self._scratch_like(x))
                parts += [reduction(product) for reduction in reductions]
        return rows

    def _scratch_like(self, x: Tensor) -> Tensor:
        """One buffer for all products: fresh memory for each would cost more than the product."""
        if self._scratch is None:
            largest = max(p.numel() for p in self._parameters.values())
            self._scratch = torch.empty(largest, dtype=x.dtype, device=x.device)
        return self._scratch[: x.numel()].view(x.shape)

    def _weight(self, name: str) -> Tensor:
        return self._parameters[name].detach()

    def _gradient(self, name: str) -> Tensor:
        gradient = self._parameters[name].grad
        return torch.zeros_like(self._weight(name)) if gradient is None else gradient

    def _decayed(self, c: Coefficients, name: str) -> Tensor:
        """d = g + λθ."""
        return self._gradient(name).add(self._weight(name), alpha=c.wd)

    def _next_buffer(self, optimizer: Optimizer, c: Coefficients, name: str) -> Tensor:
        """v' = βv + a d."""
        old: Tensor | None = optimizer.state[self._parameters[name]].get("momentum_buffer")
        d = self._decayed(c, name)
        return d if old is None else torch.add(old * c.momentum, d, alpha=c.gain)

    # ------------------------------------------------------------------ every record

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
        np.maximum(state["leak_peak"], np.abs(state["leak"]) / size, out=state["leak_peak"])
        residual = np.where(self.open, np.abs(measured - state["charge"]) / size, 0.0)
        starts = [family.start for family in self.laws.families]
        values: dict[str, Any] = {"step": step, "time": self.time}
        for name, curve in (
            ("empirical", measured),
            ("exact", state["charge"]),
            ("theoretical", state["paper"]),
        ):
            values[name] = np.add.reduceat(curve, starts) if starts else np.zeros(0)
        values["residual"] = np.maximum.reduceat(residual, starts) if starts else np.zeros(0)
        for name, value in values.items():
            self._record[name].append(value)

    @property
    def open(self) -> NDArray[np.bool_]:
        """Which laws' preconditions have held so far, [K]."""
        return (self._state["leak_peak"] <= LEAK_TOLERANCE) & ~self._apart

    def _advance(self) -> None:
        """Take the laws through the steps since the last record."""
        if not self._pending:
            return
        rows = torch.stack([row for _, row in self._pending]).double().cpu().numpy()
        widths = [self.laws.quadratic.matrix.shape[1], self.laws.linear.matrix.shape[1]]
        for (coefficients, _), row in zip(self._pending, rows, strict=True):
            count = 3 if coefficients[0].nesterov else 1
            quadratic_leak, linear_leak, *forms = _split(row, widths, count)
            leak = np.concatenate(
                [self.laws.quadratic.matrix @ quadratic_leak, self.laws.linear.matrix @ linear_leak]
            )
            squares = [self.laws.quadratic.matrix @ form for form in forms]
            for index, c in enumerate(coefficients):
                self._step_group(index, c, leak, squares)
            self._apart |= self._spanning & (len(set(coefficients)) > 1)
            self.time += coefficients[0].effective_lr
        self._pending.clear()

    def _step_group(self, index: int, c: Coefficients, leak: Floats, squares: list[Floats]) -> None:
        """Advance the laws of one parameter group by one step."""
        q, s = self._mine[index]
        state = self._state
        vv, uu, uv = (form[q] for form in (squares if len(squares) == 3 else squares * 3))
        still = np.zeros_like(vv)
        for charge, velocity, forced, crossed in (
            ("charge", "velocity", uu, uv),
            ("leak", "leak_velocity", still, still),
        ):
            state[charge][q], state[velocity][q] = quadratic_step(
                state[charge][q], state[velocity][q], c, forced, crossed, leak[q]
            )
            state[charge][s], state[velocity][s] = linear_step(
                state[charge][s], state[velocity][s], c, leak[s]
            )
        state["paper"][q], state["paper_rate"][q] = paper_quadratic_step(
            state["paper"][q], state["paper_rate"][q], c, vv
        )
        state["paper"][s], state["paper_rate"][s] = paper_linear_step(
            state["paper"][s], state["paper_rate"][s], c
        )

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly, and the record since the last checkpoint.

        Returns:
            plain tensors: the laws' state [K], their gates ``open`` [K] bool, ``time``, and
            ``record`` with ``step`` [T], ``time`` [T] and per-family curves [T, F].
        """
        state = {name: torch.from_numpy(self._state[name].copy()) for name in _STATE}
        record = {name: torch.from_numpy(np.array(values)) for name, values in self._record.items()}
        extra = {"open": torch.from_numpy(self.open), "apart": torch.from_numpy(self._apart.copy())}
        return {**state, **extra, "time": self.time, "last": self._recorded, "record": record}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint, with an empty record."""
        self._state = {name: state[name].numpy().copy() for name in _STATE}
        self._apart = state["apart"].numpy().copy()
        self.time, self._recorded = state["time"], state["last"]
        self._pending.clear()
        self.checkpointed()

    def checkpointed(self) -> None:
        """Start a new record: the last one is safe in a checkpoint."""
        self._record = {name: [] for name in _RECORD}


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0)


def _coefficients(optimizer: Optimizer, group: dict[str, Any]) -> Coefficients:
    """The hyper-parameters with which a group takes its next step."""
    state = optimizer.state
    fresh = not any("momentum_buffer" in state[p] for p in group["params"] if p in state)
    return Coefficients(
        float(group["lr"]),
        group["weight_decay"],
        group["momentum"],
        group["dampening"],
        group["nesterov"],
        first=bool(group["momentum"]) and fresh,
    )


def _groups(
    laws: Laws, parameters: dict[str, nn.Parameter], optimizer: Optimizer
) -> tuple[list[tuple[Any, Any]], NDArray[np.bool_]]:
    """Which quadratic and linear laws each parameter group has, and which laws [K] span several."""
    count = len(laws.quadratic)
    owner = {id(p): i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
    group, spanning = np.zeros(len(laws), np.int64), np.zeros(len(laws), bool)
    for family in laws.families:
        groups = [owner.get(id(parameters[name]), -1) for name in family.parameters]
        group[family.units], spanning[family.units] = groups[0], len(set(groups)) > 1
    if len(optimizer.param_groups) == 1:
        return [(slice(0, count), slice(count, None))], spanning
    places = np.arange(len(laws))
    members = (places[group == i] for i in range(len(optimizer.param_groups)))
    return [(m[m < count], m[m >= count]) for m in members], spanning


def _split(row: Floats, widths: list[int], forms: int) -> list[Floats]:
    """Cut a step's row into the leaks [quadratic, linear] and ``forms`` quadratic forms."""
    return np.split(row, np.cumsum([*widths, *[widths[0]] * forms])[:-1])
