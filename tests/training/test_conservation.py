"""The observer on stock optimizers, against charges measured from the weights."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from Models.symmetry import Charges, Family, Laws, Reduction, find_laws
from Training.conservation import ConservationObserver
from Training.law_state import LEAK_TOLERANCE

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "weight_decay": 5e-3},
    "sgd without decay": {"lr": 0.1},
    "momentum": {"lr": 0.03, "momentum": 0.9, "weight_decay": 5e-3},
    "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 5e-3},
    "nesterov": {"lr": 0.03, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-3},
    "nesterov without decay": {"lr": 0.03, "momentum": 0.9, "nesterov": True},
    "underdamped": {"lr": 0.02, "momentum": 0.99, "weight_decay": 1e-2},
}


def network(eps: float = 1e-5, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6, eps=eps),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 5),
    ).to(dtype)


def batches(steps: int, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for k in range(steps):
        size = 16 if k % 7 else 5  # partial batches too
        inputs = torch.randn(size, 2, 4, 4, generator=generator, dtype=torch.float64)
        yield inputs.to(dtype), torch.randint(0, 5, (size,), generator=generator)


def laws_of(model: nn.Module) -> Laws:
    dtype = next(model.parameters()).dtype
    return find_laws(model, torch.zeros(2, 2, 4, 4, dtype=dtype), "ce")


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: list[tuple[Tensor, Tensor]],
    clip: float = 0,
) -> None:
    for inputs, targets in data:
        optimizer.zero_grad()
        loss: Any = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def residual(observer: ConservationObserver, model: nn.Module) -> NDArray[np.float64]:
    """|measured − predicted| / size, [K]."""
    parameters = dict(model.named_parameters())
    measured, size = observer.laws.measure_with_sizes(lambda name: parameters[name].detach())
    predicted = observer.state_dict()["charge"].numpy()
    relative: NDArray[np.float64] = np.abs(measured - predicted) / size
    return relative


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("implementation", ["foreach", "for-loop", "fused"])
def test_predictions_are_exact_in_float64(options: dict[str, Any], implementation: str) -> None:
    model = network()
    flags = {"foreach": implementation == "foreach", "fused": implementation == "fused"}
    optimizer = torch.optim.SGD(model.parameters(), **options, **flags)
    observer = ConservationObserver(model, optimizer, laws_of(model))
    train(model, optimizer, list(batches(120)), clip=1.0)
    observer.record(120)
    assert residual(observer, model).max() < 1e-12
    assert observer.open.all()


def test_predictions_follow_schedules_of_every_hyper_parameter() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, weight_decay=1e-3)
    observer = ConservationObserver(model, optimizer, laws_of(model))
    for k, batch in enumerate(batches(90)):
        optimizer.param_groups[0] |= {
            "lr": 0.1 / (1 + k // 30),
            "momentum": 0.5 + k / 300,
            "weight_decay": 1e-3 * (k % 3),
        }
        train(model, optimizer, [batch])
    observer.record(90)
    assert residual(observer, model).max() < 1e-12


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_predictions_hold_to_five_digits_in_float32(options: dict[str, Any]) -> None:
    model = network(dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), **options)
    observer = ConservationObserver(model, optimizer, laws_of(model))
    train(model, optimizer, list(batches(300, torch.float32)))
    observer.record(300)
    quadratic = len(observer.laws.quadratic)
    assert residual(observer, model)[:quadratic].max() < 1e-5


def test_an_observed_run_is_the_run_itself() -> None:
    """Observing must not change a single bit of training."""
    final = []
    for observed in (True, False):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        observer = ConservationObserver(model, optimizer, laws_of(model)) if observed else None
        train(model, optimizer, list(batches(30)))
        if observer:
            observer.record(30)
        final.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*final, strict=True))


@pytest.mark.parametrize("options", [OPTIMIZERS["dampening"], OPTIMIZERS["sgd"]])
def test_resuming_changes_nothing(options: dict[str, Any]) -> None:
    data = list(batches(60))

    def fresh() -> tuple[nn.Module, torch.optim.SGD, ConservationObserver]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), **options)
        return model, optimizer, ConservationObserver(model, optimizer, laws_of(model))

    model, optimizer, observer = fresh()
    train(model, optimizer, data)
    observer.record(60)
    whole = observer.state_dict()

    model, optimizer, observer = fresh()
    train(model, optimizer, data[:25])
    observer.record(25)
    saved = model.state_dict(), optimizer.state_dict(), observer.state_dict()
    model, optimizer, observer = fresh()
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    observer.load_state_dict(saved[2])
    train(model, optimizer, data[25:])
    observer.record(60)
    resumed = observer.state_dict()
    for name, value in whole.items():
        if isinstance(value, Tensor) and name != "leak_peak":  # its peak is taken at records
            assert torch.equal(value, resumed[name]), name
    assert resumed["time"] == whole["time"]


def test_the_leak_of_a_normalisation_is_its_epsilon() -> None:
    """ℓ = ε/(σ² + ε) γ ∂L/∂γ per filter, the closed form for batch normalisation."""
    model = network(eps=1e-2)
    laws = laws_of(model)
    inputs, targets = next(batches(1))
    loss: Any = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    conv, norm = model[0], model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.weight.grad is not None
    variance = conv(inputs).var((0, 2, 3), correction=0)
    expected = norm.eps / (variance + norm.eps) * norm.weight * norm.weight.grad
    parameters = dict(model.named_parameters())
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    leak = laws.quadratic.form(lambda n: parameters[n].detach(), gradients.__getitem__)
    family = next(laws.of_kind("scale"))
    np.testing.assert_allclose(leak[family.units], expected.detach().numpy(), rtol=1e-9)


def false_law() -> Laws:
    """'Scale' of the second convolution, which no normalisation follows."""
    charges = Charges((Reduction("3.weight", "row"),), sparse.csr_matrix(np.eye(6)))
    family = Family("scale", "3", 0, 6, ("3.weight",))
    return Laws(charges, Charges((), sparse.csr_matrix((0, 0))), (family,), ())


def test_the_gate_closes_on_a_law_that_is_none() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    observer = ConservationObserver(model, optimizer, false_law())
    train(model, optimizer, list(batches(50)))
    observer.record(50)
    assert not observer.open.any()
    assert observer.state_dict()["leak_peak"].min() > LEAK_TOLERANCE


def in_groups(model: nn.Module, *options: dict[str, Any]) -> list[dict[str, Any]]:
    """Matrices, vectors and the last layer's weight as parameter groups with own options."""
    last = list(model.parameters())[-2]
    rest = [p for p in model.parameters() if p is not last]
    split = [[p for p in rest if p.dim() > 1], [p for p in rest if p.dim() == 1], [last]]
    return [{"params": group, **own} for group, own in zip(split, options, strict=True)]


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_predictions_are_exact_where_vectors_do_not_decay(options: dict[str, Any]) -> None:
    model = network()
    groups = in_groups(model, {}, {"weight_decay": 0.0}, {"weight_decay": 0.1})
    optimizer = torch.optim.SGD(groups, **options)
    observer = ConservationObserver(model, optimizer, laws_of(model))
    train(model, optimizer, list(batches(120)))
    observer.record(120)
    assert residual(observer, model).max() < 1e-12
    assert observer.open.all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_continuous_theory_takes_differing_decay_as_a_force(momentum: float) -> None:
    """It is off by a part of the drift that shrinks with the learning rate."""
    errors = []
    for lr in (0.02, 0.01):
        model = network()
        decay = 1.0 * (1 - momentum)
        groups = in_groups(model, {"weight_decay": decay}, {"weight_decay": 0.0}, {})
        optimizer = torch.optim.SGD(groups, lr, momentum)
        observer = ConservationObserver(model, optimizer, laws_of(model))
        inputs, targets = next(batches(1))
        steps = round(2 / lr)
        train(model, optimizer, [(inputs, targets)] * steps)
        observer.record(steps)
        state = observer.state_dict()
        error, drift = state["paper"] - state["charge"], state["charge"] - state["start"]
        (family,) = (f for f in observer.laws.of_kind("rescale") if f.layer == "1|3")
        errors.append(float(abs(error)[family.units].max() / abs(drift)[family.units].max()))
    assert errors[0] < 0.05
    assert errors[1] < 0.65 * errors[0]


