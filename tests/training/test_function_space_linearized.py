"""Linearised modules, and runs of train.py replayed in function space."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from Data import load_dataset
from Data.batches import evaluation_batches
from Data.dataset import Split
from Models.parametrization.network import Parametrized
from Models.parametrization.scales import Scale, Scales
from tests.runs import TINY, flags_of, train_run
from tests.training.helpers import checkpoint_of
from tests.training.linear_models import D
from Training.config import TrainConfig
from Training.function_space import (
    LinearizedModel,
    batch_numbers,
    sgd_rules,
    train_on_batches,
)
from Training.optimizers import build_optimizer
from Training.registry import LOSSES
from Training.schedule import Schedule
from Training.state import schedule_multipliers
from Utils.cli import parse
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
    linear, start = LinearizedModel(model), flat(model.parameters())
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


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop])
def test_any_optimizer_trains_it_as_an_explicit_linear_model(
    network: tuple[nn.Module, Tensor], optimizer: type[torch.optim.Optimizer]
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


def test_models_without_a_forward_derivative_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be linearised"):
        LinearizedModel(Distances())(torch.randn(5, 6))


FLAGS = (
    "--model logistic --dtype float64 --train-batch-size 200 --warmup-steps 3 "
    "--optimizer momentum --momentum 0.8 --save-freq 5"
)


@pytest.mark.parametrize(
    "flags",
    [
        "--lr 0.5 --wd 1e-2 --lr-schedule cosine",
        "--lr 0.5 --loss mse --dampening 0.3 --lr-drops 1 --clip-norm 0.01",
        "--lr 0.1 --nesterov --wd 1e-3 --schedule batch-doubling --anneal-steps 2 --epochs 1",
    ],
)
def test_a_run_of_a_linear_model_is_replayed_from_its_kernel(flags: str, tmp_path: Path) -> None:
    """Schedules, batches, clipping and decay of train.py itself, without any weight."""
    flags = f"{FLAGS} {flags}"
    run = train_run(tmp_path / "e" / "x", flags)
    config = parse(TrainConfig, [*TINY.split(), *flags.split(), *flags_of(run)])
    data = load_dataset("digits", seed=config.seed)
    schedule = Schedule(config, len(data.train))
    x, y = next(evaluation_batches(data.train, len(data.train), dtype=D))
    others, _ = next(evaluation_batches(data.test, len(data.test), dtype=D))
    at = run.checkpoint_steps()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return a.flatten(1) @ b.flatten(1).T + 1  # of weights and biases

    def outputs(step: int, inputs: Tensor) -> Tensor:
        state = checkpoint_of(run, step)["model_state_dict"]
        weight, bias = state.values()
        return inputs.flatten(1) @ weight.T + bias

    path = train_on_batches(
        kernel(x, x),
        outputs(0, x),
        y,
        LOSSES[config.loss].load(),
        sgd_rules(config, schedule),
        list(batch_numbers(config, schedule, data.train)),
        at,
        radial=outputs(0, x),  # a linear model's derivative along its weights is itself
        clip_norm=config.clip_norm,
    )
    assert len(at) > 3
    trained, held_out = (torch.stack([outputs(t, inputs) for t in at]) for inputs in (x, others))
    ours = path.at(kernel(others, x), outputs(0, others), outputs(0, others))
    torch.testing.assert_close(path.train, trained, rtol=0, atol=1e-11)
    torch.testing.assert_close(ours, held_out, rtol=0, atol=1e-11)


def test_a_parametrized_network_trains_as_its_weighted_kernel_says() -> None:
    """The linearised module under the run's own optimizer, scales, schedule and batches."""
    flags = (
        "--experiment e --expid x --model fc --depth 2 --width 5 --param ntk --dtype float64 "
        "--train-batch-size 7 --epochs 3 --optimizer momentum --momentum 0.9 --lr 0.5"
    )
    config = parse(TrainConfig, flags.split())
    torch.manual_seed(0)
    network = Parametrized(config, config.data_entry.input_shape, 10)
    model, scales = network.build().double(), network.scales("sgd", "gradient")
    assert len({scale.lr for scale in scales.parameters}) > 1
    split = load_dataset("digits").train
    assert isinstance(split, Split)
    few = replace(split, inputs=split.inputs[:20], targets=split.targets[:20])
    x, y = next(evaluation_batches(few, 20, dtype=D))
    schedule = Schedule(config, len(few))
    batches = list(batch_numbers(config, schedule, few))
    loss = LOSSES[config.loss].load()

    linear = LinearizedModel(model)
    start = linear(x).detach()
    optimizer = build_optimizer(config, linear, scales)
    scheduler = LambdaLR(optimizer, schedule_multipliers(optimizer, schedule, scales))
    for batch in batches:
        optimizer.zero_grad()
        loss(linear(x[batch]), y[batch]).backward()
        optimizer.step()
        scheduler.step()

    factors = [scales.of(n).lr * torch.ones_like(p).flatten() for n, p in model.named_parameters()]
    j = jacobian(model, x)
    kernel = torch.einsum("ncp,mdp->nmcd", j * torch.cat(factors).detach(), j)
    rules = sgd_rules(config, schedule, scales)
    path = train_on_batches(kernel, start, y, loss, rules, batches, [len(batches)])
    torch.testing.assert_close(path.train[0], linear(x).detach(), rtol=0, atol=1e-10)
    assert (path.train[0] - start).abs().max() > 0.1


@pytest.mark.parametrize(
    ("flags", "scales", "message"),
    [
        ("--optimizer adam", None, "--optimizer adam"),
        ("--wd 0.1 --wd-on matrices", None, "--wd-on matrices"),
        ("--wd 0.1", {"lr": 2.0}, "--wd 0.1 decays parameters differently"),
        ("", {"first_steps": 1}, "first steps"),
    ],
)
def test_what_outputs_alone_do_not_tell_is_refused(
    flags: str, scales: dict[str, Any] | None, message: str
) -> None:
    config = parse(TrainConfig, ["--experiment", "e", "--expid", "x", *flags.split()])
    factors = None
    if scales is not None:
        one = Scale("a", (1,), "input", "")
        other = replace(one, name="b", lr=scales.get("lr", 1.0))
        factors = Scales((one, other), scales.get("first_steps", 0), "1")
    with pytest.raises(UserError, match=message):
        sgd_rules(config, Schedule(config, 100), factors)


def test_decay_that_follows_the_learning_rates_is_one_decay() -> None:
    config = parse(TrainConfig, ["--experiment", "e", "--expid", "x", "--wd", "0.1"])
    one = Scale("a", (1,), "input", "", lr=4.0, wd=0.5)
    factors = Scales((one, replace(one, name="b", lr=0.5, wd=4.0)), 0, "1")
    assert {rule.wd for rule in sgd_rules(config, Schedule(config, 100), factors)} == {0.2}
