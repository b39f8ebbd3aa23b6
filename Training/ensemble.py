"""Runs of one network that differ in seeds and learning rate, trained together in one process.

Small networks cost more in calls than in numbers. Here each call does its work for all members:
batches, gradients, the steps of SGD, and what the conservation observer measures and predicts of
them. Everything else is each member's own, as are the files: checkpoint, journal, schedule, order
of the data. A member can be continued alone, and members that stand at the same step together.

Sums of products are taken in another order than by each network alone, so that weights are equal
to rounding, not bit for bit: in float64 within 1e-9 of their size after some dozens of steps.

Shape letters: M members.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from math import isclose
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import Optimizer

from Data import DATASETS
from Data.batches import next_of_each
from Models.symmetry import Laws
from Training.backends import start
from Training.backends.backend import Backend
from Training.config import TrainConfig
from Training.conservation import EnsembleObserver
from Training.discrete_laws import Coefficients
from Training.folder import WITHOUT_EFFECT
from Training.interruption import Interruption
from Training.law_groups import rates_of_groups
from Training.law_state import joined
from Training.loop import Trainer
from Training.registry import SGDS
from Training.run import Beginning, prepare
from Training.state import TrainingState
from Training.updates import coefficients_of
from Utils.errors import UserError
from Utils.logging import progress
from Utils.rundir import RunFolder
from Utils.seeds import stream_seed

MAY_DIFFER = frozenset({"seed", "init_seed", "lr"})
"""Flags in which runs that are trained together may differ, besides those without effect."""

Weights = Mapping[str, Tensor]
"""By parameter name; [M, *shape] for all members, [*shape] within ``vmap``."""


def why_not(configs: Sequence[TrainConfig]) -> str:
    """Why runs cannot be trained together; empty if they can, as far as their flags tell."""
    first = configs[0]
    flat = [config.flat() for config in configs]
    for name in flat[0].keys() - MAY_DIFFER - WITHOUT_EFFECT:
        if any(other[name] != flat[0][name] for other in flat):
            return f"--{name.replace('_', '-')} differs; only --seed, --init-seed and --lr may"
    options = {
        "--optimizer": first.optimizer not in SGDS,
        "--nesterov": first.nesterov,
        "--wd-on": first.wd_on != "all",
        "--clip-norm": first.clip_norm is not None,
        "--save-buffers": bool(first.save_buffers),
        "--schedule": first.anneal_steps > 1,
        "--tpu": first.tpu is not None,
        "--compile": first.compile,
        "--precision": first.precision != "full",
        "--overwrite": any(config.overwrite for config in configs),
    }
    return next((f"{flag} is not for several at once" for flag, bad in options.items() if bad), "")


class Stack:
    """The weights and momentum buffers of all members, [M, …]; each member's are views of them.

    Args:
        states: of the members, after their checkpoints were loaded.
        loss: of logits and targets.

    Raises:
        UserError: networks with running statistics or dropout, or parameters whose steps differ by
            more than the factor of a parametrization.
    """

    def __init__(self, states: Sequence[TrainingState], loss: Callable[..., Any]):
        self._states, self._model = states, states[0].model
        if any(True for _ in self._model.buffers()):
            raise UserError(
                "networks with buffers (batch normalisation) cannot be trained together"
            )
        if any(isinstance(m, nn.Dropout) and m.p > 0 for m in self._model.modules()):
            raise UserError("networks with dropout cannot be trained together")
        optimizer = states[0].optimizer
        groups = optimizer.param_groups
        self._momentum, self._gain = groups[0]["momentum"], 1 - groups[0]["dampening"]
        self._group = {
            name: index for index, group in enumerate(groups) for name in group["param_names"]
        }
        self._factors = rates_of_groups(
            states[0].observer.laws, dict(self._model.named_parameters()), optimizer
        )
        first, *others = self._coefficients(optimizer)
        if not all(other.is_like(first) and isclose(other.wd, first.wd) for other in others):
            raise UserError(
                "parameters whose weight decay or first steps have factors of their own cannot be "
                "trained together"
            )
        self._rates = [state.optimizer.param_groups[0]["initial_lr"] for state in states]
        self._observer = EnsembleObserver([state.observer for state in states], self._rates)
        parameters = [dict(state.model.named_parameters()) for state in states]
        self._weights: dict[str, Tensor] = {}
        self._velocities: dict[str, Tensor] = {}
        for name in parameters[0]:
            own = [each[name] for each in parameters]
            self._weights[name] = torch.stack([p.detach() for p in own])
            held = [
                s.optimizer.state.get(p, {}).get("momentum_buffer")
                for s, p in zip(states, own, strict=True)
            ]
            if all(buffer is not None for buffer in held):
                self._velocities[name] = torch.stack(held)
            for parameter, weight in zip(own, self._weights[name], strict=True):
                parameter.data = weight
        self._share_velocities()
        for state in states:  # else schedulers warn that the optimizer has not moved yet
            state.optimizer._opt_called = True  # type: ignore[attr-defined]

        def value(weights: Weights, inputs: Tensor, targets: Tensor) -> Tensor:
            result: Tensor = loss(functional_call(self._model, dict(weights), (inputs,)), targets)
            return result

        self._losses = vmap(value)
        self._measure = vmap(lambda *parts: _row(states[0].observer.laws, *parts))

    def _share_velocities(self) -> None:
        """Let the members' optimizers, and so their checkpoints, have their buffers."""
        for k, state in enumerate(self._states):
            for name, parameter in state.model.named_parameters():
                if name in self._velocities:
                    state.optimizer.state[parameter]["momentum_buffer"] = self._velocities[name][k]

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Take one step of SGD with every member, and tell their observers.

        Args:
            inputs: a batch for each, [M, B, …].
            targets: likewise.

        Returns:
            their losses before it, [M].
        """
        optimizers = [state.optimizer for state in self._states]
        coefficients = {
            rate: self._coefficients(optimizer)
            for rate, optimizer in dict(zip(self._rates, optimizers, strict=True)).items()
        }
        gradients, losses = self._gradients(inputs, targets)
        updates = self._updates(gradients)
        squared = updates if self._momentum else gradients
        rows = self._measure(self._weights, gradients, squared)
        lrs = torch.tensor(
            [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers],
            dtype=torch.float64,
        )
        for name, weight in self._weights.items():
            each = lrs[:, self._group[name]].to(weight).view(-1, *[1] * (weight.dim() - 1))
            weight.sub_(updates[name] * each)
        self._observer.note(coefficients, rows)
        return losses

    def _coefficients(self, optimizer: Optimizer) -> list[Coefficients]:
        """Of a member's next step, as laws know it, by parameter group."""
        groups = zip(optimizer.param_groups, self._factors, strict=True)
        return [coefficients_of(optimizer, group).with_rate(s) for group, s in groups]

    def record(self, step: int) -> None:
        """Have the observers of all members record a step."""
        self._observer.record(step, self._weights)

    def _gradients(self, inputs: Tensor, targets: Tensor) -> tuple[Weights, Tensor]:
        leaves = {name: weight.detach().requires_grad_() for name, weight in self._weights.items()}
        losses: Tensor = self._losses(leaves, inputs, targets)
        found = torch.autograd.grad(
            losses.sum(), list(leaves.values())
        )  # half of vmap(grad)'s time
        return dict(zip(leaves, found, strict=True)), losses.detach()

    def _updates(self, gradients: Weights) -> Weights:
        """What is subtracted, up to the learning rate, as ``torch.optim.SGD`` has it."""
        groups = self._states[0].optimizer.param_groups
        wds = {name: groups[index]["weight_decay"] for name, index in self._group.items()}
        decayed = {
            name: gradient.add(self._weights[name], alpha=wds[name]) if wds[name] else gradient
            for name, gradient in gradients.items()
        }
        if not self._momentum:
            return decayed
        if not self._velocities:
            self._velocities = {name: d.clone() for name, d in decayed.items()}
            self._share_velocities()
        else:
            for name, velocity in self._velocities.items():
                velocity.mul_(self._momentum).add_(decayed[name], alpha=self._gain)
        return self._velocities


