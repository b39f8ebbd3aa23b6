"""SGD of linearised networks in function space, against torch.optim on explicit weights."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.training.linear_models import (
    OUTPUTS,
    TRAIN,
    D,
    LinearModel,
    full_model,
    labels,
    targets,
    traced_model,
)
from Training.discrete_laws import Coefficients
from Training.function_space import (
    Modes,
    SquaredError,
    Stretch,
    Trajectory,
    gradient_flow,
    largest_lr,
    stretches,
    train_on_batches,
)
from Training.function_space.losses import Loss
from Training.losses import cross_entropy, mean_squared_error
from Utils.errors import UserError

MODELS = {
    "full": full_model(),
    "full, singular": full_model(parameters=7),
    "traced": traced_model(),
    "traced, singular": traced_model(parameters=4),
}

RULES = {
    "sgd": Coefficients(1.0, 0.0),
    "heavy ball": Coefficients(1.0, 0.0, 0.9),
    "dampening": Coefficients(1.0, 0.0, 0.9, 0.4),
    "nesterov": Coefficients(1.0, 0.0, 0.9, nesterov=True),
    "sgd, decay": Coefficients(1.0, 0.03),
    "heavy ball, decay": Coefficients(1.0, 0.03, 0.9),
    "dampening, decay": Coefficients(1.0, 0.03, 0.9, 0.4),
    "nesterov, decay": Coefficients(1.0, 0.03, 0.9, nesterov=True),
}

AT = [0, 1, 2, 3, 10, 64, 121]


def check(model: LinearModel, path: Trajectory, expected: Tensor, relative: float) -> None:
    radial = model.radial[TRAIN:] if (path.kept != 1).any() else None
    others = path.at(model.cross, model.outputs[TRAIN:], radial)
    tolerance = relative * float(expected.abs().max())
    torch.testing.assert_close(path.train, expected[:, :TRAIN], rtol=0, atol=tolerance)
    torch.testing.assert_close(others, expected[:, TRAIN:], rtol=0, atol=tolerance)


def squared_error(model: LinearModel, radial: bool = True) -> SquaredError:
    z = model.radial[:TRAIN] if radial else None
    return SquaredError(model.train, model.outputs[:TRAIN], targets(), radial=z)


@pytest.mark.parametrize("fraction", [0.1, 0.95])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", ["full, singular", "traced"])
def test_closed_form_is_what_torch_does_at_any_stable_learning_rate(
    name: str, rule: Coefficients, fraction: float
) -> None:
    model = MODELS[name]
    solution = squared_error(model)
    rule = replace(rule, lr=fraction * solution.largest_lr(rule))
    expected = model.descend(mean_squared_error, targets(), [rule] * AT[-1], AT)
    check(model, solution.descent([Stretch(rule)], AT), expected, 1e-11)


@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_schedules_of_all_hyper_parameters(decay: float) -> None:
    model = full_model()
    solution = squared_error(model)
    rules = [Coefficients(0.1 * (1 + math.cos(t / 30)), decay, 0.9) for t in range(40)]
    rules += [Coefficients(0.2, 0.0)] * 20  # torch keeps the buffer meanwhile
    rules += [Coefficients(0.05, decay, 0.8, 0.3)] * 30
    rules += [Coefficients(0.02, 2 * decay, 0.95, nesterov=True)] * 60
    at = [0, 1, 39, 40, 41, 60, 61, 90, 91, 150]
    expected = model.descend(mean_squared_error, targets(), rules, at)
    check(model, solution.descent(stretches(rules), at), expected, 1e-12)


def test_a_buffer_made_after_the_first_step_starts_without_dampening() -> None:
    model = full_model()
    rules = [Coefficients(0.1, 0.0)] * 3 + [Coefficients(0.1, 0.0, 0.9, 0.5)] * 10
    expected = model.descend(mean_squared_error, targets(), rules, [13])
    check(model, squared_error(model).descent(stretches(rules), [13]), expected, 1e-12)
    everything, start = [torch.arange(TRAIN)] * 13, model.outputs[:TRAIN]
    path = train_on_batches(
        model.train, start, targets(), mean_squared_error, rules, everything, [13]
    )
    check(model, path, expected, 1e-12)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_limit_is_the_solution_of_least_squares(model: LinearModel, rule: Coefficients) -> None:
    """θ minimises |f − y|²/M + ½μ|θ|²: of all minimisers, the closest to θ_0 without decay."""
    solution = squared_error(model)
    rule = replace(rule, lr=0.5 * solution.largest_lr(rule))
    j = model.jacobian[:TRAIN].flatten(0, 1)
    residual = (targets() - model.outputs[:TRAIN]).flatten()
    root = math.sqrt(rule.wd * len(j) / 2)
    rows = torch.cat([j, root * torch.eye(j.shape[1], dtype=D)])
    right = torch.cat([residual, -root * model.start])
    if not rule.wd:
        rows, right = j, residual
    moved = torch.linalg.lstsq(rows, right, driver="gelsd").solution
    expected = (model.outputs + model.jacobian @ moved)[None]
    check(model, solution.descent([Stretch(rule)], [math.inf]), expected, 1e-12)
    check(model, solution.flow([math.inf], rule.wd), expected, 1e-12)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_limit_after_weight_decay_has_ended(rule: Coefficients) -> None:
    """Initial weights are left, and the momentum of their decay carries them on."""
    solution = squared_error(MODELS["traced"])
    decaying = replace(rule, lr=0.5 * solution.largest_lr(rule), wd=0.3)
    schedule = [Stretch(decaying, 10), Stretch(replace(decaying, wd=0.0))]
    late, limit = (solution.descent(schedule, [time]) for time in (10**5, math.inf))
    assert abs(limit.kept.item()) > 1e-2
    torch.testing.assert_close(limit.kept, late.kept, rtol=0, atol=1e-12)
    torch.testing.assert_close(limit.dual, late.dual, rtol=0, atol=1e-10)


def test_a_long_time_ends_in_the_limit_also_for_singular_kernels() -> None:
    solution = squared_error(MODELS["full, singular"])
    rule = Coefficients(0.95 * solution.largest_lr(RULES["heavy ball"]), 0.0, 0.9)
    late, limit = solution.descent([Stretch(rule)], [1e9, math.inf]).train
    torch.testing.assert_close(late, limit, rtol=0, atol=1e-12)


def test_slow_modes_keep_their_precision() -> None:
    """(1 − x)^t at x t ≈ 1 for a tiny x, where x alone is below the rounding of 1 − x."""
    kernel = torch.diag(torch.tensor([1.0, 1e-12], dtype=D))
    start, rule = torch.ones(2, 1, dtype=D), Coefficients(0.1, 0.0)
    solution = SquaredError(kernel, start, torch.zeros(2, 1, dtype=D), slope=1.0)
    steps = 10**13
    (path,) = solution.descent([Stretch(rule)], [steps]).train
    assert path[1].item() == pytest.approx(math.exp(steps * math.log1p(-1e-13)), 1e-13, 0)
    (dual,) = solution.flow([1.0]).dual  # −(1 − e^{−λt}) / λ
    assert dual[1].item() == pytest.approx(-1 + 5e-13, 1e-15, 0)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(
    ("name", "loss"), [("full, singular", cross_entropy), ("traced", mean_squared_error)]
)
def test_mini_batches(name: str, loss: Loss, rule: Coefficients) -> None:
    model, y = MODELS[name], labels()
    rules = [replace(rule, lr=0.05 / (1 + t / 50)) for t in range(60)]
    batches = some_batches(len(rules))
    at = [0, 1, 2, 30, 60]
    expected = model.descend(loss, y, rules, at, batches)
    path = train_on_batches(
        model.train,
        model.outputs[:TRAIN],
        y,
        loss,
        rules,
        batches,
        at,
        radial=model.radial[:TRAIN],
    )
    check(model, path, expected, 1e-12)


def some_batches(count: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randperm(TRAIN, generator=g)[: 3 + t % 5] for t in range(count)]


@pytest.mark.parametrize(("largest", "apart"), [(0.5, 0.1), (1.5, 1e-3), (1e9, 0.0)])
@pytest.mark.parametrize("name", ["full", "traced"])
def test_clipping_of_the_gradient(name: str, largest: float, apart: float) -> None:
    """Of all gradients, of some, of none."""
    model, rules = MODELS[name], [Coefficients(0.05, 0.0, 0.9)] * 60
    batches, start = some_batches(len(rules)), model.outputs[:TRAIN]
    expected = model.descend(mean_squared_error, targets(), rules, [60], batches, largest)
    free = model.descend(mean_squared_error, targets(), rules, [60], batches)
    assert (expected - free).abs().max() >= apart
    path = train_on_batches(
        model.train,
        start,
        targets(),
        mean_squared_error,
        rules,
        batches,
        [60],
        clip_norm=largest,
    )
    check(model, path, expected, 1e-11)


def test_full_batches_are_the_closed_form() -> None:
    model, rules = full_model(), [Coefficients(0.1, 0.0, 0.9, nesterov=True)] * 30
    everything = [torch.arange(TRAIN)] * 30
    start = model.outputs[:TRAIN]
    path = train_on_batches(
        model.train, start, targets(), mean_squared_error, rules, everything, [30]
    )
    closed = squared_error(model).descent(stretches(rules), [30])
    torch.testing.assert_close(path.train, closed.train, rtol=0, atol=1e-12)
    torch.testing.assert_close(path.dual, closed.dual, rtol=0, atol=1e-12)


def test_the_modes_can_be_shared() -> None:
    model = full_model()
    modes, start = Modes.of(model.train), model.outputs[:TRAIN]
    one = SquaredError(modes, start, targets()).flow([3.0])
    other = SquaredError(model.train, start, targets()).flow([3.0])
    assert torch.equal(one.train, other.train)


def test_a_flattened_full_kernel_is_the_same() -> None:
    model = full_model()
    flat = model.train.transpose(1, 2).reshape(TRAIN * OUTPUTS, -1)
    one = SquaredError(flat, model.outputs[:TRAIN], targets()).flow([3.0])
    torch.testing.assert_close(one.train, squared_error(model).flow([3.0]).train)


@pytest.mark.parametrize("kernel", [torch.eye(5), torch.eye(TRAIN * 2), torch.ones(3)])
def test_kernels_of_other_sizes_are_refused(kernel: Tensor) -> None:
    with pytest.raises(ValueError, match="kernel"):
        SquaredError(kernel, targets(), targets())


def test_steps_after_the_end_are_refused() -> None:
    rules = [Coefficients(0.1, 0.0)] * 5
    with pytest.raises(ValueError, match="after the schedule's 5 steps"):
        squared_error(full_model()).descent(stretches(rules), [3, 6])
    kernel, batches = full_model().train, some_batches(4)
    with pytest.raises(ValueError, match="5 rules and 4 batches"):
        train_on_batches(kernel, targets(), targets(), mean_squared_error, rules, batches, [1])
    with pytest.raises(ValueError, match=r"4 rules and 4 batches for \[5\] steps"):
        train_on_batches(kernel, targets(), targets(), mean_squared_error, rules[1:], batches, [5])


def test_decay_without_the_radial_derivative_is_refused() -> None:
    model, rule = full_model(), Coefficients(0.1, 0.01)
    with pytest.raises(UserError, match="radial"):
        squared_error(model, radial=False).descent([Stretch(rule)], [1])
    with pytest.raises(UserError, match="radial"):
        squared_error(model, radial=False).flow([1.0], decay=0.1)
    with pytest.raises(UserError, match="radial"):
        gradient_flow(
            model.train, model.outputs[:TRAIN], targets(), mean_squared_error, [1.0], decay=0.1
        )
    with pytest.raises(UserError, match="radial"):
        squared_error(model).flow([1.0], decay=0.1).at(model.cross, model.outputs[TRAIN:])


def test_a_limit_of_unstable_steps_is_refused() -> None:
    solution = squared_error(full_model())
    for factor in (1, 1.01):  # at the edge itself steps go back and forth for ever
        largest = largest_lr(float(solution.curvatures[-1]), RULES["sgd"])
        unstable = Coefficients(factor * largest, 0.0)
        with pytest.raises(UserError, match="no limit"):
            solution.descent([Stretch(unstable)], [math.inf])