@pytest.mark.parametrize(
    "differing", [{"lr": 0.01}, {"momentum": 0.5}, {"momentum": 0.0}, {"dampening": 0.1}], ids=str
)
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_gate_closes_where_a_laws_parameters_are_updated_differently(
    differing: dict[str, Any], nesterov: bool
) -> None:
    """Laws within one group hold, with its own hyper-parameters."""
    model = network()
    own = {"nesterov": nesterov and "dampening" not in differing}
    groups = in_groups(model, own, {**own, "weight_decay": 0.0}, differing)
    optimizer = torch.optim.SGD(groups, 0.05, 0.9, weight_decay=1e-2)
    observer = ConservationObserver(model, optimizer, laws_of(model))
    train(model, optimizer, list(batches(40)))
    observer.record(40)
    verdict = {(f.kind, f.layer): observer.open[f.units] for f in observer.laws.families}
    assert not verdict["rescale", "3|6"].any()
    assert verdict["rescale", "1|3"].all()
    assert verdict["scale", "0"].all()
    assert verdict["translation", "6.weight"].all()
    assert residual(observer, model)[observer.open].max() < 1e-12


def test_the_gate_closes_where_the_optimizer_leaves_a_parameter_out() -> None:
    model = network()
    weights = [p for p in model.parameters() if p.dim() > 1]
    optimizer = torch.optim.SGD(weights, 0.05, 0.9)
    observer = ConservationObserver(model, optimizer, laws_of(model))
    train(model, optimizer, list(batches(10)))
    observer.record(10)
    verdict = {(f.kind, f.layer): observer.open[f.units] for f in observer.laws.families}
    assert not verdict["rescale", "1|3"].any()
    assert verdict["translation", "6.weight"].all()


