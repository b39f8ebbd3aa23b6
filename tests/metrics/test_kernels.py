"""Metrics over the tangent kernel, beside Jacobians by hand and networks that are linear."""

import json
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call, jacrev, vmap

import Metrics.kernels.at
from Data import load_dataset
from Data.batches import random_batch
from Data.dataset import Split
from Metrics.figures import _style as style
from Metrics.figures import draw
from Metrics.kernels import measures
from Metrics.summary import deviation_table
from Metrics.tangent import tangent_kernel
from Models import ModelConfig, build_model
from tests.metrics.test_values import cached, load
from tests.runs import Runs, cache_run, run_stage
from Utils.errors import UserError
from Utils.rundir import RunFolder

DATA = "--dataset gaussian-mixture --classes 3 --dimension 5 --train-size 40 --test-size 30"
SMALL = f"{DATA} --probe-size 12 --dtype float64 --train-batch-size 16 --save-freq 3 --epochs 4"
FC = f"{SMALL} --model fc --depth 3 --width 6 --lr 0.1"
LOGISTIC = f"{DATA} --model logistic --dtype float64 --train-batch-size 40 --save-freq 2 --epochs 9"
TRAIN = "--kernel-on train --examples 40"
ALL = "--metrics ntk,spectrum,alignment,modes,linearized,lazy"
STEPS = [0, 3, 6, 9, 12]


def probe(run: RunFolder) -> tuple[torch.Tensor, torch.Tensor]:
    with h5py.File(run.probe) as file:
        return torch.from_numpy(file["inputs"][()]), torch.from_numpy(file["targets"][()])


def network(run: RunFolder) -> nn.Module:
    said = run.read_hyperparameters()
    config = ModelConfig(**ModelConfig.saved_in(said))
    model = build_model(config, tuple(said["task"]["input_shape"]), said["task"]["num_classes"])
    return model.double().eval()


def jacobian(run: RunFolder, step: int, inputs: torch.Tensor) -> dict[str, Any]:
    """[N, C, parameters] of each layer."""
    model, state = network(run), load(run, step)["model_state_dict"]

    def logits(parameters: Any, x: Any) -> Any:
        return functional_call(model, parameters, (x[None],))[0]

    found = vmap(jacrev(logits), (None, 0))(state, inputs)
    layers: dict[str, Any] = {}
    for name, value in found.items():
        layers.setdefault(name.rpartition(".")[0], []).append(value.flatten(2))
    return {name: torch.cat(parts, 2).numpy() for name, parts in layers.items()}


# ---------------------------------------------------------------- what kernels are of


def test_kernels_are_those_of_the_probe_batch(own: Runs) -> None:
    run = own(FC)
    cache_run(run, "--metrics ntk,alignment")
    found, aligned = cached(run, "ntk"), cached(run, "alignment")
    inputs, targets = probe(run)
    y = np.eye(3)[targets.numpy()]
    for row, step in enumerate(STEPS):
        parts = {
            name: np.einsum("ncp,mcp->nm", j, j) / 3
            for name, j in jacobian(run, step, inputs).items()
        }
        total = sum(parts.values())
        np.testing.assert_allclose(found["kernel/network"][row], total, rtol=1e-10)
        for name, part in {"network": total, **parts}.items():
            assert found[f"empirical/{name}"][row, 0] == pytest.approx(np.trace(part) / 12)
            expected = measures.centred_alignment(part, y)
            assert aligned[f"centred/{name}"][row] == pytest.approx(expected, rel=1e-9)
        c = measures.centred_alignment(total, y[:, 1:2])
        assert aligned["class/network"][row, 1] == pytest.approx(c, rel=1e-9)
        layers = aligned["layers/network"][row]
        first, *_, last = parts.values()
        assert layers[0, -1] == pytest.approx(measures.cka(first, last), rel=1e-9)
    kernels = found["kernel/network"]
    np.testing.assert_allclose(
        found["change/network"],
        [np.linalg.norm(k - kernels[0]) / np.linalg.norm(kernels[0]) for k in kernels],
        rtol=1e-12,
    )
    apart = measures.cosine(kernels[1], kernels[3])
    assert found["distance/network"][1, 3] == pytest.approx(1 - apart)
    assert found["velocity/network"][2] == pytest.approx(found["distance/network"][1, 2] / 3)
    assert np.isnan(found["velocity/network"][0])
    assert found["cka/network"][0, 4] == pytest.approx(aligned["cka/network"][4])
    assert np.array_equal(found["class/network"][0], targets)


