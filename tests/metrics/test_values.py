"""What the caches say: charges from raw weights, predictions from closed forms, gates."""

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse

from Metrics.summary import deviation, deviation_table
from Models.symmetry import Charges, Family, Kind, Laws, Reduction
from tests.runs import Runs, cache_run, copy_run, extract_run, train_run
from Utils.rundir import RunFolder

Floats = NDArray[np.float64]

CHARGES = "--metrics scale,rescale,translation"


def load(run: RunFolder, step: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run.checkpoint(step), weights_only=True)
    return content


def weights(run: RunFolder, step: int) -> dict[str, Floats]:
    """The parameters of a checkpoint in float64."""
    tensors = load(run, step)["model_state_dict"]
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def cached(run: RunFolder, metric: str) -> dict[str, Any]:
    """All arrays of a cache by their path."""
    arrays: dict[str, Any] = {}
    with h5py.File(run.cache(metric)) as file:
        file.visititems(lambda n, x: arrays.update({n: x[()]} if hasattr(x, "shape") else {}))
    return arrays


def curve(run: RunFolder, metric: str, name: str) -> Floats:
    """One curve of all layers [T, units]."""
    arrays = [a for path, a in cached(run, metric).items() if path.startswith(f"{name}/")]
    joined: Floats = np.concatenate(arrays, axis=-1)
    return joined


# ---------------------------------------------------------------- measurements


def rows(w: dict[str, Floats], layer: str) -> Floats:
    weight, bias = w[f"{layer}.weight"], w[f"{layer}.bias"]
    squares: Floats = (weight.reshape(len(weight), -1) ** 2).sum(1) + bias**2
    return squares


def columns(w: dict[str, Floats], layer: str, inputs: int) -> Floats:
    """Per input channel; after a flatten, each has as many columns as it has pixels."""
    weight = w[f"{layer}.weight"]
    squares: Floats = (weight.reshape(len(weight), inputs, -1) ** 2).sum((0, 2))
    return squares


def expected(model: str, width: int, w: dict[str, Floats]) -> dict[str, dict[str, Floats]]:
    """The charges of a default model of depth 3, per metric and layer, and their sizes."""
    kind = "conv" if "conv" in model else "fc"
    classes: dict[str, Floats] = {
        "classifier.weight": w["classifier.weight"].sum(0),
        "classifier.bias": w["classifier.bias"].sum(keepdims=True),
    }
    if model == "logistic":
        return {"scale": {}, "rescale": {}, "translation": classes}
    chain = [f"{kind}1", f"{kind}2", "classifier"]
    if not model.endswith("-bn"):
        rescale = {f"{a}|{b}": columns(w, b, width) - rows(w, a) for a, b in pairwise(chain)}
        return {"scale": {}, "rescale": rescale, "translation": classes}
    gains = zip(("bn1", "bn2"), chain[1:], strict=True)
    return {
        "scale": {layer: rows(w, layer) for layer in chain[:2]},
        "rescale": {f"{bn}|{b}": columns(w, b, width) - rows(w, bn) for bn, b in gains},
        "translation": classes | {f"{layer}.bias": w[f"{layer}.bias"] for layer in chain[:2]},
    }


@pytest.mark.parametrize(
    ("model", "width"), [("logistic", 0), ("fc", 8), ("fc-bn", 8), ("conv", 4), ("conv-bn", 4)]
)
def test_charges_are_those_of_the_raw_weights(own: Runs, model: str, width: int) -> None:
    size = f" --width {width} --depth 3" if width else ""
    run = own(f"--model {model}{size} --save-freq 5 --lr 0.1")
    cache_run(run, CHARGES)
    for place, step in enumerate(run.checkpoint_steps()):
        for metric, layers in expected(model, width, weights(run, step)).items():
            with h5py.File(run.cache(metric)) as file:
                assert set(file.get("empirical", ())) == set(layers)
                for layer, charge in layers.items():
                    measured = file["empirical"][layer][place]
                    np.testing.assert_allclose(measured, charge, rtol=1e-12, atol=1e-13)