def _row(laws: Laws, weights: Weights, gradients: Weights, squared: Weights) -> Tensor:
    """What :class:`Training.updates.SGDUpdates` measures of a step where all have one s λ."""
    quadratic, linear = laws.quadratic.reductions, laws.linear.reductions
    leak = [r.form(weights[r.parameter], gradients[r.parameter]) for r in quadratic]
    linear_leak = [r(gradients[r.parameter]) for r in linear]
    squares = [r.form(squared[r.parameter], squared[r.parameter]) for r in quadratic]
    return joined([*leak, *linear_leak, *laws.scaled(quadratic, squares, 1)])


class _Member(Trainer):
    """One of the runs.

    Attributes:
        outcome: the exit code, or what was wrong; ``None`` while it goes on.
    """

    outcome: int | UserError | None = None

    def note(self, loss: Tensor) -> None:
        """What a run's own loop does after every step."""
        self.state.advance()
        self.state.losses.add(loss)

    def pause(self, due: tuple[bool, bool, bool], stopped_by: int) -> None:
        """What a run's own loop does where something is due; an error ends this member alone."""
        if self.outcome is not None:
            return
        epoch_ends, observes, saves = due
        try:
            with self._noted():
                self._pause(epoch_ends, observes, saves or stopped_by > 0)
            if self.state.step == self.total:
                self.recorder.finish()
                self.outcome = 0
            elif stopped_by:
                self.outcome = self._stop(stopped_by)
        except UserError as error:
            self.outcome = error

    def _save(self, metrics: dict[str, float]) -> None:
        # The process's generators are the last member's; without dropout none has drawn from it.
        self.state.backend.seed(stream_seed(self.config.seed, "dropout"))
        super()._save(metrics)


