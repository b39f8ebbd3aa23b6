"""Parameter-sized buffers: what they hold, from steps made by hand, and that it is their own."""

import copy
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import expm
from torch import Tensor, nn

from tests.runs import Runs
from tests.training.helpers import Train, differences
from tests.training.test_conservation import batches, laws_of, network, train
from tests.training.test_updates import RUNS
from Training import BUFFERS, TrainConfig
from Training.buffers import StepBuffers, integral, oscillator
from Training.checkpoints import load_checkpoint
from Training.conservation import ConservationObserver
from Training.discrete_laws import Coefficients
from Training.optimizers import build_optimizer
from Utils.config import validate
from Utils.rundir import RunFolder

OF_EVERY_OPTIMIZER = ("grad", "grad_norm", "update")
CLIP = 0.5
ETA, LAMBDA, DROP = 0.1, 2e-2, 12
"""Learning rate and decay; after step 12 the learning rate is a fifth."""

STEPS = 30

Floats = NDArray[np.float64]


def gradients(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """What a copy of the model says, clipped to a global norm by hand."""
    twin = copy.deepcopy(model)
    loss = nn.functional.cross_entropy(twin(batch[0]), batch[1])
    found = dict(
        zip(
            [name for name, _ in twin.named_parameters()],
            torch.autograd.grad(loss, list(twin.parameters())),
            strict=True,
        )
    )
    norm = sum(float(g.square().sum()) for g in found.values()) ** 0.5
    return {name: g * min(1.0, CLIP / (norm + 1e-6)) for name, g in found.items()}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", RUNS)
def test_the_last_step_is_kept_as_it_was(name: str) -> None:
    model = network()
    config = validate(TrainConfig, {"optimizer": name, **RUNS[name]}, "test")
    optimizer = build_optimizer(config, model)
    buffers = StepBuffers(model, optimizer, OF_EVERY_OPTIMIZER)
    assert not any(buffers.state_dict().values())  # there has been no step
    for batch in batches(3):
        expected, before = gradients(model, batch), weights(model)
        train(model, optimizer, [batch], clip=CLIP)
        after, held = weights(model), buffers.state_dict()
        for parameter, g in expected.items():
            mine = held[parameter]
            np.testing.assert_allclose(mine["grad_buffer"], g, rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(mine["grad_norm_buffer"], g * g, rtol=1e-12, atol=1e-15)
            assert torch.equal(mine["update_buffer"], after[parameter] - before[parameter])
            if mine["update_buffer"].dim() > 1:  # a dead bias may stay
                assert mine["update_buffer"].abs().max() > 0


@pytest.mark.parametrize(
    ("name", "time", "decay"),
    [
        ("sgd", 0.05, 5e-3),
        ("momentum", 0.05 * 0.8 / 0.1, 5e-3),
        ("adam", 1e-3, float("nan")),  # the decay is divided by the root of the second moment
        ("adamw", 1e-3, 1e-1),
    ],
)
def test_the_time_and_decay_of_the_last_step(name: str, time: float, decay: float) -> None:
    model = network()
    optimizer = build_optimizer(
        validate(TrainConfig, {"optimizer": name, **RUNS[name]}, "t"), model
    )
    buffers = StepBuffers(model, optimizer, ("update",))
    train(model, optimizer, list(batches(1)))
    for held in buffers.state_dict().values():
        np.testing.assert_allclose(held["update_time"], time, rtol=1e-14)
        np.testing.assert_equal(held["update_decay"].item(), decay)


def test_muons_vectors_have_a_time_of_their_own() -> None:
    model = network()
    config = validate(TrainConfig, {"optimizer": "muon", **RUNS["muon"]}, "test")
    buffers = StepBuffers(model, optimizer := build_optimizer(config, model), ("update",))
    train(model, optimizer, list(batches(1)))
    for name, parameter in model.named_parameters():
        held = buffers.state_dict()[name]
        assert held["update_time"] == (0.02 if parameter.dim() > 1 else 3e-4)
        assert held["update_decay"] == 0.1


@pytest.mark.parametrize("nesterov", [False, True])
def test_nothing_is_shared_with_the_optimizer(nesterov: bool) -> None:
    """Upstream's grad_buffer was p.grad, or the momentum buffer."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=nesterov)
    buffers = StepBuffers(model, optimizer, ("mom", *OF_EVERY_OPTIMIZER))
    train(model, optimizer, list(batches(2)))
    held = buffers.state_dict()
    places = [t.data_ptr() for tensors in held.values() for t in tensors.values()]
    foreign = {p.data_ptr() for p in model.parameters()}
    foreign |= {p.grad.data_ptr() for p in model.parameters() if p.grad is not None}
    foreign |= {state["momentum_buffer"].data_ptr() for state in optimizer.state.values()}
    assert len(set(places)) == len(places)
    assert not foreign & set(places)


def test_without_names_nothing_is_kept_or_hooked() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert StepBuffers(model, optimizer, ()).state_dict() == {}
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


# ---------------------------------------------------------------- the paper's integrals


def lr_at(step: int) -> float:
    return ETA if step < DROP else ETA / 5


def test_the_integral_of_sgd_is_its_sum() -> None:
    """Σ η_k² e^{−2λ(t_n − t_k)} g_k², each term written out."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), ETA, weight_decay=LAMBDA)
    buffers = StepBuffers(model, optimizer, ("sgd",))
    squares: list[dict[str, Tensor]] = []
    for k, batch in enumerate(batches(STEPS)):
        optimizer.param_groups[0]["lr"] = lr_at(k)
        squares.append({name: g.square() for name, g in gradients(model, batch).items()})
        train(model, optimizer, [batch], clip=CLIP)
    times = np.cumsum([0.0, *map(lr_at, range(STEPS))])
    for name, held in buffers.state_dict().items():
        expected = sum(
            lr_at(k) ** 2 * np.exp(-2 * LAMBDA * (times[-1] - times[k])) * squares[k][name].numpy()
            for k in range(STEPS)
        )
        np.testing.assert_allclose(held["integral_buffer"], expected, rtol=1e-9, atol=1e-18)


MOMENTUM: dict[str, dict[str, Any]] = {
    "heavy ball": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "underdamped": {"momentum": 0.99},
}


def free_decay(options: dict[str, Any]) -> float:
    """What is left of a charge of 1 that no gradient drives, after all steps."""
    beta, alpha = options.get("momentum", 0.0), options.get("dampening", 0.0)
    state = np.array([1.0, 0.0])
    for k in range(STEPS):
        h = lr_at(k) * (1 - alpha)
        if beta == 0:
            state[0] *= np.exp(-2 * LAMBDA * h)
            continue
        d = h * (1 + beta)
        generator = np.array([[0, 1], [-4 * LAMBDA / d, -2 * (1 - beta) / d]])
        state = expm(h * generator) @ state
    return float(state[0])


@pytest.mark.parametrize("options", [{}, *MOMENTUM.values()], ids=["sgd", *MOMENTUM])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_papers_prediction_follows_from_the_integrals(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    """q₀'s free decay plus the law of the buffer: what the observer's few numbers say."""
    model = network(dtype=dtype)
    laws = laws_of(model)
    optimizer = torch.optim.SGD(model.parameters(), ETA, weight_decay=LAMBDA, **options)
    observer = ConservationObserver(model, optimizer, laws)
    buffers = StepBuffers(model, optimizer, ("mom" if options else "sgd",))
    start = laws.measure(lambda name: dict(model.named_parameters())[name].detach())
    for k, batch in enumerate(batches(STEPS, dtype)):
        optimizer.param_groups[0]["lr"] = lr_at(k)
        train(model, optimizer, [batch])
    observer.record(STEPS)
    held, tensor = buffers.state_dict(), "integral_buffer_1" if options else "integral_buffer"
    forced = laws.quadratic.evaluate(lambda name: held[name][tensor])
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    kinds = set()
    for family in laws.families:
        if family.kind in {"scale", "rescale"}:
            kinds.add(family.kind)
            predicted = free_decay(options) * start[family.units] + forced[family.units]
            paper = observer.state_dict()["paper"][family.units].numpy()
            np.testing.assert_allclose(predicted, paper, rtol=0, atol=tolerance * abs(paper).max())
            assert abs(forced[family.units]).max() > 1e-4 * abs(paper).max()
    assert kinds == {"scale", "rescale"}


def test_integrals_do_not_grow_where_upstreams_overflowed() -> None:
    """β = .99, λ = 5e-4, η = .1: upstream's were infinite at step 17,686. The steady state is
    forcing over stiffness, 2|θ̇|²/ω² with |θ̇| = v, and for SGD η g²/2λ."""
    c, u, rate = Coefficients(0.1, 5e-4, momentum=0.99), torch.zeros(1), torch.zeros(1)
    plain, total = Coefficients(0.1, 5e-4), torch.zeros(1, dtype=torch.float64)
    u, rate = u.double(), rate.double()
    one = torch.ones(1)
    for _ in range(20_000):
        u, rate = oscillator(one, c, u, rate)
        (total,) = integral(one, plain, total)
    omega2 = 4 * 5e-4 / (0.1 * 1.99)
    np.testing.assert_allclose(u, 2 / omega2, rtol=1e-2)
    reached = 1 - np.exp(-2 * 0.1 * 5e-4 * 20_000)
    np.testing.assert_allclose(total, reached * 0.1 / (2 * 5e-4), rtol=1e-3)


def test_integrals_of_a_float32_run_decay_as_slowly_as_they_should() -> None:
    """1 − 2ηλ = 1 − 1e-8 is 1 in float32."""
    c, u = Coefficients(1e-2, 5e-7), torch.ones(1, dtype=torch.float64)
    for _ in range(1000):
        (u,) = integral(torch.zeros(1), c, u)
    np.testing.assert_allclose(1 - u, 1e-5, rtol=1e-4)


# ---------------------------------------------------------------- checkpoints and features

ALL = "--optimizer momentum --momentum 0.9 --nesterov --wd 1e-3 --clip-norm 1 --lr-drops 1"
KEPT = "--save-buffers mom,grad,grad_norm,update"


def test_a_continued_run_has_the_same_buffers(trains: Train, run: RunFolder) -> None:
    trains(f"{ALL} {KEPT} --save-freq 5")
    whole = load_checkpoint(run.checkpoint(24), mmap=False)
    assert set(next(iter(whole["buffer_state_dict"].values()))) == {
        tensor for entry in BUFFERS if entry.name != "sgd" for tensor in entry.tensors
    }
    for step in (10, 12, 15, 20, 24):
        run.checkpoint(step).unlink()
    trains(f"{ALL} {KEPT} --save-freq 5")
    assert differences(load_checkpoint(run.checkpoint(24)), whole) == []


def test_buffers_change_nothing_else(trains: Train, run: RunFolder) -> None:
    trains(ALL)
    without = load_checkpoint(run.checkpoint(24), mmap=False)
    assert without.pop("buffer_state_dict") == {}
    trains(f"{ALL} {KEPT} --overwrite")
    kept = load_checkpoint(run.checkpoint(24))
    assert kept.pop("buffer_state_dict")
    assert differences(kept, without) == []


def test_features_hold_them_beside_the_optimizers_own(trained: Runs) -> None:
    run = trained(f"--model fc --width 8 --depth 3 {ALL} {KEPT}")
    saved = load_checkpoint(run.checkpoint(12))["buffer_state_dict"]
    expected = {f"{name}.{tensor}" for name, tensors in saved.items() for tensor in tensors}
    with h5py.File(run.features(12)) as file:
        assert set(file["buffers"]) == expected | {f"{name}.momentum_buffer" for name in saved}
        for name, tensors in saved.items():
            for tensor, value in tensors.items():
                stored = file[f"buffers/{name}.{tensor}"]
                assert np.array_equal(stored[()], value.numpy())
                assert stored.dtype == value.numpy().dtype
    with h5py.File(run.features(0)) as file:
        assert set(file["buffers"]) == {
            f"{name}.integral_buffer_{i}" for name in saved for i in (1, 2)
        }


@pytest.mark.parametrize("name", RUNS)
def test_no_name_is_also_one_of_an_optimizers(name: str) -> None:
    model = network()
    config = validate(TrainConfig, {"optimizer": name, **RUNS[name]}, "test")
    optimizer = build_optimizer(config, model)
    train(model, optimizer, list(batches(1)))
    mine = {tensor for entry in BUFFERS for tensor in entry.tensors}
    assert not mine & {key for state in optimizer.state.values() for key in state}
