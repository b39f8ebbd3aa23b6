"""A network linearised at its weights, as a module that any optimizer trains."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from Utils.errors import UserError


class LinearizedModel(nn.Module):
    """f_lin(x; θ) = f(x; θ_0) + J(x; θ_0)(θ − θ_0), by one forward-mode derivative.

    Parameters have the names of the model's, so that its optimizer, scales and schedule fit. The
    base point, θ_0 and all buffers, is frozen. It is in evaluation mode whatever mode the module
    is in: normalisations use their running statistics, dropout does nothing.

    Args:
        model: of logits; it is copied. Parameters that do not require a gradient belong to the
            base point only.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._base = _frozen(model)
        self._names = list(trained)
        for name, parameter in trained.items():
            _register(self, name, nn.Parameter(parameter.detach().clone()))

    @property
    def base_point(self) -> dict[str, Tensor]:
        """θ_0 by the parameters' names."""
        return {name: self._base.get_buffer(name) for name in self._names}

    def train(self, mode: bool = True) -> Self:
        """As of any module, except for the base point."""
        super().train(mode)
        self._base.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [N, C].

        Raises:
            UserError: the model has an operation without a forward-mode derivative.
        """
        base = self.base_point
        moved = {name: self.get_parameter(name) - at for name, at in base.items()}
        outputs, pushed = self._push(inputs, moved)
        return outputs + pushed

    @torch.no_grad()
    def radial(self, inputs: Tensor) -> Tensor:
        """J(x; θ_0) θ_0 [N, C], along which weight decay pulls the outputs."""
        return self._push(inputs, self.base_point)[1]

    def _push(self, inputs: Tensor, direction: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """f(x; θ_0) and J(x; θ_0) v, each [N, C]."""

        def outputs(weights: dict[str, Tensor]) -> Tensor:
            result: Tensor = functional_call(self._base, weights, (inputs,))
            return result

        with _forward_differentiable(self._base):
            at, pushed = jvp(outputs, (self.base_point,), (direction,))
        return at, pushed


def _frozen(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters are buffers; shared ones stay shared."""
    base = copy.deepcopy(model).eval()
    shared: dict[nn.Parameter, Tensor] = {}
    for module in base.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                del module._parameters[name]
                value = shared.setdefault(parameter, parameter.detach())
                module.register_buffer(name, value)
    return base


def _register(root: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Make ``path`` the parameter's name, through modules that only hold others."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.register_parameter(name, parameter)


@contextmanager
def _forward_differentiable(model: nn.Module) -> Iterator[None]:
    """Use plain attention and recurrent layers, as fused ones have no forward-mode derivative.

    Raises:
        UserError: another operation of the model has none.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    libraries: list[Any] = [torch.backends.mkldnn, torch.backends.cudnn]
    before = [library.enabled for library in libraries]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):  # convolutions are fast with
            for library in libraries:
                library.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except NotImplementedError as error:
        reason = str(error).partition(" Please file")[0].partition("\n")[0].rstrip(".")
        raise UserError(
            f"this model cannot be linearised ({reason}); replace that operation"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled
