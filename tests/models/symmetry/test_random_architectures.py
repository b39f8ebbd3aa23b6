"""Networks that nobody thought of: random sequences of layers, joins, views and unknown operations.

Every law found is certified; where only described operations occur, none may be missing.
"""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.symmetry.certificate import TOLERANCE, gradients, laws_of, leaks, prepared
from tests.models.symmetry.oracle import scale_difference

Step = Callable[[list[Tensor]], Tensor]
"""From all activations so far to the next one."""


class RandomNetwork(nn.Module):
    """A network that grows by one operation at a time.

    Args:
        choices: for each operation its name and a number that settles its details.
        places: the side of the input images; 0 for vectors.
    """

    def __init__(self, choices: list[tuple[str, int]], places: int):
        super().__init__()
        self.layers = nn.ModuleList()
        self.steps: list[Step] = []
        self.inputs = torch.randn(7, 3, *(places, places)[: 2 * (places > 0)], dtype=torch.float64)
        self.trail = [self.inputs]
        self.grow("weight", 0)
        for name, number in choices:
            self.grow(name, number)
        self.append(lambda trail: trail[-1].flatten(1))
        self.layer(nn.Linear(self.trail[-1].shape[1], 3))

    def forward(self, x: Tensor) -> Tensor:
        trail = [x]
        for step in self.steps:
            trail.append(step(trail))
        return trail[-1]

    def append(self, step: Step) -> None:
        """Add an operation, if it can be applied and its result can be used."""
        try:
            with torch.no_grad():
                result = step(self.trail)
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            return  # the shapes do not fit
        if result.shape[0] != len(self.inputs) or not 0 < result[0].numel() <= 64:
            return
        if result.transpose(0, 1).flatten(1).std(1).min() > 1e-3:  # no channel is constant
            self.steps.append(step)
            self.trail.append(result)

    def layer(self, module: nn.Module) -> None:
        """Add a layer that reads the last result."""
        self.layers.append(module.double())
        index = len(self.layers) - 1
        self.append(lambda trail: self.layers[index](trail[-1]))

    def grow(self, name: str, number: int) -> None:
        """Add an operation by name."""
        getattr(self, f"grow_{name}")(self.trail[-1], number)

    # ------------------------------------------------------------------ layers

    def grow_weight(self, x: Tensor, number: int) -> None:
        channels, bias = x.shape[1], number % 2 == 0
        if x.dim() == 2:
            self.layer(nn.Linear(channels, 3 + number % 3, bias))
        elif number % 3 == 0 and channels % 2 == 0:
            self.layer(nn.Conv2d(channels, channels, 2, padding=1, groups=2, bias=bias))
        else:
            self.layer(nn.Conv2d(channels, 3 + number % 3, 1 + number % 2, bias=bias))

    def grow_same(self, x: Tensor, number: int) -> None:
        """A layer that keeps the shape, as residual branches have."""
        size = x.shape[1]
        layer = nn.Linear(size, size) if x.dim() == 2 else nn.Conv2d(size, size, 3, padding=1)
        self.layer(layer)

    def grow_norm(self, x: Tensor, number: int) -> None:
        channels, affine = x.shape[1], number % 2 == 0
        if x.dim() == 2:
            norms = [
                nn.BatchNorm1d(channels, affine=affine),
                nn.LayerNorm(channels),
                nn.RMSNorm(channels),
            ]
        else:
            norms = [nn.BatchNorm2d(channels, affine=affine), nn.GroupNorm(1, channels)]
            norms += [nn.LayerNorm(list(x.shape[1:]))]
        self.layer(norms[number % len(norms)])

    def grow_gain(self, x: Tensor, number: int) -> None:
        self.layers.append(nn.ParameterList([torch.rand(x.shape[1], dtype=torch.float64)]))
        index = len(self.layers) - 1

        def step(trail: list[Tensor]) -> Any:
            gain: Any = self.layers[index]
            shaped = gain[0].view(-1, *[1] * (trail[-1].dim() - 2))
            return trail[-1] * shaped if number % 2 else trail[-1] + shaped

        self.append(step)

    def grow_again(self, x: Tensor, number: int) -> None:
        """Apply some layer a second time."""
        index = number % len(self.layers)
        self.append(lambda trail: self.layers[index](trail[-1]))

    # ------------------------------------------------------------------ functions

    def grow_activation(self, x: Tensor, number: int) -> None:
        functions: list[Callable[[Tensor], Tensor]] = [
            F.leaky_relu,
            torch.abs,
            torch.square,
            lambda h: F.leaky_relu(h, 0.5),
        ]
        self.append(lambda trail: functions[number % len(functions)](trail[-1]))

    def grow_place(self, x: Tensor, number: int) -> None:
        """Something that mixes or moves places."""
        if x.dim() == 2:
            return
        functions: list[Callable[[Tensor], Tensor]] = [
            lambda h: F.max_pool2d(h, 2, ceil_mode=True),
            lambda h: F.avg_pool2d(h, 2, padding=1),
            lambda h: h.flatten(1),
            lambda h: h.mean((2, 3)),
            lambda h: F.pad(h, (0, 1, 1, 0)),
            lambda h: h[:, :, ::2],
            lambda h: h.transpose(2, 3),
            lambda h: h.flip(1),
        ]
        self.append(lambda trail: functions[number % len(functions)](trail[-1]))

    def grow_join(self, x: Tensor, number: int) -> None:
        """Join with an earlier result of the same shape."""
        fitting = [k for k, other in enumerate(self.trail[1:-1], 1) if other.shape == x.shape]
        if not fitting:
            return
        other = fitting[number % len(fitting)]
        joins: list[Callable[[Tensor, Tensor], Tensor]] = [
            torch.add,
            torch.sub,
            lambda a, b: torch.cat([a, b], 1),
            torch.mul,
            torch.maximum,
        ]
        self.append(lambda trail: joins[number % len(joins)](trail[-1], trail[other]))

    # ------------------------------------------------------------------ unknown operations

    def grow_unknown(self, x: Tensor, number: int) -> None:
        functions: list[Callable[[Tensor], Tensor]] = [
            torch.tanh,
            lambda h: h.softmax(1),
            lambda h: h.cumsum(1),
            lambda h: torch.where(h > 0, h, 0.1 * h * h),
            lambda h: h + 0.5,
            lambda h: h.sort(1)[0],
            lambda h: (h * 3).round() + h,
            lambda h: h - h.mean(1, keepdim=True),
            lambda h: h / h.std(),
            lambda h: h * h.detach().sigmoid(),
            lambda h: h.clone().mul_(2).add_(h),
            lambda h: F.dropout(h, 0.3),
            torch.relu,
        ]
        self.append(lambda trail: functions[number % len(functions)](trail[-1]))


