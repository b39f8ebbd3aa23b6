"""Sharpness in caches: closed forms, schedules, preconditioners from features, gates."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from Data import load_dataset
from Data.batches import random_batch
from Data.dataset import Split
from Metrics.figures import draw
from tests.runs import Runs, cache_run, extract_run, train_run
from Training.groups import by_form
from Utils.errors import UserError
from Utils.rundir import RunFolder

HESSIAN, PRECONDITIONED = "Hessian", "preconditioned Hessian"
REGRESSION = "--model logistic --loss mse --dtype float64"
ALL = "--metrics sharpness --examples 2000 --eigenvalues 1"


def digits() -> Split:
    train = load_dataset("digits").train
    assert isinstance(train, Split)
    return train


def regression_matrix() -> np.ndarray[Any, Any]:
    """2/(NC) X̃ᵀX̃ of the training digits, X̃ = [X 1]: the Hessian of each output's weights."""
    raw = digits().inputs.flatten(1).double().numpy()
    extended = np.hstack([(raw / 16 - 0.3058) / 0.3762, np.ones((len(raw), 1))])
    matrix: np.ndarray[Any, Any] = 2 / (10 * len(raw)) * extended.T @ extended
    return matrix


def curves(run: RunFolder) -> dict[str, Any]:
    with h5py.File(run.cache("sharpness")) as file:
        groups = ("empirical", "error", "theoretical")
        return {f"{g}/{n}": file[g][n][()] for g in groups for n in file[g]}


def test_linear_regression(own: Runs) -> None:
    run = own(f"{REGRESSION} --lr 0.3 --wd 0.01")
    cache_run(run, ALL)
    found = curves(run)
    largest = np.linalg.eigvalsh(regression_matrix())[-1]
    for matrix in (HESSIAN, "Gauss-Newton"):
        np.testing.assert_allclose(found[f"empirical/{matrix}"], largest, rtol=1e-9)
        assert (found[f"error/{matrix}"] < 1e-6 * largest).all()
    assert set(found) == {
        *(
            f"{curve}/{matrix}"
            for curve in ("empirical", "error")
            for matrix in (HESSIAN, "Gauss-Newton")
        ),
        f"theoretical/{HESSIAN}",
    }
    np.testing.assert_allclose(found[f"theoretical/{HESSIAN}"], 2 / 0.3 - 0.01, rtol=1e-14)


def test_the_threshold_follows_the_schedule(own: Runs) -> None:
    run = own(
        f"{REGRESSION} --optimizer momentum --momentum 0.5 --lr 0.1 --lr-schedule cosine "
        "--warmup-steps 4 --save-freq 1"
    )
    cache_run(run, f"{ALL} --examples 64")
    lr = []
    for step in run.checkpoint_steps():
        checkpoint = torch.load(run.checkpoint(step), weights_only=True)
        lr.append(checkpoint["optimizer_state_dict"]["param_groups"][0]["lr"])
    expected = np.divide(3.0, lr, out=np.full(len(lr), np.inf), where=np.array(lr) > 0)
    np.testing.assert_allclose(curves(run)[f"theoretical/{HESSIAN}"], expected, rtol=1e-12)
    assert len({*expected}) > 8
    draw(run.cache("sharpness"))  # an infinite threshold is not drawn


def adaptive(run: RunFolder, monkeypatch: pytest.MonkeyPatch, kind: Any, **options: Any) -> Any:
    """Give a run the optimizer state that torch makes, as extract.py names it."""

    def build(config: Any, model: nn.Module, _: None) -> Any:
        matrices, vectors = by_form(list(model.named_parameters()))
        spared = {"weight_decay": 0.0} if config.wd_on == "matrices" else {}
        return kind([{"params": matrices}, {"params": vectors, **spared}], lr=0.01, **options)

    monkeypatch.setattr("Metrics.edge.build_optimizer", build)
    torch.manual_seed(0)
    model = nn.Linear(64, 10, dtype=torch.float64)
    optimizer = kind(model.named_parameters(), lr=0.01, **options)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    with h5py.File(run.features(12), "a") as file:
        for name, parameter in model.named_parameters():
            for buffer, value in optimizer.state[parameter].items():
                file[f"buffers/classifier.{name}.{buffer}"] = value.numpy()
    return optimizer.state[model.weight], optimizer.state[model.bias]


