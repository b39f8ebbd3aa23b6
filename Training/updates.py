"""What an optimizer's steps do to charges: measured in two hooks, accounted for on the host.

Each step leaves one vector of reductions on the device. Under ``torch.optim.SGD`` these are the
squares that the exact law asks for (:mod:`Training.discrete_laws`). For any other optimizer no
closed law exists; there the weights before and after the step are compared
(:mod:`Training.measured_updates`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from Models.symmetry import Laws, Reduction
from Training.discrete_laws import (
    Coefficients,
    Floats,
    linear_step,
    paper_linear_step,
    paper_quadratic_step,
    quadratic_step,
)
from Training.law_groups import LawGroups
from Training.law_state import LawState, angle, joined, split
from Training.measured_updates import MeasuredUpdates

Tensors = Callable[[str], Tensor]
"""Gives a parameter-shaped tensor by the parameter's name."""


class Updates(Protocol):
    """Measures the steps of one kind of optimizer, and takes laws through them."""

    def before(self, optimizer: Optimizer) -> None:
        """Measure what is gone after the step."""

    def after(self, optimizer: Optimizer) -> tuple[list[Coefficients], Tensor]:
        """The step's hyper-parameters by parameter group, and its measurements on the device."""

    def advance(self, state: LawState, steps: Sequence[list[Coefficients]], rows: Floats) -> None:
        """Take the laws through steps, of which ``rows`` [T, numbers] were measured.

        Under SGD with one parameter group also those of an ensemble: states [M, ...], rows
        [T, M, numbers].
        """


def updates_of(optimizer: Optimizer, parameters: dict[str, nn.Parameter], laws: Laws) -> Updates:
    """What measures the steps of an optimizer.

    Args:
        optimizer: any.
        parameters: by name; what the laws are about.
        laws: the model's.
    """
    if isinstance(optimizer, SGD):
        return SGDUpdates(optimizer, parameters, laws)
    return MeasuredUpdates(optimizer, parameters, laws)


