"""The certificate of a law: the gradient of any minibatch satisfies ⟨θ, g⟩_S = 0 or ⟨c, g⟩ = 0."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from Models.symmetry import Laws, find_laws

#: relative to the sum of the sizes of the terms that cancel
TOLERANCE = 1e-10

#: what rounding makes of a gradient that vanishes, relative to the model's largest one
_ROUNDING = 1e-12

EPSILON = 1e-30


class Net(nn.Module):
    """A model from its parts and a forward function ``forward(model, x)``."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | nn.Parameter | Tensor):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@contextmanager
def quiet() -> Iterator[None]:
    """Torch warns of its own deprecated calls when some models are exported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def prepared(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64, at generic weights, with normalisations that have no ε."""
    model = model.double().train()
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "eps"):
            setattr(module, "eps", EPSILON)  # noqa: B010
        for parameter in module.parameters(recurse=False):
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            empty = (parameter == 0) & isinstance(module, nn.Embedding)  # the row of the padding
            parameter.data += torch.where(empty, 0.0, 0.4 * (noise - 0.5))
    return model


def loss_of(output: Tensor, loss: str, seed: int = 0) -> Tensor:
    """Cross-entropy (over axis 1) or squared error with random targets."""
    generator = torch.Generator().manual_seed(seed)
    if loss == "ce":
        shape = output.shape[:1] + output.shape[2:]
        targets = torch.randint(output.shape[1], shape, generator=generator)
        return functional.cross_entropy(output, targets)
    return functional.mse_loss(output, torch.rand(output.shape, generator=generator).double())


def gradients(model: nn.Module, inputs: Tensor, loss: str, seed: int = 0) -> dict[str, Tensor]:
    """The gradient of every parameter, zero where there is none."""
    model.zero_grad()
    output = model(inputs)
    outputs = output if isinstance(output, (tuple, list)) else [output]
    torch.stack([loss_of(part, loss, seed) for part in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def laws_of(model: nn.Module, inputs: Tensor, loss: str = "ce", matrices: bool = True) -> Laws:
    """The laws, found as the pipeline finds them: from a batch of two examples of zeros."""
    with quiet():
        return find_laws(model, torch.zeros_like(inputs[:2]), loss, matrices)


def leaks(model: nn.Module, inputs: Tensor, laws: Laws, loss: str = "ce") -> np.ndarray:
    """For each law the vanishing sum divided by the size of its terms; at most 1e-10 is zero."""
    with quiet():
        gradient = gradients(model, inputs, loss)
    theta = {name: p.detach() for name, p in model.named_parameters()}
    largest = max((float(g.abs().max()) for g in gradient.values()), default=0.0)

    def evaluate(absolute: bool, weight: Callable[[str], Tensor]) -> np.ndarray:
        if absolute:
            quadratic = laws.quadratic.form(
                lambda n: theta[n].abs(), lambda n: weight(n).abs(), True
            )
            return np.concatenate(
                [quadratic, laws.linear.evaluate(lambda n: weight(n).abs(), True)]
            )
        quadratic = laws.quadratic.form(theta.__getitem__, weight)
        return np.concatenate([quadratic, laws.linear.evaluate(weight)])

    value = evaluate(False, gradient.__getitem__)
    size = evaluate(True, gradient.__getitem__)
    rounding = _ROUNDING * largest * evaluate(True, lambda n: torch.ones_like(theta[n]))
    leak: np.ndarray = np.abs(value) / np.maximum(size, rounding / TOLERANCE + 1e-300)
    return leak


def diagonal(laws: Laws) -> int:
    """How many scale and rescale laws there are."""
    return sum(len(family) for family in laws.families if family.kind in ("scale", "rescale"))


def assert_no_false_law(model: nn.Module, inputs: Tensor, loss: str = "ce") -> Laws:
    """Find the laws and certify every one of them; returns them."""
    laws = laws_of(model.double().train(), inputs, loss)
    prepared(model)
    leak = leaks(model, inputs, laws, loss)
    false = [
        f"{family.kind} {family.layer}: {leak[family.units].max():.1e}"
        for family in laws.families
        if leak[family.units].max() > TOLERANCE
    ]
    assert not false, f"false laws: {false}"
    return laws