def test_sizes_are_what_charges_would_be_without_cancellation(own: Runs) -> None:
    run = own("--model fc --width 8 --depth 3 --save-freq 5 --lr 0.1")
    cache_run(run, CHARGES)
    w = weights(run, 12)
    rescale = cached(run, "rescale")["size/fc1|fc2"][-1]
    np.testing.assert_allclose(rescale, columns(w, "fc2", 8) + rows(w, "fc1"), rtol=1e-12)
    translation = cached(run, "translation")["size/classifier.weight"][-1]
    np.testing.assert_allclose(translation, np.abs(w["classifier.weight"]).sum(0), rtol=1e-12)


def test_a_homogeneous_function_of_degree_two_counts_twice(own: Runs) -> None:
    run = own("--model fc --width 8 --depth 3 --nonlinearity relu2 --save-freq 5")
    cache_run(run, CHARGES)
    w = weights(run, 12)
    charge = cached(run, "rescale")["empirical/fc1|fc2"][-1]
    np.testing.assert_allclose(charge, 2 * columns(w, "fc2", 8) - rows(w, "fc1"), rtol=1e-12)


def test_layers_are_in_the_networks_order(own: Runs) -> None:
    run = own("--model fc --width 4 --depth 12")
    cache_run(run)
    names = list(load(run, 0)["model_state_dict"])
    with h5py.File(run.cache("network")) as file:
        assert list(file["empirical"]) == names
    with h5py.File(run.cache("rescale")) as file:
        assert list(file["empirical"])[8:11] == ["fc9|fc10", "fc10|fc11", "fc11|classifier"]


# ---------------------------------------------------------------- predictions

OPTIMIZERS = {
    "sgd": "--lr 0.1 --wd 1e-2",
    "damped momentum": "--optimizer momentum --momentum 0.9 --dampening 0.5 --lr 0.1 --wd 1e-2",
    "nesterov": "--optimizer momentum --momentum 0.9 --nesterov --lr 0.02 --wd 1e-2",
    "lr drops": "--optimizer momentum --momentum 0.9 --lr 0.05 --wd 1e-2 --lr-drops 2,4",
    "warm-up and cosine": "--lr 0.2 --wd 1e-2 --warmup-steps 9 --lr-schedule cosine",
    "clipping": "--optimizer momentum --momentum 0.5 --lr 0.1 --wd 1e-2 --clip-norm 0.3",
}