@pytest.mark.parametrize("decayed", ["all", "matrices"])
def test_adam_is_judged_by_the_preconditioned_hessian(
    own: Runs, monkeypatch: pytest.MonkeyPatch, decayed: str
) -> None:
    run = own(f"{REGRESSION} --wd 0.05 --wd-on {decayed}")
    options = {"betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.05}
    states = adaptive(run, monkeypatch, torch.optim.Adam, **options)
    cache_run(run, ALL)
    root = [(s["exp_avg_sq"] / (1 - 0.99**3)).sqrt() + 1e-3 for s in states]
    p = (1 - 0.8**3) * torch.cat([root[0], root[1][:, None]], 1).numpy()  # [outputs, inputs + 1]
    decay = np.full(65, 0.05)
    decay[64] *= decayed == "all"  # the bias
    matrix = regression_matrix() + np.diag(decay)
    largest = max(np.linalg.eigvals(matrix / row[:, None]).real.max() for row in p)
    found = curves(run)
    np.testing.assert_allclose(found[f"empirical/{PRECONDITIONED}"][-1], largest, rtol=1e-8)
    assert np.isnan(found[f"empirical/{PRECONDITIONED}"][:-1]).all()  # no buffers before
    expected = 2 / 0.05 * 1.8 / 0.2  # the run's --lr
    np.testing.assert_allclose(found[f"theoretical/{PRECONDITIONED}"], expected, rtol=1e-12)
    assert f"theoretical/{HESSIAN}" not in found


@pytest.mark.parametrize(("name", "edge"), [("adam", 38e3), ("adamw", 38e3), ("rms", 2e3)])
def test_optimizers_of_the_registry_have_their_edge(own: Runs, name: str, edge: float) -> None:
    """38/η for Adam with β₁ = 0.9 (Cohen et al. 2022), 2/η without momentum; at lr 10⁻³."""
    run = own(f"--model fc --width 4 --depth 3 --optimizer {name} --wd 0")
    cache_run(run, f"{ALL} --examples 32 --eigenvalues 1")
    found = curves(run)
    np.testing.assert_allclose(found[f"theoretical/{PRECONDITIONED}"], edge, rtol=1e-9)
    assert np.isfinite(found[f"empirical/{PRECONDITIONED}"][1:]).all()


@pytest.mark.parametrize("optimizer", ["sgd", "momentum --momentum 0.5"])
def test_a_parametrization_is_judged_by_the_hessian_times_its_factors(
    own: Runs, optimizer: str
) -> None:
    """By the dense Hessian of the network, S H S with S² the factors of learning rates."""
    run = own(
        "--model fc --depth 2 --width 4 --nonlinearity tanh --loss mse --dtype float64 "
        f"--param mup --lr 0.2 --optimizer {optimizer}"
    )
    cache_run(run, "--metrics sharpness --examples 2000 --eigenvalues 2")
    task = run.read_hyperparameters()["task"]["parametrization"]["parameters"]
    factors = {row["name"]: row["lr"] for row in task}
    assert len({*factors.values()}) > 1
    state = torch.load(run.checkpoint(12), weights_only=True)["model_state_dict"]
    shapes = {name: weight.shape for name, weight in state.items()}
    flat = torch.cat([weight.reshape(-1) for weight in state.values()])
    x = torch.from_numpy((digits().inputs.flatten(1).double().numpy() / 16 - 0.3058) / 0.3762)
    y = nn.functional.one_hot(digits().targets, 10).double()

    def loss(values: torch.Tensor) -> torch.Tensor:
        parts = torch.split(values, [shape.numel() for shape in shapes.values()])
        w, b, v, c = (p.view(s) for p, s in zip(parts, shapes.values(), strict=True))
        return (torch.tanh(x @ w.T + b) @ v.T + c - y).square().mean()

    dense = torch.autograd.functional.hessian(loss, flat)  # type: ignore[no-untyped-call]
    s = torch.cat([torch.full((shapes[n].numel(),), factors[n] ** 0.5) for n in shapes]).double()
    expected = torch.linalg.eigvalsh(s[:, None] * dense * s).flip(0)[:2]
    found = curves(run)
    np.testing.assert_allclose(found[f"empirical/{PRECONDITIONED}"][-1], expected, rtol=1e-8)
    edge = (2 if optimizer == "sgd" else 3) / 0.2
    np.testing.assert_allclose(found[f"theoretical/{PRECONDITIONED}"], edge, rtol=1e-12)
    with h5py.File(run.cache("sharpness")) as file:
        assert file[f"gate/{PRECONDITIONED}"][()].all()


@pytest.mark.parametrize(
    ("optimizer", "flags", "reason"),
    [
        (None, "--clip-norm 1", "clipped steps stay bounded at any curvature"),
        (torch.optim.Adagrad, "", "no threshold is known for sgd"),
        (None, "", ""),
    ],
)
def test_the_gate(
    own: Runs, monkeypatch: pytest.MonkeyPatch, optimizer: Any, flags: str, reason: str
) -> None:
    run = own(f"{REGRESSION} {flags}")
    if optimizer:
        adaptive(run, monkeypatch, optimizer)
    cache_run(run, f"{ALL} --examples 64 --eigenvalues 2")
    with h5py.File(run.cache("sharpness")) as file:
        assert file[f"gate/{HESSIAN}"][()].tolist() == [not reason] * 2
        assert file[f"gate/{HESSIAN}"].attrs["reason"] == reason
    figure = draw(run.cache("sharpness"))
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert len(dashed) == (not reason)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert reason in texts or not reason


def test_the_figure_has_a_panel_for_each_matrix_and_a_line_for_each_eigenvalue(own: Runs) -> None:
    run = own("--model fc --width 4 --depth 3")
    cache_run(run, "--metrics sharpness --examples 64 --eigenvalues 5")
    figure = draw(run.cache("sharpness"))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [HESSIAN, "Gauss-Newton"]
    first, second = ([line.get_ydata() for line in axes.lines] for axes in figure.axes)
    assert (len(first), len(second)) == (6, 5)  # the threshold beside the Hessian's
    found = curves(run)[f"empirical/{HESSIAN}"]
    assert np.array_equal(np.array(first[:5]).T, found)
    assert (np.diff(found) <= 0).all()
    legend = [text.get_text() for text in figure.legends[0].texts]
    ranks = ["largest eigenvalue", "second", "third", "no. 4", "no. 5"]
    assert legend == [*ranks, "edge of stability"]
    some = draw(run.cache("sharpness"), max_units=3)
    assert [t.get_text() for t in some.legends[0].texts] == [*ranks[::2], "edge of stability"]
    lines = [line.get_ydata() for line in some.axes[0].lines]
    assert np.array_equal(np.array(lines[:3]).T, found[:, ::2])
    (only,) = draw(run.cache("sharpness"), layers=("Gauss-Newton",)).axes
    assert only.get_title(loc="left") == "Gauss-Newton"


def test_other_flags_do_not_continue_a_cache(own: Runs) -> None:
    run = own(REGRESSION)
    cache_run(run, f"{ALL} --examples 64")
    for flag in ("--examples 65", "--examples 64 --eigenvalues 2"):
        with pytest.raises(UserError, match=r"sharpness\.h5 was made with --(examples|eigenv)"):
            cache_run(run, f"{ALL} {flag}")
    with pytest.raises(UserError, match="--eigenvalues 700: the network has 650 parameters"):
        cache_run(run, f"{ALL} --eigenvalues 700 --overwrite")


def test_the_order_of_the_steps_does_not_matter(own: Runs) -> None:
    run, whole = own("--model fc --width 4"), own("--model fc --width 4")
    flags = "--metrics sharpness,certificate --examples 32 --eigenvalues 2"
    cache_run(whole, flags)
    first = run.features(0).read_bytes()
    run.features(0).unlink()
    cache_run(run, flags)
    run.features(0).write_bytes(first)
    cache_run(run, flags)
    for metric in ("sharpness", "certificate"):
        assert run.cache(metric).read_bytes() == whole.cache(metric).read_bytes()


# ---------------------------------------------------------------- the network at a checkpoint


def test_examples_are_of_the_training_set_and_always_the_same() -> None:
    train = digits()
    few, many = (random_batch(train, size, 1, "examples") for size in (20, 5000))
    assert len(few[1]) == 20
    assert sorted(many[1].tolist()) == sorted(train.targets.tolist())
    assert all(torch.equal(a, b[:20]) for a, b in zip(few, many, strict=True))
    raw = few[0] * 0.3762 + 0.3058
    distance = torch.cdist(16 * raw.flatten(1), train.inputs.flatten(1).float())
    assert distance.min(1).values.max() < 1e-2
    assert torch.equal(train.targets[distance.argmin(1)], few[1])


def test_the_network_is_not_built_for_metrics_that_do_not_need_it(
    own: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = own(REGRESSION)
    cache_run(run, f"{ALL} --examples 64")

    def refuse(*_: Any) -> None:
        raise AssertionError

    for name in ("rebuild_model", "rebuild_config", "load_dataset", "select_device"):
        monkeypatch.setattr(f"Metrics.model_at.{name}", refuse)
    cache_run(run)
    cache_run(run, f"{ALL} --examples 64")  # nothing is new
    with pytest.raises(AssertionError):
        cache_run(run, f"{ALL} --examples 64 --overwrite")


NOISY = """
from torch import nn


def net(input_shape, num_classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(),
        nn.Linear(6, num_classes),
    )
"""


def test_dropout_and_batch_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(NOISY)
    run = train_run(tmp_path / "e" / "x", f"--model {tmp_path}/mine.py:net --dtype float64")
    extract_run(run)
    with h5py.File(run.features(12), "a") as file:
        file["state/2.running_var"][:] = 1e9  # nobody looks at it
    state = torch.get_rng_state()
    cache_run(run, "--metrics sharpness,certificate --examples 64 --eigenvalues 1")
    assert torch.equal(torch.get_rng_state(), state)
    found = curves(run)
    assert (found["error/Hessian"] < 1e-6 * found["empirical/Hessian"]).all()
    assert (found["empirical/Hessian"] > 0.01).all()
    with h5py.File(run.cache("certificate")) as file:
        assert max(float(x[()].max()) for x in file["logits"].values()) < 1e-3
        assert (
            max(float(x[()].max()) for n, x in file["logits"].items() if "scale 1" not in n) < 1e-13
        )


def test_a_network_that_is_gone(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text(NOISY)
    run = train_run(tmp_path / "e" / "x", f"--model {source}:net")
    extract_run(run)
    source.write_text(
        NOISY.replace("64, 6)", "64, 7)").replace("d(6", "d(7").replace("6, num", "7, num")
    )
    with pytest.raises(
        UserError, match=r"step0\.h5 does not fit the model .* leave sharpness, certificate"
    ):
        cache_run(run, ALL)
    source.unlink()
    with pytest.raises(
        UserError, match=r"mine\.py.*leave sharpness, certificate, .* out of --metr"
    ):
        cache_run(run, ALL)
    assert cache_run(run)
