"""Runs of neural-mechanics: what is read of them, what is predicted, what is refused."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import Training.upstream_checkpoints
from Data import DATASETS
from Data.dataset import Dataset, Split
from Metrics.features import NotRecorded, step_features
from Metrics.metric import Curves
from Metrics.registry import METRICS, MetricEntry
from Models.symmetry import Laws
from tests.runs import cache_run, copy_run, extract_run, mistake, run_stage, train_run
from tests.upstream import FLAGS, Trained, train
from Utils.errors import UserError
from Utils.rundir import RunFolder

Floats = NDArray[np.float64]
Weights = dict[str, Tensor]

CHARGES = "--metrics scale,rescale,translation"


def moved(tmp_path: Path, **flags: Any) -> Trained:
    """A run of neural-mechanics, extracted and cached."""
    trained = train(tmp_path / "e" / "x", **flags)
    extract_run(trained.run, "--probe none")
    cache_run(trained.run)
    return trained


def hashes(run: RunFolder) -> dict[str, str]:
    """Of what neural-mechanics wrote."""
    files = [run.hyperparameters, *map(run.checkpoint, run.checkpoint_steps())]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def curves(run: RunFolder, metric: str, name: str) -> dict[str, Floats]:
    """By layer, [T, units]."""
    with h5py.File(run.cache(metric)) as file:
        return {layer: array[()] for layer, array in file.get(name, {}).items()}


def gates(run: RunFolder, metric: str) -> dict[str, tuple[int, str]]:
    """How many laws of each layer are open, and why others are not."""
    with h5py.File(run.cache(metric)) as file:
        return {n: (int(g[()].sum()), g.attrs["reason"]) for n, g in file.get("gate", {}).items()}


def rows(w: Weights, layer: str) -> Floats:
    """Squares of what a layer writes, of tensors that are squares already."""
    sums = w[f"{layer}.weight"].flatten(1).sum(1)
    return (sums + w[f"{layer}.bias"] if f"{layer}.bias" in w else sums).numpy()


def columns(w: Weights, layer: str, inputs: int) -> Floats:
    weight = w[f"{layer}.weight"]
    summed: Floats = weight.reshape(len(weight), inputs, -1).sum((0, 2)).numpy()
    return summed


def squared(w: Weights) -> Weights:
    return {name: tensor**2 for name, tensor in w.items()}


def chain(layers: str, width: int, names: str) -> dict[str, Callable[[Weights], Floats]]:
    """Rescale charges of consecutive layers, by their names here; those there are in ``layers``."""
    places, ours = layers.split(), names.split()
    return {
        f"{ours[i]}|{ours[i + 1]}": lambda w, i=i: (  # type: ignore[misc]
            columns(w, places[i + 1], width) - rows(w, places[i])
        )
        for i in range(len(places) - 1)
    }


FC = chain("1 3 5 7 9 11", 100, "fc1 fc2 fc3 fc4 fc5 classifier")
CONV = chain("0 2 5", 32, "conv1 conv2 classifier")


def apart(found: Floats, expected: Floats) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# ---------------------------------------------------------------- the stages


def test_the_stages_as_processes(tmp_path: Path) -> None:
    flags: dict[str, Any] = {"wd": 1e-2, "save_buffers": ["sgd"], "epochs": 3, "save_freq": 2}
    flags["lr_drops"] = [1, 2]
    trained = train(tmp_path / "e" / "x", **flags)
    run, before = trained.run, hashes(trained.run)
    steps = [0, 2, 3, 4, 6, 8, 9]
    code, output, errors = run_stage("extract", run, "--probe none")
    found, done = errors.splitlines()
    assert (code, output) == (0, "")
    assert found == "extract: a run of neural-mechanics: 601 laws found for fc"
    assert done == f"extract: 7 new checkpoints of 7 extracted to {run.path}/feats"
    code, output, errors = run_stage("cache", run)
    done, *without = errors.splitlines()
    assert (code, done) == (0, f"cache: 7 new steps of 7 cached to {run.path}/cache")
    assert without[0] == (
        "cache: not cached without train.py --save-buffers grad,update: "
        "gradient, phase, weights_grads, weights_grads_full"
    )
    assert without[1:] == [
        f"cache: {name} is left out: neural-mechanics recorded no {what} of each law"
        for name, what in (("budget", "kinetic"), ("rotation", "turned"))
    ]
    table = [line.split() for line in output.splitlines()[2:]]
    assert [row[1:5] for row in table] == [
        ["rescale", "500", "500", "–"],
        ["translation", "101", "101", table[1][4]],
    ]
    assert float(table[1][4]) < 1e-5
    code, output, errors = run_stage("plot", run, "--metrics rescale,translation --format png")
    assert (code, errors) == (0, "")
    assert run.figure("rescale", "", "png").stat().st_size > 10_000

    check_the_papers_curve(trained, 1e-2, steps, 1e-5)
    exact, sums = curves(run, "translation", "exact"), curves(run, "translation", "empirical")
    columns_there = [trained.weights(step)["11.weight"].sum(0).numpy() for step in steps]
    assert apart(sums["classifier.weight"], np.array(columns_there)) < 1e-12
    assert apart(exact["classifier.weight"], sums["classifier.weight"]) < 1e-5
    with h5py.File(run.cache("translation")) as file:
        assert file["steps"][()].tolist() == steps
        np.testing.assert_allclose(file["time"], [sum(trained.rates[:n]) for n in steps])
    assert hashes(run) == before
    assert extract_run(run, "--probe none") == 0


def check_the_papers_curve(trained: Trained, wd: float, steps: list[int], tolerance: float) -> None:
    """Compare with e^{−2λη}(u + η²|d|²), step by step with the recorded squares and rates."""
    paper = {name: charge(squared(trained.weights(0))) for name, charge in FC.items()}
    found, measured = (curves(trained.run, "rescale", c) for c in ("theoretical", "empirical"))
    for step, (rate, squares) in enumerate(zip(trained.rates, trained.squares, strict=True), 1):
        for name, charge in FC.items():
            paper[name] = math.exp(-2 * wd * rate) * (paper[name] + rate**2 * charge(squares))
            if step in steps:
                row, weights = steps.index(step), squared(trained.weights(step))
                assert apart(measured[name][row], charge(weights)) < 1e-12
                assert apart(found[name][row], paper[name]) < tolerance


def test_the_papers_curve_across_drops_in_double_precision(tmp_path: Path) -> None:
    flags: dict[str, Any] = {"lr": 0.5, "wd": 0.4, "lr_drops": [2, 1], "lr_drop_rate": 0.7}
    flags |= {"epochs": 3, "save_buffers": ["sgd", "mom"], "save_freq": 2}
    trained = moved(tmp_path, dtype=torch.float64, **flags)
    assert [trained.rates[k] for k in (0, 3, 6)] == pytest.approx([0.5, 0.35, 0.245])
    check_the_papers_curve(trained, 0.4, [0, 2, 3, 4, 6, 8, 9], 1e-12)
    exact, sums = (
        curves(trained.run, "translation", c)["classifier.weight"] for c in ("exact", "empirical")
    )
    assert apart(exact, sums) < 1e-12


def test_features_are_what_was_saved(tmp_path: Path) -> None:
    trained = train(tmp_path / "e" / "x", model="fc-bn", momentum=0.9, save_buffers=["sgd", "mom"])
    extract_run(trained.run, "--probe none")
    content = torch.load(trained.run.checkpoint(6), weights_only=False)
    names = {"1.weight": "fc1.weight", "5.bias": "bn2.bias", "16.weight": "classifier.weight"}
    position = [name for name, _ in trained.model.named_parameters()].index
    with h5py.File(trained.run.features(6)) as file:
        for theirs, ours in names.items():
            assert np.array_equal(file["params"][ours], content["model_state_dict"][theirs])
            state = content["optimizer_state_dict"]["state"][position(theirs)]
            kept = state["buffers"] | {"momentum_buffer": state["momentum_buffer"]}
            assert len(kept) == 4
            for name, tensor in kept.items():
                assert np.array_equal(file[f"buffers/{ours}.{name}"], tensor)
        mean = content["model_state_dict"]["2.running_mean"]
        assert np.array_equal(file["state/bn1.running_mean"], mean)
        assert file["metrics/accuracy1"][()] == 12.5
        assert file["metrics/epoch"][()] == 1
        assert set(file["conservation"]) == {"time", "update"}


# ---------------------------------------------------------------- other networks


def test_logistic_is_its_translations(tmp_path: Path) -> None:
    trained = moved(tmp_path, model="logistic", optimizer="sgd", wd=0.1)
    found = curves(trained.run, "translation", "exact")["classifier.weight"]
    expected = trained.weights(0)["1.weight"].sum(0).numpy() * (1 - 0.1 * 0.1) ** 6
    assert apart(found[-1], expected) < 1e-12


def test_conv_is_balanced_across_the_flatten(tmp_path: Path) -> None:
    trained = moved(tmp_path, model="conv", epochs=1, save_buffers=["sgd"])
    measured = curves(trained.run, "rescale", "empirical")
    assert set(measured) == set(CONV)
    for name, charge in CONV.items():
        assert apart(measured[name][-1], charge(squared(trained.weights(3)))) < 1e-12
        # without decay the discrete law and the paper's are the same sum of squares
        for curve in ("exact", "theoretical"):
            found = curves(trained.run, "rescale", curve)[name]
            assert np.abs(found - measured[name]).max() < 1e-6
    assert gates(trained.run, "rescale") == dict.fromkeys(CONV, (32, ""))


def test_fc_bn_has_scale_laws(tmp_path: Path) -> None:
    trained = moved(tmp_path, model="fc-bn", optimizer="sgd")
    measured = curves(trained.run, "scale", "empirical")
    assert set(measured) == {f"fc{i}" for i in range(1, 6)}
    assert apart(measured["fc2"][-1], rows(squared(trained.weights(6)), "4")) < 1e-12
    reason = "neural-mechanics recorded no squared gradients: only custom_sgd's --save-buffers sgd"
    for layer, (opened, why) in gates(trained.run, "scale").items():
        assert (layer, opened) == (layer, 0)
        assert why.startswith(reason)
    assert gates(trained.run, "translation")["classifier.weight"] == (100, "")


@pytest.mark.parametrize("model", ["vgg11", "resnet18"])
def test_networks_for_small_images(model: str, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"epochs": 1, "train_batch_size": 50_000, "optimizer": "sgd"}
    flags |= {"model": model, "model_class": "tinyimagenet", "dataset": "cifar10"}
    trained = train(tmp_path / "e" / "x", **flags)
    extract_run(trained.run, "--probe none")
    cache_run(trained.run, CHARGES)
    w = trained.weights(1)
    if model == "vgg11":
        found = curves(trained.run, "rescale", "empirical")["features.8|features.11"]
        expected = columns(squared(w), "features.11", 256) - rows(squared(w), "features.8")
        head = "classifier.6"
    else:
        found = curves(trained.run, "scale", "empirical")["layer2.0.downsample.0"]
        expected = rows(squared(w), "conv3_x.0.shortcut.0")
        head = "fc"
    assert apart(found[-1], expected) < 1e-12
    exact = curves(trained.run, "translation", "exact")[f"{head}.weight"]
    assert apart(exact[-1], trained.weights(0)[f"{head}.weight"].sum(0).numpy()) < 1e-12


# ---------------------------------------------------------------- predictions with momentum

DAMPING: dict[str, dict[str, float]] = {
    "overdamped": {"lr": 0.1, "momentum": 0.8, "wd": 1e-3},
    "underdamped": {"lr": 0.5, "momentum": 0.9, "wd": 0.05, "dampening": 0.5},
    "critically damped": {"lr": 1.0, "momentum": 0.5, "wd": 1 / 24},
}


def oscillator(t: float, gamma: float, omega2: float) -> tuple[float, float]:
    """q(t) of ``q̈ + 2γq̇ + ω²q = 0`` from (1, 0) and from (0, 1), by an independent solver."""
    from scipy.linalg import expm

    flow = expm(np.array([[0.0, 1.0], [-omega2, -2 * gamma]]) * t)
    return float(flow[0, 0]), float(flow[0, 1])


@pytest.mark.parametrize("damping", DAMPING)
def test_the_papers_curve_with_momentum(damping: str, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"dampening": 0.0, **DAMPING[damping]}
    trained = moved(tmp_path, dtype=torch.float64, save_buffers=["mom"], **flags)
    h = flags["lr"] * (1 - flags["dampening"])
    d = h * (1 + flags["momentum"])
    gamma, omega2 = (1 - flags["momentum"]) / d, 4 * flags["wd"] / d
    n = len(trained.squares)
    for name, charge in FC.items():
        expected = oscillator(h * n, gamma, omega2)[0] * charge(squared(trained.weights(0)))
        for k, squares in enumerate(trained.squares):
            kick = 2 * flags["lr"] / (1 - flags["dampening"]) * charge(squares)
            expected = expected + oscillator(h * (n - k), gamma, omega2)[1] * kick
        found = curves(trained.run, "rescale", "theoretical")[name]
        assert apart(found[-1], expected) < 1e-12
        assert np.isnan(curves(trained.run, "rescale", "exact")[name][1:]).all()
    exact, sums = (
        curves(trained.run, "translation", c)["classifier.weight"] for c in ("exact", "empirical")
    )
    assert apart(exact, sums) < 1e-12
    assert np.abs(sums[-1] - sums[0]).max() > 1e-4


@pytest.mark.parametrize("variant", [{"dampening": 0.5}, {"nesterov": True}])
@pytest.mark.parametrize("optimizer", ["custom_sgd", "momentum"])
def test_translations_know_how_the_first_step_is_dampened(
    optimizer: str, variant: dict[str, Any], tmp_path: Path
) -> None:
    flags: dict[str, Any] = {"momentum": 0.9, "wd": 0.1, "lr_drops": [1], **variant}
    flags |= {"model": "logistic", "optimizer": optimizer, "epochs": 3, "save_freq": 2}
    trained = moved(tmp_path, dtype=torch.float64, **flags)
    exact, sums = (
        curves(trained.run, "translation", c)["classifier.weight"] for c in ("exact", "empirical")
    )
    assert apart(exact, sums) < 1e-12
    assert gates(trained.run, "translation")["classifier.weight"] == (784, "")


# ---------------------------------------------------------------- what cannot be predicted


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


def overflow(content: dict[str, Any]) -> None:
    content["optimizer_state_dict"]["state"][0]["buffers"]["integral_buffer"][7] = torch.inf


def another_rate(content: dict[str, Any]) -> None:
    content["optimizer_state_dict"]["param_groups"][0]["lr"] = 0.2


def another_epoch(content: dict[str, Any]) -> None:
    content["epoch"] = 5


@pytest.mark.parametrize(
    ("change", "translation", "rescale"),
    [
        (overflow, (100, ""), (99, "the integrals overflowed in 1 of 100 laws")),
        (
            another_rate,
            (0, "step 3 was made with lr 0.2, not 0.1 as scheduled"),
            (0, "step 3 was made with lr 0.2, not 0.1 as scheduled"),
        ),
        (
            another_epoch,
            (0, "step 3 in epoch 5 is not of 3 steps per epoch"),
            (0, "step 3 in epoch 5 is not of 3 steps per epoch"),
        ),
    ],
)
def test_what_a_checkpoint_contradicts_is_closed(
    change: Callable[[dict[str, Any]], None],
    translation: tuple[int, str],
    rescale: tuple[int, str],
    tmp_path: Path,
) -> None:
    trained = train(tmp_path / "e" / "x", epochs=1, save_buffers=["sgd"])
    rewrite(trained.run.checkpoint(3), change)
    extract_run(trained.run, "--probe none")
    cache_run(trained.run, CHARGES)
    assert gates(trained.run, "translation")["classifier.weight"] == translation
    assert gates(trained.run, "rescale")["fc1|fc2"] == rescale
    with h5py.File(trained.run.cache("rescale")) as file:
        assert np.isfinite(file["empirical/fc1|fc2"]).all()


CLOSED: list[tuple[dict[str, Any], str, str]] = [
    ({"optimizer": "adam"}, "adam has no law", "adam has no law"),
    ({"anneal_steps": 3}, "train_annealed counted", "train_annealed counted"),
    ({"save_buffers": []}, "", "neural-mechanics recorded no squared gradients: only custom_sgd's"),
    ({"save_buffers": [], "lr_drops": [1]}, "", "neural-mechanics recorded no squared gradients"),
    ({"momentum": 0.9}, "", "neural-mechanics recorded no squared gradients: only custom_sgd's"),
    (
        {"momentum": 0.9, "nesterov": True, "save_buffers": ["mom"]},
        "",
        "custom_sgd integrated Nesterov's steps",
    ),
    (
        {"momentum": 0.9, "lr_drops": [1], "save_buffers": ["mom"]},
        "",
        "custom_sgd kept the first learning rate after step 3",
    ),
    ({"dampening": 0.5, "wd": 0.1}, "", "custom_sgd weighted its integral with a time that"),
]


@pytest.mark.parametrize(("flags", "translation", "rescale"), CLOSED)
def test_what_was_not_recorded_is_closed_with_the_reason(
    flags: dict[str, Any], translation: str, rescale: str, tmp_path: Path
) -> None:
    trained = train(tmp_path / "e" / "x", **{"save_buffers": ["sgd"], **flags})
    extract_run(trained.run, "--probe none")
    cache_run(trained.run, CHARGES)
    opened, why = gates(trained.run, "translation")["classifier.weight"]
    assert why.startswith(translation)
    assert opened == (0 if translation else 100)
    assert gates(trained.run, "rescale")["fc1|fc2"][1].startswith(rescale)
    assert gates(trained.run, "rescale")["fc1|fc2"][0] == 0


def test_a_start_or_a_drop_without_checkpoint(tmp_path: Path) -> None:
    trained = train(tmp_path / "e" / "x", save_buffers=["sgd"], lr_drops=[1])
    trained.run.checkpoint(3).unlink()
    extract_run(trained.run, "--probe none")
    cache_run(trained.run, CHARGES)
    why = "there are no features of step 3, where the learning rate drops"
    assert gates(trained.run, "rescale")["fc1|fc2"] == (0, why)
    other = copy_run(trained.run, tmp_path / "f" / "x")
    other.features(0).unlink()
    cache_run(other, f"{CHARGES} --overwrite")
    why = "there are no features of step 0, from which predictions start"
    assert gates(other, "translation")["classifier.weight"] == (0, why)


class Greedy(Curves):
    """A metric that wants what only an observer has."""

    def rows(self, features: Any) -> Any:
        return {"empirical/all": features.record["decay"]}


def test_a_metric_that_needs_an_observer_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = moved(tmp_path, model="logistic")
    entry = MetricEntry("greedy", f"{__name__}:Greedy", "needs a record")
    monkeypatch.setitem(METRICS._entries, "greedy", entry)
    flags = "--overwrite --metrics"
    assert [p.name for p in cache_run(trained.run, f"{flags} greedy,translation")] == [
        "translation.h5"
    ]
    assert "greedy is left out: neural-mechanics recorded no record" in capsys.readouterr().err
    with pytest.raises(NotRecorded):
        cache_run(trained.run, f"{flags} greedy")
    laws = Laws.load(trained.run.symmetries)
    with step_features(trained.run.features(3), laws) as features:
        assert not features.observed


def test_metrics_that_need_the_data_fail_after_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train(tmp_path / "e" / "x", model="logistic")
    extract_run(trained.run, "--probe none")
    monkeypatch.setattr("Metrics.model_at.load_dataset", no_data)
    with pytest.raises(UserError, match="no images here"):
        cache_run(trained.run, "--metrics sharpness,translation")
    assert curves(trained.run, "translation", "empirical")["classifier.weight"].shape == (3, 784)


# ---------------------------------------------------------------- probe outputs


def no_data(name: str, data_dir: str, *_: Any, **__: Any) -> Dataset:
    raise UserError("no images here")


def noise(name: str, data_dir: str, *_: Any, **__: Any) -> Dataset:
    entry = DATASETS[name]
    images = torch.randint(0, 256, (9, *entry.input_shape), dtype=torch.uint8)
    split = Split(entry, images, torch.arange(9))
    return Dataset(entry, split, split)


def test_without_data_there_are_no_probe_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train(tmp_path / "e" / "x", epochs=1)
    monkeypatch.setattr(Training.upstream_checkpoints, "load_dataset", no_data)
    assert extract_run(trained.run) == 2
    assert "no probe outputs, as with --probe none: no images here" in capsys.readouterr().err
    assert extract_run(trained.run) == 0
    with h5py.File(trained.run.features(3)) as file:
        assert "probe" not in file
    monkeypatch.setattr(Training.upstream_checkpoints, "load_dataset", noise)
    assert extract_run(trained.run) == 2
    with h5py.File(trained.run.probe) as batch, h5py.File(trained.run.features(3)) as file:
        model: nn.Module = trained.model.eval()
        expected = model(torch.from_numpy(batch["inputs"][()])).detach()
        np.testing.assert_allclose(file["probe/logits"], expected, rtol=1e-5, atol=1e-6)


def test_with_data_the_network_itself_is_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train(tmp_path / "e" / "x", epochs=1, train_batch_size=60_000)
    extract_run(trained.run, "--probe none")
    monkeypatch.setattr("Metrics.model_at.load_dataset", noise)
    cache_run(trained.run, "--metrics certificate,sharpness --examples 4 --eigenvalues 1")
    with h5py.File(trained.run.cache("certificate")) as file:
        assert sum(len(gate) for gate in file["gate"].values()) == 601
        assert all(gate[()].all() for gate in file["gate"].values())
    with h5py.File(trained.run.cache("sharpness")) as file:
        assert file["theoretical/Hessian"][()].tolist() == [20.0, 20.0]


# ---------------------------------------------------------------- forms of files


@pytest.mark.parametrize("form", ["before zip", "parallel"])
def test_other_forms_of_checkpoints(form: str, tmp_path: Path) -> None:
    trained = train(tmp_path / "e" / "x", legacy=form == "before zip", model="logistic")
    if form == "parallel":
        for step in trained.run.checkpoint_steps():
            rewrite(trained.run.checkpoint(step), wrap)
    assert extract_run(trained.run, "--probe none") == 3
    assert extract_run(trained.run, "--probe none") == 0
    with h5py.File(trained.run.features(6)) as file:
        weight = trained.model.state_dict()["1.weight"]
        assert np.array_equal(file["params/classifier.weight"], weight)


def wrap(content: dict[str, Any]) -> None:
    state = content["model_state_dict"]
    content["model_state_dict"] = {f"module.{name}": tensor for name, tensor in state.items()}


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


def add_code(content: dict[str, Any]) -> None:
    content["train_loss"] = Evil()


def swap_norm(content: dict[str, Any]) -> None:
    """As fc-bn was in the early days: the normalisation after the nonlinearity."""
    state = content["model_state_dict"]
    for name in [name for name in state if name.startswith("2.")]:
        state[f"3.{name[2:]}"] = state.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_code, "holds more than tensors and plain containers and is not read"),
        (swap_norm, "does not fit the model that hyperparameters.json names: missing: bn1.weight"),
        (lambda c: c.pop("optimizer_state_dict"), "it lacks 'optimizer_state_dict'"),
        (lambda c: c["optimizer_state_dict"].pop("param_groups"), "it lacks 'param_groups'"),
    ],
)
def test_checkpoints_that_are_refused(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    trained = train(tmp_path / "e" / "x", model="fc-bn", optimizer="sgd", epochs=1)
    rewrite(trained.run.checkpoint(3), change)
    with pytest.raises(UserError) as caught:
        extract_run(trained.run, "--probe none")
    assert str(caught.value).startswith(str(trained.run.checkpoint(3)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert trained.run.feature_steps() == [0]
    assert not Path("touched").exists()


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    trained = train(tmp_path / "e" / "x", model="logistic", epochs=1, legacy=True)
    whole = trained.run.checkpoint(3).read_bytes()
    for content in (whole[: len(whole) // 2], whole[:300], b"text"):
        trained.run.checkpoint(3).write_bytes(content)
        with pytest.raises(UserError, match=r"step3\.tar (is|holds)") as caught:
            extract_run(trained.run, "--probe none")
        assert "\n" not in str(caught.value)
    message = mistake_after_one_line(trained.run)
    assert message.startswith(f"{trained.run.checkpoint(3)} is truncated or no checkpoint")


def mistake_after_one_line(run: RunFolder) -> str:
    """The mistake that extract.py ends with after it told what it did."""
    code, output, errors = run_stage("extract", run, "--probe none")
    assert (code, output) == (2, "")
    return errors.splitlines()[-1].removeprefix("extract.py: error: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": "resnet20", "model_class": "tinyimagenet"}, "unknown model of --model-class"),
        ({"model": "vgg11"}, "--model vgg11 is not of --model-class default"),
        ({"dataset": "svhn"}, "dataset svhn is none that neural-mechanics has"),
        ({"optimizer": "sophia"}, "unknown optimizer 'sophia'"),
        ({"lr": "fast"}, "--lr fast: "),
        ({"lr_drops": [0, 3]}, "must be ascending epochs"),
    ],
)
def test_what_does_not_exist_here_is_refused(
    flags: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    run.path.mkdir(parents=True)
    run.hyperparameters.write_text(json.dumps({**FLAGS, **flags}))
    with pytest.raises(UserError) as caught:
        extract_run(run)
    assert message in str(caught.value)
    assert str(run.hyperparameters) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_they_are_neither_continued_nor_replaced(tmp_path: Path) -> None:
    trained = train(tmp_path / "e" / "x", model="logistic", epochs=1)
    before = hashes(trained.run)
    for flags in ("", "--overwrite"):
        with pytest.raises(UserError, match=r"of neural-mechanics, which train\.py neither"):
            train_run(trained.run.path, flags)
    assert hashes(trained.run) == before


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    run.path.mkdir(parents=True)
    keys = {key: value for key, value in FLAGS.items() if key != "model"}
    run.hyperparameters.write_text(json.dumps(keys))
    assert "hyperparameters.json lacks 'model'; bring back" in mistake("extract", run)


def test_its_own_features_and_caches_are_not_replaced(tmp_path: Path) -> None:
    trained = train(tmp_path / "e" / "x", model="logistic", epochs=1)
    run = trained.run
    run.features(0).parent.mkdir()
    with h5py.File(run.features(0), "w") as file:  # as PyTables, below deepdish, marks its files
        file.attrs["PYTABLES_FORMAT_VERSION"] = "2.1"
    before = run.features(0).read_bytes()
    for flags in ("--probe none", "--probe none --overwrite"):
        with pytest.raises(UserError, match=r"step0\.h5 was written by neural-mechanics itself"):
            extract_run(run, flags)
    assert run.features(0).read_bytes() == before
    run.features(0).unlink()
    extract_run(run, "--probe none")
    run.cache("scale").parent.mkdir()
    with h5py.File(run.cache("scale"), "w") as file:
        file.attrs["PYTABLES_FORMAT_VERSION"] = "2.1"
    with pytest.raises(UserError, match="rename the folder cache"):
        cache_run(run, "--overwrite")