def test_full_kernels_of_training_examples(own: Runs) -> None:
    run = own(FC)
    cache_run(run, "--metrics ntk --kernel full --kernel-on train --examples 8")
    with h5py.File(run.cache("ntk")) as file:
        kernel = file["kernel/network"]
        assert kernel.shape == (5, 8, 8, 3, 3)
        names = [dimension[0].name.removeprefix("/network ") for dimension in kernel.dims]
        assert names[1:] == ["example", "other example", "output", "other output"]
        assert file.attrs["normalisation"] == "none"
        assert file.attrs["kernel"] == "full"
        said = run.read_hyperparameters()
        train = load_dataset(
            "gaussian-mixture",
            seed=said["seed"],
            classes=3,
            dimension=5,
            separation=3.0,
            train_size=40,
            test_size=30,
        ).train
        assert isinstance(train, Split)
        inputs, _ = random_batch(train, 8, said["seed"], "examples", dtype=torch.float64)
        parts = jacobian(run, 12, inputs)
        expected = sum(np.einsum("ncp,mdp->nmcd", j, j) for j in parts.values())
        np.testing.assert_allclose(kernel[4], expected, rtol=1e-9, atol=1e-12)


def test_normalisation_is_by_running_statistics(own: Runs) -> None:
    run = own("--model conv-bn --width 4 --probe-size 6 --save-freq 6")
    cache_run(run, "--metrics ntk")
    with h5py.File(run.cache("ntk")) as file:
        assert file.attrs["normalisation"] == "running statistics"
        kernel = file["kernel/network"][-1]
    model = network(run).float()
    model.load_state_dict(load(run, 12)["model_state_dict"])
    inputs = probe(run)[0]
    pairs = [tangent_kernel(model.eval(), inputs[[0, i]]).total[0, 1].item() for i in (3, 5)]
    np.testing.assert_allclose(kernel[0, [3, 5]], pairs, rtol=1e-4)  # no matter who else is there


def test_a_lost_probe_batch_is_drawn_again(own: Runs) -> None:
    run, whole = own(FC), own(FC)
    cache_run(whole, "--metrics ntk")
    run.probe.unlink()
    cache_run(run, "--metrics ntk")
    assert run.cache("ntk").read_bytes() == whole.cache("ntk").read_bytes()


# ---------------------------------------------------------------- one pass