@pytest.mark.parametrize("model", ["conv-bn --width 4", "fc --width 8 --depth 3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_exact_law_holds(
    tmp_path: Path, optimizer: str, dtype: str, tolerance: float, model: str
) -> None:
    flags = f"--model {model} --dtype {dtype} {OPTIMIZERS[optimizer]} --epochs 6 --save-freq 10"
    run = train_run(tmp_path / "e" / "x", flags)
    extract_run(run, "--probe none")
    for path in cache_run(run, CHARGES):
        summary = deviation(path)
        assert summary is not None
        if summary.laws == 0:
            assert (model[:2], summary.metric) == ("fc", "scale")
            continue
        assert summary.open == summary.laws
        assert summary.worst[0] <= tolerance
        measured, size = (curve(run, summary.metric, name) for name in ("empirical", "size"))
        drift = np.abs(measured[-1] - measured[0]) / size[0]
        assert drift.max() > 1e-3  # that nothing moves would be a law, too
        assert curve(run, summary.metric, "dense/residual").max() <= tolerance


STEPWISE = "--dtype float64 --epochs 4 --save-freq 1 --model conv-bn --width 4"


def gradients(run: RunFolder, name: str, eta: float, lam: float) -> list[Floats]:
    """What plain SGD must have seen of a parameter, g = (θ − θ')/η − λθ, at each step."""
    theta = [weights(run, step)[name] for step in run.checkpoint_steps()]
    return [(a - b) / eta - lam * a for a, b in pairwise(theta)]


def squares(run: RunFolder, tensors: dict[str, list[Floats]]) -> Floats:
    """Σ over each filter of conv1, weights and bias, at each step [T, filters]."""
    pairs = zip(tensors["conv1.weight"], tensors["conv1.bias"], strict=True)
    return np.array([(w.reshape(len(w), -1) ** 2).sum(1) + b**2 for w, b in pairs])


def test_predictions_of_scale_under_sgd_follow_from_the_weights(own: Runs) -> None:
    eta, lam = 0.1, 0.05
    run = own(f"{STEPWISE} --lr {eta} --wd {lam}")
    cache_run(run, CHARGES)
    names = ("conv1.weight", "conv1.bias")
    g2 = squares(run, {name: gradients(run, name, eta, lam) for name in names})
    q = rows(weights(run, 0), "conv1")
    paper, exact = [q], [q]
    for n in range(1, len(g2) + 1):
        t, tau = eta * n, eta * np.arange(n)[:, None]
        past = (eta * np.exp(-2 * lam * (t - tau)) * g2[:n]).sum(0)
        paper.append(math.exp(-2 * lam * t) * q + eta * past)
        exact.append((1 - eta * lam) ** 2 * exact[-1] + eta**2 * g2[n - 1])
    arrays = cached(run, "scale")
    np.testing.assert_allclose(arrays["theoretical/conv1"], paper, rtol=1e-10)
    np.testing.assert_allclose(arrays["exact/conv1"], exact, rtol=1e-3)  # without the leak of ε
    assert np.abs(np.array(paper) - exact).max() > 1e-5  # they are different theories
    np.testing.assert_allclose(arrays["time"], eta * np.arange(len(g2) + 1), rtol=1e-14)


def oscillation(t: Floats, eta: float, beta: float, alpha: float, pull: float) -> tuple[Any, Any]:
    """The free motion from 1 at rest, and from 0 at speed 1 (the paper's appendix)."""
    damping = eta * (1 - alpha) * (1 + beta)
    gamma, omega2 = (1 - beta) / damping, pull / damping
    delta = np.sqrt(complex(omega2 - gamma**2))
    sine = np.exp(-gamma * t) * np.sin(delta * t) / delta
    return (np.exp(-gamma * t) * np.cos(delta * t) + gamma * sine).real, sine.real


@pytest.mark.parametrize(
    ("eta", "beta", "alpha", "lam"),
    [(0.05, 0.9, 0.0, 1e-2), (0.05, 0.9, 0.4, 0.5), (0.02, 0.5, 0.2, 1e-1)],
)
def test_predictions_under_momentum_are_those_of_a_forced_oscillator(
    own: Runs, eta: float, beta: float, alpha: float, lam: float
) -> None:
    run = own(
        f"{STEPWISE} --optimizer momentum --momentum {beta} --dampening {alpha} --lr {eta} "
        f"--wd {lam}"
    )
    cache_run(run, CHARGES)
    steps = run.checkpoint_steps()
    arrays = cached(run, "scale")
    np.testing.assert_allclose(arrays["time"], eta * (1 - alpha) / (1 - beta) * np.array(steps))
    t = eta * (1 - alpha) * np.array(steps)
    translation = cached(run, "translation")["theoretical/classifier.weight"]
    free, _ = oscillation(t, eta, beta, alpha, 2 * lam)
    start = weights(run, 0)["classifier.weight"].sum(0)
    np.testing.assert_allclose(translation, free[:, None] * start, rtol=1e-9, atol=1e-12)

    buffers: dict[str, list[Floats]] = {"conv1.weight": [], "conv1.bias": []}
    for step in steps[1:]:
        with h5py.File(run.features(step)) as file:
            for name, list_ in buffers.items():
                list_.append(file["buffers"][f"{name}.momentum_buffer"][()])
    v2 = squares(run, buffers)
    free, _ = oscillation(t, eta, beta, alpha, 4 * lam)
    predicted = free[:, None] * rows(weights(run, 0), "conv1")
    for n in steps:
        _, green = oscillation(t[n] - t[:n], eta, beta, alpha, 4 * lam)
        predicted[n] += 2 * eta / (1 - alpha) * (green[:, None] * v2[:n]).sum(0)
    np.testing.assert_allclose(arrays["theoretical/conv1"], predicted, rtol=1e-9)


def test_predictions_of_translation_under_sgd_are_exponentials(own: Runs) -> None:
    eta, lam = 0.1, 0.05
    run = own(f"{STEPWISE} --lr {eta} --wd {lam}")
    cache_run(run, CHARGES)
    n = np.array(run.checkpoint_steps())[:, None]
    arrays = cached(run, "translation")
    for layer in ("classifier.weight", "classifier.bias"):
        start = weights(run, 0)[layer].sum(0)
        paper, exact = np.exp(-lam * eta * n) * start, (1 - eta * lam) ** n * start
        np.testing.assert_allclose(arrays[f"theoretical/{layer}"], paper, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(arrays[f"exact/{layer}"], exact, rtol=1e-9, atol=1e-13)


# ---------------------------------------------------------------- gates


def quadratic(kind: Kind, layer: str, reductions: list[Reduction], matrix: Any) -> Laws:
    """Laws of one layer."""
    charges = Charges(tuple(reductions), sparse.csr_matrix(np.array(matrix, float)))
    parameters = tuple(reduction.parameter for reduction in reductions)
    none = Charges((), sparse.csr_matrix((0, 0)))
    family = Family(kind, layer, 0, len(matrix), parameters)
    return Laws(charges, none, (family,), ())


def train_with(
    laws: Laws, flags: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunFolder, Path]:
    """A run for which these laws are claimed, and the cache of its only family."""
    monkeypatch.setattr("Training.keeper.laws_of", lambda *_: laws)
    flags += " --dtype float64 --epochs 10 --wd 1e-2 --observe-freq 6"
    run = train_run(path / "e" / "false", flags)
    extract_run(run, "--probe none")
    return run, cache_run(run, f"--metrics {laws.families[0].kind}")[0]


EYE = np.eye(4)


@pytest.mark.parametrize(
    ("kind", "flags", "reductions", "matrix"),
    [
        (
            "scale",
            "--model conv --width 4",
            [Reduction("conv1.weight", "row"), Reduction("conv1.bias", "element")],
            np.hstack([EYE, EYE]),
        ),
        (
            "rescale",
            "--model conv-bn --width 4",
            [Reduction("conv2.weight", "column"), Reduction("conv1.weight", "row")],
            np.hstack([EYE, -EYE]),
        ),
    ],
)
def test_the_gate_closes_on_a_law_that_does_not_hold(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    flags: str,
    reductions: list[Reduction],
    matrix: Any,
) -> None:
    laws = quadratic(kind, "conv1", reductions, matrix)
    run, path = train_with(laws, f"{flags} --lr 0.1", tmp_path, monkeypatch)
    with h5py.File(path) as file:
        assert file["gate/conv1"][()].tolist() == [0] * 4
        reason = file["gate/conv1"].attrs["reason"]
        moved = np.abs(file["leak/conv1"][()] / file["size/conv1"][()]).max()
        without_leak = file["exact/conv1"][-1] - file["leak/conv1"][-1]
        wrong = np.abs(without_leak - file["empirical/conv1"][-1]) / file["size/conv1"][-1]
    assert wrong.max() > 1e-3  # the law without its leak is false indeed
    assert re.fullmatch(r"leak \de-0\d in 4 of 4 laws", reason)
    assert 1e-3 < float(reason.split()[1]) <= 1.5 * moved  # one digit, or of more than the size
    table = deviation_table([path]).splitlines()
    assert table[2].split() == ["false", kind, "4", "0", "–", "–", "–"]
    assert table[3:] == [f"closed: false {kind} conv1: {reason}"]
    assert (cached(run, kind)["dense/residual/conv1"][1:] == 0).all()


def test_gates_are_closed_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reductions = [
        Reduction("fc2.weight", "column"),
        Reduction("fc1.weight", "row"),
        Reduction("fc1.bias", "element"),
    ]
    signs = np.diag([1.0, 1, -1, 1])  # the third unit's law has the wrong sign
    laws = quadratic("rescale", "fc1|fc2", reductions, np.hstack([EYE, -signs, -signs]))
    _, path = train_with(laws, "--model fc --width 4 --depth 3 --lr 0.1", tmp_path, monkeypatch)
    with h5py.File(path) as file:
        assert file["gate/fc1|fc2"][()].tolist() == [1, 1, 0, 1]
        assert file["gate/fc1|fc2"].attrs["reason"].endswith("in 1 of 4 laws")
        apart = np.abs(file["theoretical/fc1|fc2"][()] - file["empirical/fc1|fc2"][()])
        relative = (apart / file["size/fc1|fc2"][()]).max(0)
    summary = deviation(path)
    assert summary is not None
    assert (summary.laws, summary.open) == (4, 3)
    assert summary.worst[1] == relative[[0, 1, 3]].max() < relative[2] / 10
    assert summary.worst[0] < 1e-12


def test_translation_does_not_hold_without_softmax(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sum_ = sparse.csr_matrix(np.ones((1, 10)))
    charges = Charges((Reduction("classifier.bias", "element"),), sum_)
    none = Charges((), sparse.csr_matrix((0, 0)))
    family = Family("translation", "classifier.bias", 0, 1, ("classifier.bias",))
    laws = Laws(none, charges, (family,), ())
    for loss, gate in (("ce", 1), ("mse", 0)):
        flags = f"--model logistic --loss {loss} --lr 0.1"
        _, path = train_with(laws, flags, tmp_path / loss, monkeypatch)
        with h5py.File(path) as file:
            assert file["gate/classifier.bias"][()].tolist() == [gate]


def test_the_epsilon_of_a_normalisation_leaks(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        + "".join(
            f"def {name}(s, c):\n"
            f"    norm = nn.BatchNorm1d(8, eps={eps})\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), norm, nn.ReLU(), "
            "nn.Linear(8, c))\n"
            for name, eps in (("tiny", 1e-6), ("small", 1e-4), ("large", 1.0))
        )
    )
    leaks, gates = {}, {}
    for name in ("tiny", "small", "large"):
        run = train_run(tmp_path / "e" / name, f"--model {tmp_path}/mine.py:{name} --dtype float64")
        extract_run(run, "--probe none")
        summary = deviation(cache_run(run, "--metrics scale")[0])
        assert summary is not None
        gates[name] = summary.open / summary.laws
        leaks[name] = (np.abs(curve(run, "scale", "leak")) / curve(run, "scale", "size")).max()
        apart = curve(run, "scale", "exact") - curve(run, "scale", "empirical")
        assert np.abs(apart).max() < 1e-12  # the leak is measured, and part of the law
    assert 90 < leaks["small"] / leaks["tiny"] < 110
    assert gates["tiny"] == gates["small"] == 1
    assert gates["large"] < 1


# ---------------------------------------------------------------- curves without a law


def test_performance_is_nan_where_it_was_not_evaluated(own: Runs) -> None:
    run = own("--model conv-bn --width 4 --save-freq 5")
    cache_run(run, "--metrics performance")
    arrays = cached(run, "performance")
    assert arrays["steps"].tolist() == [0, 5, 6, 10, 12]
    for name in ("train_loss", "test_loss", "accuracy1", "accuracy5"):
        values = [load(run, step).get(name, math.nan) for step in arrays["steps"]]
        assert np.array_equal(arrays[f"empirical/{name}"][:, 0], values, equal_nan=True)
    evaluated = ~np.isnan(arrays["empirical/test_loss"][:, 0])
    assert arrays["steps"][evaluated].tolist() == [0, 6, 12]


def test_network_follows_the_same_weights_at_all_steps(own: Runs) -> None:
    run = own("--model conv-bn --width 4 --save-freq 5")
    cache_run(run, "--metrics network --subset 7")
    arrays = cached(run, "network")
    steps = arrays["steps"].tolist()
    for name in (n for n in load(run, 0)["model_state_dict"] if n.endswith((".weight", ".bias"))):
        flat = np.array([weights(run, step)[name].reshape(-1) for step in steps])
        followed = arrays[f"empirical/{name}"]
        assert followed.shape == (len(steps), min(7, flat.shape[1]))
        paths = {path.tobytes() for path in flat.T.copy()}
        chosen = [path.tobytes() for path in followed.T.copy()]
        assert set(chosen) <= paths
        assert len(set(chosen)) == len(chosen)
    other = copy_run(run, run.path.with_name("other"))
    cache_run(other, "--metrics network --subset 7 --overwrite")
    assert other.cache("network").read_bytes() == run.cache("network").read_bytes()


def test_a_run_without_laws_says_so(own: Runs) -> None:
    run = own("--model logistic --loss mse")
    table = deviation_table(cache_run(run))
    assert table == "no conservation laws; train.py --list-laws tells why"
    assert cached(run, "scale")["steps"].tolist() == [0, 6, 12]
    assert deviation_table(cache_run(run, "--metrics performance,network")) == ""
