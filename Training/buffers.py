"""Parameter-sized buffers of every step, for any optimizer: what ``--save-buffers`` keeps.

Two hooks on the optimizer hand the gradient, the velocity or the update of each step to the
functions of the registry (:data:`Training.registry.BUFFERS`). The tensors are the buffers' own:
none is shared with the optimizer or with ``p.grad``.

The integrals ``sgd`` and ``mom`` hold, for every single weight, what the square of the gradient
or velocity adds to the paper's prediction of θ² (:mod:`Training.discrete_laws`): a prediction is
the free decay of the charge at the start plus the law's own combination of the integrals. They
are float64 whatever the run's precision: in float32, 1 − 2ηλ would be off by up to 6e-8 / 2ηλ of
the decay, and late, small squares would be lost beside early, large ones.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from Training.discrete_laws import Coefficients, paper_quadratic_step
from Training.measured_updates import decoupled_wd
from Training.registry import BUFFERS, BufferEntry
from Training.updates import coefficients_of


class StepBuffers:
    """The buffers that a run saves; none, and no hooks, without names.

    Args:
        model: the network being trained.
        optimizer: its optimizer.
        names: entries of :data:`Training.registry.BUFFERS`.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, names: tuple[str, ...]):
        entries = [BUFFERS[name] for name in dict.fromkeys(names)]
        self._entries = [(entry, entry.load()) for entry in entries]
        self._parameters = dict(model.named_parameters()) if names else {}
        self._held: dict[str, dict[str, Tensor]] = {name: {} for name in self._parameters}
        self._old: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            for entry in entries:
                if entry.accumulates:
                    zeros = torch.zeros_like(parameter, dtype=torch.float64)
                    self._held[name] |= {tensor: zeros.clone() for tensor in entry.tensors}
        if self._entries:
            optimizer.register_step_pre_hook(lambda o, *_: self._before(o))
            optimizer.register_step_post_hook(lambda o, *_: self._after(o))

    def _before(self, optimizer: Optimizer) -> None:
        """Take what the step may destroy: gradients (Nesterov's do not survive it) and weights."""
        self._coefficients = _by_parameter(optimizer)
        for entry, function in self._entries:
            for name, parameter in self._parameters.items():
                if entry.of == "gradient":
                    gradient = parameter.grad
                    x = torch.zeros_like(parameter) if gradient is None else gradient
                    self._keep(entry, function, name, x.detach())
                elif entry.of == "update":
                    self._old[name] = parameter.detach().clone()

    def _after(self, optimizer: Optimizer) -> None:
        for entry, function in self._entries:
            for name, parameter in self._parameters.items():
                if entry.of == "velocity":
                    velocity = optimizer.state[parameter].get("momentum_buffer")
                    x = torch.zeros_like(parameter.detach()) if velocity is None else velocity
                    self._keep(entry, function, name, x)
                elif entry.of == "update":
                    self._keep(entry, function, name, parameter.detach() - self._old.pop(name))

    def _keep(
        self, entry: BufferEntry, function: Callable[..., tuple[Tensor, ...]], name: str, x: Tensor
    ) -> None:
        held, c = self._held[name], self._coefficients[id(self._parameters[name])]
        before = [held[tensor] for tensor in entry.tensors] if entry.accumulates else []
        held.update(zip(entry.tensors, function(x, c, *before), strict=True))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The tensors by the parameter's and their own names; those of no step, before one."""
        return {name: dict(tensors) for name, tensors in self._held.items()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue from a checkpoint of a run with the same names."""
        for name, parameter in self._parameters.items():
            self._held[name] = {k: t.to(parameter.device) for k, t in state[name].items()}


def _by_parameter(optimizer: Optimizer) -> dict[int, Coefficients]:
    """The hyper-parameters of the next step, by the ``id`` of the parameter.

    For other optimizers than SGD ``wd`` is the rate at which weights without gradient decay: λ
    of decoupled decay; NaN for decay in a gradient that is then preconditioned.
    """
    coefficients: dict[int, Coefficients] = {}
    for group in optimizer.param_groups:
        if isinstance(optimizer, SGD):
            c = coefficients_of(optimizer, group)
        else:
            preconditioned = group["weight_decay"] and not decoupled_wd(group)
            c = Coefficients(
                float(group["lr"]), math.nan if preconditioned else decoupled_wd(group)
            )
        coefficients |= dict.fromkeys(map(id, group["params"]), c)
    return coefficients


def gradient(g: Tensor, c: Coefficients) -> tuple[Tensor]:
    """A copy of g."""
    return (g.clone(),)


def squared_gradient(g: Tensor, c: Coefficients) -> tuple[Tensor]:
    """g², element-wise."""
    return (g.square(),)


def update(moved: Tensor, c: Coefficients) -> tuple[Tensor, ...]:
    """Δ = θ' − θ, the step's gradient-flow time, and the rate of decay without gradient."""
    time, decay = (torch.tensor(x, dtype=torch.float64) for x in (c.effective_lr, c.wd))
    return moved, time, decay


def integral(g: Tensor, c: Coefficients, u: Tensor) -> tuple[Tensor]:
    """u' = e^{−2λη}(u + η²g²), so that u = η∫e^{−2λ(t−τ)}g²dτ as a left Riemann sum."""
    return (paper_quadratic_step(u, torch.zeros(()), c, g.double().square())[0],)


def oscillator(v: Tensor, c: Coefficients, u: Tensor, rate: Tensor) -> tuple[Tensor, ...]:
    """(u, u̇) of ü + 2γu̇ + ω²u = 2|θ̇|², with θ̇ = −v'/(1−α), from rest at 0."""
    return paper_quadratic_step(u, rate, c, v.double().square())
