"""Small networks in float64 with every way of using a parameter, and what their kernels must be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations


class Shared(nn.Module):
    """A weight used twice and once transposed, a gain that is a shift too, a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.gain = nn.Parameter(torch.randn(4))
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.twice = nn.Linear(4, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        h = torch.tanh(self.twice(torch.tanh(self.twice(x)))) * self.gain + self.gain
        h = functional.linear(h @ self.weight.T, self.twice.weight.t())
        return self.last(h[:, 0] + h.mean(1))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """Embeddings of tokens and places; perhaps the same weight reads and writes tokens."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4, padding_idx=0)
        self.places = nn.Embedding(6, 4)
        self.last = nn.Linear(4, 7, bias=False)
        if tied:
            self.last.weight = self.tokens.weight

    def forward(self, indices: Tensor) -> Tensor:
        h = self.tokens(indices) + self.places(torch.arange(indices.shape[1]))
        return self.last(torch.tanh(h).mean(1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A call that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(4, 5, batch_first=True)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.memory(x)[0][:, -1])  # type: ignore[no-any-return]


class Scalars(nn.Module):
    """Numbers as parameters: as they are, in a function, in a call that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.temperature, self.shift, self.slope = (nn.Parameter(torch.randn(())) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x)) * self.temperature.exp() + self.shift
        return self.last(torch.where(h > 0, h, self.slope / (1 + h * h)))  # type: ignore[no-any-return]


class Merged(nn.Module):
    """Tokens merged into the batch, places first in the middle: only the first is understood."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        h = torch.tanh(self.first(x.reshape(n * t, -1))).view(n, t, -1)
        h = torch.tanh(self.middle(h.transpose(0, 1))).sum(0)
        return self.last(h)  # type: ignore[no-any-return]


class Residual(nn.Module):
    """x + f(x) with everything changed in place that can be."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.first(x)), inplace=True)
        h = self.second(x)
        h *= self.scale
        h += x
        return self.last(functional.relu_(h).mean((2, 3)))  # type: ignore[no-any-return]


def _seq(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def _strided() -> nn.Module:
    return _seq(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, dilation=2, padding="same", groups=2),
        nn.GroupNorm(2, 6),
        nn.Tanh(),
        nn.Conv2d(6, 6, (2, 3), groups=6, bias=False),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def _wide() -> nn.Module:
    """Few positions, many channels: the Kronecker form of convolutions."""
    return _seq(nn.Conv2d(8, 40, 3, groups=2), nn.Tanh(), nn.Conv2d(40, 40, 1), _pooled(), _out(40))


def _pooled() -> nn.Module:
    return _seq(nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _out(width: int) -> nn.Module:
    return nn.Linear(width, 3)


def _line() -> nn.Module:
    return _seq(
        nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm1d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.LayerNorm(5),
        nn.Linear(5, 3),
        nn.RMSNorm(3),
    )


def _made_of() -> nn.Module:
    """Weights made of parameters."""
    return _seq(
        parametrizations.weight_norm(nn.Linear(6, 5)),
        nn.Tanh(),
        parametrizations.orthogonal(nn.Linear(5, 5)),
        nn.Linear(5, 3),
    )


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return _seq(layer, nn.Flatten(), nn.Linear(24, 3))


def _transposed() -> nn.Module:
    return _seq(nn.ConvTranspose2d(2, 3, 3, stride=2), _pooled(), _out(3))


def _reals(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape, dtype=torch.float64)


def _indices(n: int) -> Tensor:
    return torch.randint(7, (n, 4))


@dataclass(frozen=True)
class Case:
    """A network and the inputs that it reads."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]

    def make(self) -> nn.Module:
        """The network in evaluation mode, with running statistics of its own."""
        model = self.build().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        return model


CASES: Mapping[str, Case] = {
    "mlp": Case(lambda: _seq(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), _reals(6)),
    "tokens of vectors": Case(lambda: _seq(nn.Linear(6, 5), nn.Flatten(), _out(10)), _reals(2, 6)),
    "strided, dilated, grouped": Case(_strided, _reals(2, 8, 8)),
    "wide convolutions": Case(_wide, _reals(8, 4, 4)),
    "one dimension, norms": Case(_line, _reals(2, 6)),
    "residual, in place": Case(Residual, _reals(2, 4, 4)),
    "shared": Case(Shared, _reals(3, 4)),
    "embedding": Case(lambda: Tokens(tied=False), _indices),
    "tied embedding": Case(lambda: Tokens(tied=True), _indices),
    "scalars": Case(Scalars, _reals(6)),
    "merged positions": Case(Merged, _reals(3, 4)),
    "weights made of parameters": Case(_made_of, _reals(6)),
    "multi-head attention": Case(_encoder, _reals(3, 8)),
    "recurrent": Case(Recurrent, _reals(3, 4)),
    "transposed convolution": Case(_transposed, _reals(2, 3, 3)),
}


def traced(full: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over logits of the diagonal, by layer."""
    return {name: kernel.diagonal(dim1=2, dim2=3).mean(-1) for name, kernel in full.items()}


def error(found: Tensor, exact: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    assert found.shape == exact.shape
    return float((found - exact).norm() / exact.norm())