def train_together(
    configs: Sequence[TrainConfig], runs: Sequence[RunFolder]
) -> list[int | UserError]:
    """Begin or continue runs together; the files are those of :func:`Training.run.train`.

    Args:
        configs: of the runs, for which :func:`why_not` has no objection.
        runs: their folders.

    Returns:
        for each run its exit code, or what was wrong with it alone.

    Raises:
        UserError: what is wrong with all, or they stand at different steps.
    """
    if reason := why_not(configs):
        raise UserError(f"these runs cannot be trained together: {reason}")
    with start(configs[0]) as backend, ExitStack() as held:
        beginnings = _beginnings(backend, configs, runs, held)
        members = []
        for config, beginning in zip(configs, beginnings, strict=True):
            state, keeper = beginning.state, beginning.keeper
            recorder, test = keeper.recorder(state, beginning.is_new), beginning.dataset.test
            members.append(_Member(config, state, test, recorder, keeper.log))
            if beginning.is_new:
                members[-1].begin()
        if len({member.state.step for member in members}) > 1:
            raise UserError("these runs stand at different steps; continue each alone")
        _fit(members)
        return [0 if member.outcome is None else member.outcome for member in members]


def _beginnings(
    backend: Backend,
    configs: Sequence[TrainConfig],
    runs: Sequence[RunFolder],
    held: ExitStack,
) -> list[Beginning]:
    """All members' beginnings; the first one's laws, and data if they are no run's own, serve."""
    found: list[Beginning] = []
    drawn = DATASETS[configs[0].dataset].procedural and len({c.seed for c in configs}) > 1
    for config, run in zip(configs, runs, strict=True):
        like = found[0] if found and not drawn else None
        found.append(prepare(backend, config, nullcontext(run), held, like, bool(found)))
    return found


def _fit(members: Sequence[_Member]) -> None:
    """Train to the end, or until a signal comes."""
    states = [member.state for member in members]
    backend, batches = states[0].backend, [state.batches for state in states]
    for state in states:
        state.model.train()
    stack, total = Stack(states, members[0].loss_function), members[0].total
    save_steps, steps = members[0].config.save_steps(total), range(states[0].step + 1, total + 1)
    with Interruption() as interruption:
        for step in progress(steps, "training"):
            losses = stack.step(*backend.place(*next_of_each(batches)))
            stopped_by = interruption.received or 0
            for member, loss in zip(members, losses, strict=True):
                member.note(loss)
            due = members[0].due(save_steps)  # for all alike
            if any(due) or stopped_by:
                stack.record(step)
                for member in members:
                    member.pause(due, stopped_by)
            if all(member.outcome is not None for member in members):
                return