def test_all_metrics_share_one_kernel_per_checkpoint(
    own: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = own(FC), []

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return tangent_kernel(*args, **kwargs)

    monkeypatch.setattr(Metrics.kernels.empirical, "tangent_kernel", counting)
    cache_run(run, ALL)
    assert len(calls) == len(STEPS)
    cache_run(run, ALL)
    assert len(calls) == len(STEPS)


def test_the_order_of_the_steps_does_not_matter(own: Runs) -> None:
    run, whole = own(FC), own(FC)
    cache_run(whole, ALL)
    late = run.features(6).read_bytes()
    run.features(6).unlink()
    cache_run(run, ALL)
    run.features(6).write_bytes(late)
    cache_run(run, ALL)
    names = ("ntk", "spectrum", "alignment", "modes", "lazy", "linearized")
    assert [n for n in names if run.cache(n).read_bytes() != whole.cache(n).read_bytes()] == []


def test_other_flags_do_not_continue_a_cache(own: Runs) -> None:
    run = own(FC)
    cache_run(run, "--metrics ntk,lazy")
    with pytest.raises(UserError, match="was made with --kernel-on probe, not train"):
        cache_run(run, "--metrics ntk --kernel-on train")
    with pytest.raises(UserError, match="was made with --reference 0, not 3"):
        cache_run(run, "--metrics lazy --reference 3")
    with pytest.raises(UserError, match=r"--reference 4: .* no features .*, such as 3 or 6"):
        cache_run(run, "--metrics ntk,lazy --suffix other --reference 4")
    assert not run.cache("ntk", "other").exists()  # told before any work
    run.features(6).unlink()
    with pytest.raises(UserError, match=r"--reference 6: .* run extract\.py"):
        cache_run(run, "--metrics lazy --reference 6 --suffix other")


def test_work_is_forecast_and_refused_if_it_does_not_fit(
    own: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = own(FC)
    code, _, errors = run_stage("cache", run, "--metrics ntk,spectrum --kernel full")
    assert code == 0
    first, second = errors.splitlines()
    assert first.startswith("cache: full tangent kernels of 12 examples, 5 checkpoints: about")
    assert "5 new steps of 5" in second
    monkeypatch.setattr(Metrics.kernels.at, "available_memory", lambda _: 1e3)
    with pytest.raises(UserError, match=r"[kMGT]B free; use --kernel traced or fewer --exa"):
        cache_run(run, "--metrics ntk --kernel full --overwrite")
    cache_run(run, "--metrics ntk,spectrum --kernel full")  # nothing is new


# ---------------------------------------------------------------- networks that are linear


@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize(
    "optimizer",
    [
        "--lr 0.3",
        "--optimizer momentum --momentum 0.8 --dampening 0.3 --lr 0.1 --wd 0.05",
        "--optimizer momentum --momentum 0.9 --nesterov --lr 0.05 --lr-schedule cosine",
    ],
)
def test_a_linear_network_is_its_own_linear_model(own: Runs, loss: str, optimizer: str) -> None:
    """Every way of predicting is exact in a full batch, and nothing leaves the linear regime."""
    run = own(f"{LOGISTIC} --loss {loss} {optimizer}")
    cache_run(run, f"{ALL} {TRAIN}")
    ntk, lazy = cached(run, "ntk"), cached(run, "lazy")
    assert ntk["change/network"].max() < 1e-14
    assert ntk["distance/network"].max() < 1e-14
    assert lazy["kernel/network"].max() < 1e-14
    assert lazy["gap/network"][1:].max() < 1e-12
    assert (lazy["empirical/network"][1:] > 0.01).all()
    assert "patterns/network" not in lazy
    linear = cached(run, "linearized")
    size = np.abs(linear["logits/measured"]).max()
    for way in ("weights", "descent"):
        away = np.abs(linear[f"logits/{way}"] - linear["logits/measured"]).max()
        assert away < 1e-10 * size, way
        np.testing.assert_allclose(
            linear[f"{way}/accuracy"], linear["empirical/accuracy"][:, 0], rtol=1e-12
        )
    modes = cached(run, "modes")
    np.testing.assert_allclose(
        modes["theoretical/reference"], modes["empirical/reference"], rtol=1e-6, atol=1e-20
    )
    with h5py.File(run.cache("modes")) as file:
        assert file["gate/reference"][()].all()
        assert file["gate/reference"].attrs["reason"] == "one kernel for all outputs"
    if loss == "mse":  # of squared error the modes' sum is the loss
        evaluated = linear["empirical/loss"][:, 0]
        np.testing.assert_allclose(modes["empirical/now"].sum(1), evaluated, rtol=1e-10)


def test_predictions_reach_examples_that_were_not_trained_on(own: Runs) -> None:
    run = own(f"{LOGISTIC} --loss mse --lr 0.3 --probe-size 20")
    cache_run(run, "--metrics linearized,modes --examples 40")
    found = cached(run, "linearized")
    np.testing.assert_allclose(found["logits/descent"], found["logits/measured"], rtol=1e-8)
    flow, step = found["flow/outputs"], found["descent/outputs"]
    assert step.max() < 1e-12 < 1e-4 < flow[1:].min()  # steps of 0.3 are no flow
    few = own(f"{LOGISTIC} --loss mse --lr 0.3 --probe-size 20")
    cache_run(few, "--metrics linearized --examples 10")
    with h5py.File(few.cache("linearized")) as file:
        reason = file["gate/loss"].attrs["reason"]
    assert reason == "from 10 of 40 training examples, one kernel for all outputs"


@pytest.mark.parametrize("reference", [0, 2])
def test_the_linear_model_takes_the_runs_own_steps(own: Runs, reference: int) -> None:
    """Mini-batches, momentum that is not zero at the reference, Adam: exact for what is linear."""
    for optimizer in (
        "--optimizer momentum --momentum 0.9 --lr 0.05",
        "--optimizer adam --lr 0.01",
    ):
        run = own(f"{LOGISTIC} {optimizer} --train-batch-size 8 --lr-drops 2 --clip-norm 1")
        cache_run(run, f"--metrics linearized --reference {reference}")
        found = cached(run, "linearized")
        late = found["steps"] >= reference
        away = found["logits/weights"] - found["logits/measured"]
        assert np.abs(away[late]).max() < 1e-10
        assert np.isnan(away[~late]).all()


def test_replicas_share_a_batch(own: Runs) -> None:
    """Two devices with 8 examples each take the steps of one with 16."""
    run = own(f"{LOGISTIC} --lr 0.1 --train-batch-size 16")
    said = json.loads(run.hyperparameters.read_text())
    said |= {"train_batch_size": 8, "precision": "bf16", "compile": True}
    said["task"]["replicas"] = 2
    run.hyperparameters.write_text(json.dumps(said | {"dtype": "float32"}))
    cache_run(run, "--metrics linearized")
    found = cached(run, "linearized")
    away = np.abs(found["logits/weights"] - found["logits/measured"]).max()
    assert away < 1e-5 * np.abs(found["logits/measured"]).max()


def test_a_run_without_steps(own: Runs) -> None:
    run = own(f"{FC} --epochs 0")
    cache_run(run, ALL)
    with h5py.File(run.cache("modes")) as file:
        assert file["gate/reference"].attrs["reason"] == "no step follows --reference 0"
    for name in ("ntk", "spectrum", "alignment", "modes", "linearized", "lazy"):
        draw(run.cache(name))


def test_what_function_space_cannot_know_is_said(own: Runs) -> None:
    run = own(f"{LOGISTIC} --optimizer adam --lr 0.01")
    cache_run(run, "--metrics modes,linearized")
    with h5py.File(run.cache("modes")) as file:
        reason = file["gate/reference"].attrs["reason"]
        assert "--optimizer adam is not linear in the gradient" in reason
        assert not file["gate/reference"][()].any()
        assert np.isnan(file["theoretical/reference"][()]).all()
    draw(run.cache("modes"))
    draw(run.cache("linearized"))


# ---------------------------------------------------------------- spectrum


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_the_largest_stable_learning_rate(own: Runs, loss: str) -> None:
    """Of a linear network, by its dense Hessian."""
    flags = "--optimizer momentum --momentum 0.5 --lr 0.1 --wd 0.02"
    run = own(f"{LOGISTIC} --loss {loss} {flags} --probe-size 10")
    cache_run(run, "--metrics spectrum --kernel full")
    found = cached(run, "spectrum")
    inputs, targets = probe(run)
    extended = torch.cat([inputs, torch.ones(10, 1, dtype=torch.float64)], 1)

    def mean_loss(weights: Any) -> Any:
        logits = extended @ weights.view(6, 3)
        if loss == "ce":
            return nn.functional.cross_entropy(logits, targets)
        return nn.functional.mse_loss(logits, nn.functional.one_hot(targets).double())

    for row, step in enumerate(run.checkpoint_steps()):
        state = load(run, step)["model_state_dict"]
        weight, bias = state["classifier.weight"], state["classifier.bias"]
        at = torch.cat([weight, bias[:, None]], 1).T.reshape(-1)
        curved = hessian(mean_loss, at)  # type: ignore[no-untyped-call]
        expected = 2 * 1.5 / (float(torch.linalg.eigvalsh(curved)[-1]) + 0.02)
        assert found["largest lr/network"][row] == pytest.approx(expected, rel=1e-8)
        assert found["lr/network"][row] == 0.1
    kernel = (extended @ extended.T).numpy()
    np.testing.assert_allclose(
        found["empirical/network"][0], np.linalg.eigvalsh(kernel)[::-1], atol=1e-10
    )
    h = np.eye(10) - 0.1
    np.testing.assert_allclose(
        found["empirical/centred"][0], np.linalg.eigvalsh(h @ kernel @ h)[::-1][:9], atol=1e-10
    )
    assert np.isinf(found["condition number/network"]).all()  # ten examples in six dimensions


# ---------------------------------------------------------------- lazy


def test_rectifiers_and_features_by_hand(own: Runs) -> None:
    run = own(FC)
    cache_run(run, "--metrics lazy")
    found, inputs = cached(run, "lazy"), probe(run)[0]
    on, outputs = [], []
    for step in (0, 12):
        w = load(run, step)["model_state_dict"]
        first = inputs @ w["fc1.weight"].T + w["fc1.bias"]
        second = first.relu() @ w["fc2.weight"].T + w["fc2.bias"]
        on.append(torch.cat([first > 0, second > 0], 1))
        outputs.append(second.numpy())
    switched = (on[0] != on[1]).double().mean().item()
    assert found["patterns/network"][-1] == pytest.approx(switched)
    assert switched > 0
    cka = measures.cka(*(h @ h.T for h in outputs))
    assert found["features/fc2"][-1] == pytest.approx(1 - cka, rel=1e-9)
    start, end = (load(run, step)["model_state_dict"] for step in (0, 12))
    moved, size = (
        np.sqrt(sum(float(x.square().sum()) for x in values))
        for values in ([end[n] - start[n] for n in start], list(start.values()))
    )
    assert found["empirical/network"][-1, 0] == pytest.approx(moved / size)


def test_the_gap_is_of_second_order(own: Runs) -> None:
    """|f − f_lin| / |f − f_0| falls with the learning rate."""
    gaps = []
    for lr in (1e-2, 1e-3):
        run = own(f"{FC} --nonlinearity tanh --lr {lr}")
        cache_run(run, "--metrics lazy")
        gaps.append(cached(run, "lazy")["gap/network"][-1])
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.3)


# ---------------------------------------------------------------- figures


def test_figures(own: Runs) -> None:
    run = own(FC)
    cache_run(run, ALL)
    titles = {
        name: [axes.get_title(loc="left") for axes in draw(run.cache(name)).axes]
        for name in ("ntk", "spectrum", "alignment", "modes", "linearized", "lazy")
    }
    assert titles["ntk"][:4] == [
        *(f"Θ / mean diagonal, step {step}" for step in (0, 6, 12)),
        "1 − cosine between steps",
    ]
    assert "learning rate" in titles["spectrum"]
    assert titles["lazy"] == [
        "weights, relative change",
        "tangent kernel, relative change",
        "features, 1 − CKA",
        "parts of the whole",
    ]
    figure = draw(run.cache("linearized"))
    loss = figure.axes[0].lines
    found = cached(run, "linearized")
    assert np.array_equal(loss[0].get_ydata(), found["empirical/loss"][:, 0])
    assert np.array_equal(loss[1].get_ydata(), found["weights/loss"])
    kernel = found_image(draw(run.cache("ntk")))
    order = np.argsort(probe(run)[1].numpy(), kind="stable")
    expected = cached(run, "ntk")["kernel/network"][0][np.ix_(order, order)]
    np.testing.assert_allclose(kernel, expected * 12 / np.trace(expected), rtol=1e-12)
    (only,) = (line for line in draw(run.cache("ntk"), layers=("fc1",)).axes[6].lines)
    assert np.array_equal(only.get_ydata(), cached(run, "ntk")["empirical/fc1"][:, 0])


def test_words_and_colours_of_figures(own: Runs) -> None:
    run = own(f"{FC} --probe-size 30")
    cache_run(run, "--metrics ntk,alignment,modes,spectrum")
    modes = draw(run.cache("modes"))
    names = [text.get_text() for text in modes.legends[0].get_texts()]
    measured, predicted = np.split(np.array(modes.axes[0].lines, dtype=object), 2)
    assert (names[0], names[-1]) == ("mode 1", "linear model")
    assert len(names) == len(measured) + 1  # every colour is named
    for curve, dashes in zip(measured, predicted, strict=True):
        bright, dark = (np.array(to_rgb(line.get_color())) for line in (curve, dashes))
        np.testing.assert_allclose(dark / dark.max(), bright / bright.max(), atol=1e-12)
    image = draw(run.cache("ntk")).axes[0]
    classes = np.sort(probe(run)[1].numpy())
    ticks = zip(image.get_yticks(), image.get_yticklabels(), strict=True)
    assert {t.get_text(): at for at, t in ticks} == {
        str(c): np.flatnonzero(classes == c).mean() for c in range(3)
    }
    layers = {line.get_color() for line in draw(run.cache("alignment")).axes[1].lines}
    whole = {line.get_color() for line in draw(run.cache("alignment")).axes[0].lines}
    assert layers & whole == {"k"}  # the network's
    spectrum = draw(run.cache("spectrum")).axes
    assert spectrum[0].get_xlabel() == "rank"
    assert [
        a.texts[-1].get_text() for a in spectrum if a.get_title(loc="left") == "learning rate"
    ] == ["largest stable: from one kernel for all outputs"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.002, "0.002"), (5e4, "50000"), (5e-5, r"$5\cdot10^{-5}$"), (1e6, "$10^{6}$")],
)
def test_numbers_beside_axes(value: float, text: str) -> None:
    assert style.number(value) == text