NUMBERS = st.integers(0, 59)
DESCRIBED = [
    "weight",
    "weight",
    "same",
    "norm",
    "activation",
    "activation",
    "place",
    "join",
    "gain",
]


def architectures(names: list[str]) -> st.SearchStrategy[tuple[list[tuple[str, int]], int]]:
    choices = st.lists(st.tuples(st.sampled_from(names), NUMBERS), min_size=2, max_size=9)
    return st.tuples(choices, st.sampled_from([0, 3, 4]))


def network(choices: list[tuple[str, int]], places: int) -> RandomNetwork:
    """The network, at weights where its gradients are not degenerate.

    A channel that happens to be constant has no gradient through its normalisation without ε.
    """
    torch.manual_seed(0)
    model = RandomNetwork(choices, places)
    prepared(model)
    sizes = [float(g.abs().max()) for g in gradients(model, model.inputs, "ce").values()]
    assume(max(sizes) < 1e3)
    return model


@settings(max_examples=40, deadline=None, derandomize=True)
@given(architectures([*DESCRIBED, "again", "unknown", "unknown"]), st.sampled_from(["ce", "mse"]))
def test_no_law_of_a_random_network_is_false(
    drawn: tuple[list[tuple[str, int]], int], loss: str
) -> None:
    model = network(*drawn)
    laws = laws_of(model, model.inputs, loss)
    assert not laws.note
    assert leaks(model, model.inputs, laws, loss).max(initial=0) <= TOLERANCE


@settings(max_examples=12, deadline=None, derandomize=True)
@given(architectures(DESCRIBED))
def test_no_law_of_a_random_network_is_missing(drawn: tuple[list[tuple[str, int]], int]) -> None:
    """But for those of two normalisations with only homogeneous operations between them.

    The second undoes the first's division, so that its gains may be traded with what it reads.
    """
    assume([name for name, _ in drawn[0]].count("norm") < 2)
    model = network(*drawn)
    laws = laws_of(model, model.inputs, matrices=False)
    assert scale_difference(model, model.inputs, laws) == (0, 0)