def test_record_holds_layer_sums_since_the_last_checkpoint() -> None:
    model = network()
    laws = laws_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = ConservationObserver(model, optimizer, laws)
    observer.record(0)
    data = list(batches(20))
    train(model, optimizer, data[:10])
    observer.record(10)
    observer.record(10)  # no second time
    parameters = dict(model.named_parameters())
    charges = laws.measure(lambda name: parameters[name].detach())
    record = observer.state_dict()["record"]
    assert record["step"].tolist() == [0, 10]
    np.testing.assert_allclose(record["time"], [0, 1.0])
    sums = [charges[family.units].sum() for family in laws.families]
    np.testing.assert_allclose(record["empirical"][1], sums, rtol=1e-12)
    observer.checkpointed()
    train(model, optimizer, data[10:])
    observer.record(20)
    assert observer.state_dict()["record"]["step"].tolist() == [20]


def test_time_of_gradient_flow() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.5)
    observer = ConservationObserver(model, optimizer, laws_of(model))
    train(model, optimizer, list(batches(8)))
    observer.record(8)
    assert observer.time == pytest.approx(8 * 0.1 * 0.5 / 0.1)


@pytest.mark.parametrize(("momentum", "per_law"), [(0.0, 5), (0.9, 9)])
def test_state_is_a_few_numbers_per_law(momentum: float, per_law: int) -> None:
    model = network()
    laws = laws_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, weight_decay=0.1)
    observer = ConservationObserver(model, optimizer, laws)
    train(model, optimizer, list(batches(3)))
    observer.record(3)
    state = observer.state_dict()
    doubles = sum(v.numel() for v in state.values() if getattr(v, "dtype", 0) == torch.float64)
    assert doubles == per_law * len(laws) + len(laws.quadratic)


def test_a_model_without_laws_is_observed_in_silence() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 5), nn.Tanh()).double()
    laws = find_laws(model, torch.zeros(2, 2, 4, 4, dtype=torch.float64), "mse")
    assert len(laws) == 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = ConservationObserver(model, optimizer, laws)
    train(model, optimizer, list(batches(3)))
    observer.record(3)
    assert observer.time == pytest.approx(0.3)