def found_image(figure: Any) -> Any:
    return np.asarray(figure.axes[0].images[0].get_array())


def test_the_table_says_when_a_network_leaves_its_linear_model(own: Runs) -> None:
    run = own(f"{FC} --lr 1")
    output = deviation_table(cache_run(run, "--metrics linearized"))
    found = cached(run, "linearized")
    apart = found["weights/outputs"] > 0.1 * found["empirical/outputs"][:, 0]
    step = found["steps"][apart.argmax()]
    told = "outputs differ from the linear model's by more than 10% of their change, first at step"
    assert f"{told} {step};" in output


# ---------------------------------------------------------------- what is at the edge


def test_statistics_that_are_not_those_of_the_data_are_told(own: Runs) -> None:
    """0.9^n is below a tenth from n = 22 on."""
    run = own("--model conv-bn --width 4 --probe-size 6 --save-freq 12 --epochs 4")
    code, _, errors = run_stage("cache", run, "--metrics ntk,alignment")
    assert code == 0
    (told,) = (line for line in errors.splitlines() if "batch normalisation" in line)
    assert "at step 0 they are to 100% the initial 0 and 1" in told
    assert "less than 10% from step 22 on" in told
    assert "--reference 24 compares with a later one" in told
    code, _, errors = run_stage("cache", run, "--metrics alignment --reference 24 --suffix late")
    assert code == 0
    assert "batch normalisation" not in errors


def test_one_example_and_a_loss_without_curvature(own: Runs) -> None:
    run = own(f"{FC} --probe-size 1 --loss linear")
    cache_run(run, ALL)
    for name in ("ntk", "spectrum", "alignment", "modes", "linearized", "lazy"):
        draw(run.cache(name))
    spectrum = cached(run, "spectrum")
    assert np.isinf(spectrum["largest lr/network"]).all()  # nothing pulls back
    np.testing.assert_allclose(spectrum["empirical/network"], spectrum_of(run))
    assert spectrum["empirical/centred"].shape == (5, 0)


def spectrum_of(run: RunFolder) -> Any:
    """[T, 1] the only eigenvalue of a kernel of one example."""
    inputs, _ = probe(run)
    found = [sum(np.square(j).sum() / 3 for j in jacobian(run, s, inputs).values()) for s in STEPS]
    return np.array(found)[:, None]
