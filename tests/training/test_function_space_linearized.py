"""Linearised modules: Taylor series of networks, trained as explicit linear models."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional

from Training.function_space import (
    LinearizedModel,
)
from Utils.errors import UserError


class Attention(nn.Module):
    """torch's fused attention, of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.MultiheadAttention(6, 2, batch_first=True)
        self.own = nn.Linear(6, 18)
        self.readout = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.fused(x, x, x, need_weights=False)[0]
        q, k, v = self.own(x).chunk(3, -1)
        x = x + functional.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.readout(x.mean(1))
        return y


class Recurrent(nn.Module):
    """Layers that torch's libraries compute without a forward-mode derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.readout = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.readout(self.lstm(x)[0][:, -1])
        return y


class Tied(nn.Module):
    """One matrix, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.tanh(self.first(x)))
        return y


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "fc": lambda: (
        nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)),
        torch.randn(5, 6),
    ),
    "convolutional": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.GroupNorm(2, 4),
            nn.Flatten(),
            nn.Linear(36, 3),
        ),
        torch.randn(5, 2, 8, 8),
    ),
    "layer norm": lambda: (
        nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 3)),
        torch.randn(5, 6),
    ),
    "attention": lambda: (Attention(), torch.randn(5, 4, 6)),
    "recurrent": lambda: (Recurrent(), torch.randn(5, 4, 6)),
    "tied": lambda: (Tied(), torch.randn(5, 6)),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A model whose gains and statistics are no units, and inputs, in float64."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[request.param]()
    model, inputs = model.double(), inputs.double()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.2 * torch.rand_like(tensor))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.mul_(1.7)
    return model, inputs


def jacobian(model: nn.Module, inputs: Tensor) -> Tensor:
    """J [N, C, P], in the order of the model's parameters, in evaluation mode."""
    model = copy.deepcopy(model).eval()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        parts = jacrev(lambda w: functional_call(model, w, (inputs,)))(weights)
    return torch.cat([parts[name].flatten(2) for name in weights], dim=2)


def flat(tensors: Iterator[nn.Parameter]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def test_outputs_are_the_first_two_terms_of_taylors_series(
    network: tuple[nn.Module, Tensor],
) -> None:
    model, inputs = network
    linear, start = LinearizedModel(model).train(), flat(model.parameters())
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.add_(torch.randn_like(parameter))
    j, f0 = jacobian(model, inputs), copy.deepcopy(model).eval()(inputs)
    moved = flat(linear.parameters()) - start
    assert linear.training
    torch.testing.assert_close(linear(inputs), f0 + j @ moved, rtol=0, atol=1e-11)
    torch.testing.assert_close(linear.radial(inputs), j @ start, rtol=0, atol=1e-11)
    assert [name for name, _ in linear.named_parameters()] == [
        name for name, _ in model.named_parameters()
    ]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_any_optimizer_trains_it_as_an_explicit_linear_model(
    network: tuple[nn.Module, Tensor], optimizer: type[torch.optim.AdamW] | type[torch.optim.SGD]
) -> None:
    model, inputs = network
    targets = torch.arange(5) % 3
    linear, j = LinearizedModel(model), jacobian(model, inputs)
    f0 = copy.deepcopy(model).eval()(inputs).detach()
    start = flat(model.parameters())
    weights = nn.Parameter(start.clone())
    frozen = {name: buffer.clone() for name, buffer in linear.named_buffers()}
    ours, theirs = optimizer(linear.parameters(), lr=1e-3), optimizer([weights], lr=1e-3)
    for _ in range(5):
        ours.zero_grad()
        theirs.zero_grad()
        torch.autograd.backward(functional.cross_entropy(linear(inputs), targets))
        torch.autograd.backward(functional.cross_entropy(f0 + j @ (weights - start), targets))
        ours.step()
        theirs.step()
    torch.testing.assert_close(flat(linear.parameters()), weights.detach(), rtol=0, atol=1e-8)
    assert all(torch.equal(buffer, frozen[name]) for name, buffer in linear.named_buffers())


def test_it_can_be_saved_and_copied(network: tuple[nn.Module, Tensor]) -> None:
    model, inputs = network
    linear = LinearizedModel(model)
    other = copy.deepcopy(linear)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.zero_()
    other.load_state_dict(linear.state_dict())
    torch.testing.assert_close(other(inputs), linear(inputs))


def test_frozen_parameters_stay_in_the_base_point() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    names = [name for name, _ in LinearizedModel(model).named_parameters()]
    assert names == ["2.weight", "2.bias"]


class Distances(nn.Module):
    """Of an operation that torch differentiates backwards alone."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.centres)


def test_recurrent_layers_in_float32() -> None:
    """Which oneDNN computes on CPUs."""
    model, inputs, fast = Recurrent(), torch.randn(5, 4, 6), torch.backends.mkldnn.enabled
    linear = LinearizedModel(model)
    j, f0 = jacobian(model.double(), inputs.double()), model(inputs.double())
    start = flat(linear.parameters())
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.add_(0.1)
    expected = f0 + j @ (flat(linear.parameters()) - start).double()
    torch.testing.assert_close(linear(inputs).double(), expected, rtol=0, atol=1e-5)
    assert torch.backends.mkldnn.enabled == fast


@pytest.mark.parametrize("enabled", [True, False])
def test_fused_operations_are_as_they_were(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = [torch.backends.mkldnn, torch.backends.cudnn]
    for library in libraries:
        monkeypatch.setattr(library, "enabled", enabled)
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(enabled)
        LinearizedModel(Recurrent())(torch.randn(5, 4, 6))
        assert torch.backends.mha.get_fastpath_enabled() == enabled
        assert [library.enabled for library in libraries] == [enabled] * 2
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_models_without_a_forward_derivative_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be linearised"):
        LinearizedModel(Distances())(torch.randn(5, 6))