class SGDUpdates:
    """Squares of the gradient or update of ``torch.optim.SGD``, and its leaks ⟨θ, g⟩."""

    def __init__(self, optimizer: Optimizer, parameters: dict[str, nn.Parameter], laws: Laws):
        self._laws, self._parameters = laws, parameters
        self._groups = LawGroups(laws, parameters, optimizer)
        self._products = _Products(laws.quadratic.reductions, parameters)
        self._guests = _Products(self._groups.quadratic.reductions, parameters)
        self._coefficients: list[Coefficients]
        self._row: Tensor

    def before(self, optimizer: Optimizer) -> None:
        self._coefficients = [coefficients_of(optimizer, group) for group in optimizer.param_groups]
        weight, gradient = self._weight, self._gradient
        pairs: list[tuple[Tensors, Tensors]] = [(weight, gradient)]
        if _ahead(self._coefficients):  # the optimizer may overwrite g, from which v' and u follow
            v = lru_cache(1)(lambda name: self._next_buffer(optimizer, name))
            u = lru_cache(1)(lambda name: self._next_update(v, name))
            pairs += [(v, v), (u, u), (u, v)]
        elif not any(c.momentum for c in self._coefficients):
            pairs += [(gradient, gradient)]
        leak, *squares = self._products(pairs)
        linear_leak = [r(gradient(r.parameter)) for r in self._laws.linear.reductions]
        (guests,) = self._guests([(weight, weight)])
        guests += [r(weight(r.parameter)) for r in self._groups.linear.reductions]
        of_guests = (*self._groups.quadratic.reductions, *self._groups.linear.reductions)
        guests = self._laws.scaled(of_guests, guests, -1)
        parts = (part for form in squares for part in self._of_gradients(form))
        self._row = joined([*leak, *linear_leak, *guests, *parts])

    def after(self, optimizer: Optimizer) -> tuple[list[Coefficients], Tensor]:
        c = self._coefficients
        if any(each.momentum for each in c) and not _ahead(c):

            def v(name: str) -> Tensor:
                buffer: Tensor | None
                buffer = optimizer.state[self._parameters[name]].get("momentum_buffer")
                return self._gradient(name) if buffer is None else buffer

            self._row = joined([self._row, *self._of_gradients(self._products([(v, v)])[0])])
        return [each.with_rate(s) for each, s in zip(c, self._groups.rates, strict=True)], self._row

    def _of_gradients(self, form: list[Tensor]) -> list[Tensor]:
        return self._laws.scaled(self._laws.quadratic.reductions, form, 1)

    def _weight(self, name: str) -> Tensor:
        return self._parameters[name].detach()

    def _gradient(self, name: str) -> Tensor:
        gradient = self._parameters[name].grad
        return torch.zeros_like(self._weight(name)) if gradient is None else gradient

    def _rule(self, name: str) -> Coefficients:
        """With which a parameter is updated; any where it is not."""
        return self._coefficients[self._groups.of_parameter.get(name, 0)]

    def _decayed(self, name: str) -> Tensor:
        """d = g + λθ."""
        return self._gradient(name).add(self._weight(name), alpha=self._rule(name).wd)

    def _next_buffer(self, optimizer: Optimizer, name: str) -> Tensor:
        """v' = βv + a d; without momentum g, whose square the law then asks for."""
        c = self._rule(name)
        if not c.momentum:
            return self._gradient(name)
        old: Tensor | None = optimizer.state[self._parameters[name]].get("momentum_buffer")
        d = self._decayed(name)
        return d if old is None else torch.add(old * c.momentum, d, alpha=c.gain)

    def _next_update(self, v: Tensors, name: str) -> Tensor:
        """u = d + βv' with Nesterov, else v'."""
        c = self._rule(name)
        return self._decayed(name).add_(v(name), alpha=c.momentum) if c.nesterov else v(name)

    def advance(self, state: LawState, steps: Sequence[list[Coefficients]], rows: Floats) -> None:
        quadratic, linear = self._laws.quadratic, self._laws.linear
        guests, linear_guests = self._groups.quadratic, self._groups.linear
        numbers = [charges.matrix.shape[1] for charges in (quadratic, linear)]
        widths = [*numbers, guests.width, linear_guests.width]
        count = 3 if _ahead(steps[0]) else 1
        parts = split(rows, [*widths, *[widths[0]] * count])
        quadratic_leaks, linear_leaks, theta2s, thetas, *forms = parts
        # One product for all steps: a call costs as much as what it works out.
        parts = [quadratic.combined(quadratic_leaks), linear.combined(linear_leaks)]
        leaks = np.concatenate(parts, axis=-1)
        squares = [quadratic.combined(form) for form in forms] * (3 // count)
        for t, coefficients in enumerate(steps):
            pull = np.concatenate(
                [guests.pull(theta2s[t], coefficients), linear_guests.pull(thetas[t], coefficients)]
            )
            extra = guests.squares(theta2s[t], quadratic_leaks[t], coefficients)
            for (q, s), c in zip(self._groups.members, coefficients, strict=True):
                vv, uu, uv = (form[t][..., q] for form in squares)
                leak = leaks[t]
                _advance_quadratic(state, q, c, (vv, uu, uv), leak[..., q], (pull[q], extra[q]))
                _advance_linear(state, s, c, leak[..., s], pull[s])
            state.apart |= self._groups.apart(coefficients)


def _ahead(coefficients: list[Coefficients]) -> bool:
    """Whether the next updates are worked out before the step, as u and v' may differ."""
    return any(c.nesterov for c in coefficients)


def _advance_quadratic(
    state: LawState,
    q: Any,
    c: Coefficients,
    squares: tuple[Floats, Floats, Floats],
    leak: Floats,
    guests: tuple[Floats, Floats],
) -> None:
    """Take quadratic laws through a step; the decay is what the other parts leave.

    Args:
        state: of all laws.
        q: the places of those to advance.
        c: their coefficients.
        squares: ⟨v', v'⟩_S, ⟨u, u⟩_S and ⟨u, v'⟩_S.
        leak: ⟨θ, g⟩_S.
        guests: what differing weight decay adds to the leak, and to the square of a gradient.
    """
    (vv, uu, uv), free, none = squares, replace(c, wd=0.0), np.zeros_like(leak)
    source, whole = leak + guests[0], uu if c.momentum else uu + guests[1]
    before = state.charge[..., q].copy()
    state.charge[..., q], state.velocity[..., q] = quadratic_step(
        before, state.velocity[..., q], c, whole, uv, source
    )
    state.kinetic[..., q], state.kinetic_velocity[..., q] = quadratic_step(
        state.kinetic[..., q], state.kinetic_velocity[..., q], free, uu, uv, none
    )
    state.leak[..., q], state.leak_velocity[..., q] = quadratic_step(
        state.leak[..., q], state.leak_velocity[..., q], free, none, none, leak
    )
    state.paper[..., q], state.paper_rate[..., q] = paper_quadratic_step(
        state.paper[..., q], state.paper_rate[..., q], c, vv, guests[0]
    )
    moved = c.lr * c.lr * (whole if c.momentum else whole + c.wd * (2 * source + c.wd * before))
    state.turned[..., q] += angle(before, state.charge[..., q], moved)


def _advance_linear(state: LawState, s: Any, c: Coefficients, leak: Floats, pull: Floats) -> None:
    """Take linear laws through a step; the decay is what the leak leaves."""
    state.charge[..., s], state.velocity[..., s] = linear_step(
        state.charge[..., s], state.velocity[..., s], c, leak + pull
    )
    state.leak[..., s], state.leak_velocity[..., s] = linear_step(
        state.leak[..., s], state.leak_velocity[..., s], replace(c, wd=0.0), leak
    )
    state.paper[..., s], state.paper_rate[..., s] = paper_linear_step(
        state.paper[..., s], state.paper_rate[..., s], c, pull
    )


class _Products:
    """A quadratic form of every law, up to the combination of its reductions."""

    def __init__(self, reductions: Sequence[Reduction], parameters: dict[str, nn.Parameter]):
        self._reductions = reductions
        self._largest = max((p.numel() for p in parameters.values()), default=0)
        self._scratch: Tensor | None = None

    def __call__(self, pairs: Iterable[tuple[Tensors, Tensors]]) -> list[list[Tensor]]:
        """The reductions of ``left * right``, for each pair."""
        pairs = list(pairs)
        rows: list[list[Tensor]] = [[] for _ in pairs]
        for (name, gram), same in groupby(self._reductions, lambda r: (r.parameter, r.is_gram)):
            reductions = list(same)
            for (left, right), parts in zip(pairs, rows, strict=True):
                x, y = left(name), right(name)
                if gram:
                    parts += [reduction.form(x, y) for reduction in reductions]
                    continue
                # of an element, the reduction is the product itself
                keeps = reductions[0].kind == "element" or x.device.type != "cpu"
                product = x * y if keeps else torch.mul(x, y, out=self._scratch_like(x))
                parts += [reduction(product) for reduction in reductions]
        return rows

    def _scratch_like(self, x: Tensor) -> Tensor:
        """One buffer for all products: fresh memory for each would cost a CPU more than they."""
        if self._scratch is None:
            self._scratch = torch.empty(self._largest, dtype=x.dtype, device=x.device)
        return self._scratch[: x.numel()].view(x.shape)


def coefficients_of(optimizer: Optimizer, group: dict[str, Any]) -> Coefficients:
    """The hyper-parameters with which a group of SGD takes its next step."""
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
