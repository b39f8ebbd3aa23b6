"""What infinite width refuses, its limits, and its stages as a user starts them."""

import re
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev

from Models import ModelConfig, build_model
from Models.infinite.limit import limit_network
from Models.parametrization.network import Parametrized
from Models.symmetry import Laws
from tests.runs import Runs, cache_run, extract_run, mistake, run_stage, train_run
from Training.config import TrainConfig
from Training.infinite import kernels
from Utils.config import validate
from Utils.errors import Diverged, UserError
from Utils.rundir import RunFolder

SHAPE, CLASSES = (1, 3, 3), 3
INFINITE: dict[str, Any] = {"model": "fc", "width": "inf", "param": "ntk"}


def _model(flags: dict[str, Any], width: int | str) -> ModelConfig:
    return validate(ModelConfig, {**flags, "width": width}, "test")


def _empirical(config: ModelConfig, inputs: Tensor, readout_only: bool) -> Tensor:
    """Σ_p s_p J_p J_pᵀ of one finite network, the mean over outputs, [n, n]."""
    model = build_model(config, SHAPE, CLASSES)
    scales = Parametrized(config, SHAPE, CLASSES).scales("sgd", "gradient")
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(values: dict[str, Tensor]) -> Tensor:
        found: Tensor = functional_call(model, values, (inputs,))
        return found

    total = torch.zeros(len(inputs), len(inputs), dtype=torch.float64)
    for name, jacobian in jacrev(outputs)(parameters).items():
        if readout_only and not name.startswith("classifier"):
            continue
        flat = jacobian.flatten(2)
        total += scales.of(name).lr * torch.einsum("icp,jcp->ij", flat, flat) / CLASSES
    return total


@pytest.mark.parametrize("readout_only", [False, True])
@pytest.mark.parametrize(
    ("model", "param", "width"),
    [
        ("fc", "ntk", 1024),
        ("fc", "sp-lr1n", 1024),
        ("conv", "ntk", 256),
        ("conv", "sp-lr1n", 256),
        ("fc", "hybrid:1/2", 1024),
    ],
)
def test_the_kernel_is_the_limit_of_finite_ones(
    model: str, param: str, width: int, readout_only: bool
) -> None:
    """Sixteen times as wide, a quarter of the distance: of biases and weights, at every rate."""
    flags: dict[str, Any] = {"model": model, "depth": 3, "param": param, "dtype": "float64"}
    inputs = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    config = _model(flags, "inf")
    limit = limit_network(config, SHAPE, CLASSES, readout_only).kernels(inputs).ntk
    assert limit is not None
    errors = []
    for n in (width // 16, width):
        seeds = [
            _empirical(_model({**flags, "seed": seed}, n), inputs, readout_only)
            for seed in range(4)
        ]
        error = torch.stack(seeds) - limit
        errors.append(float(error.square().mean().sqrt() / limit.square().mean().sqrt()))
    assert errors[1] < 0.1
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"param": None}, "--width inf: without --param nothing says how the network grows"),
        ({"optimizer": "adam"}, "--optimizer adam is not linear in the gradient"),
        ({"wd": 0.1}, "--wd 0.1 ends the regime"),
        ({"clip_norm": 1.0}, "--clip-norm 1.0 limits the gradient"),
        ({"save_buffers": "grad"}, "--save-buffers: not read by --width inf"),
        ({"base_width": 8}, "--base-width: not read by --width inf"),
        ({"width": "64", "nngp": True}, "--nngp is for kernels; add --width inf"),
        ({"width": "64", "optimizer": "flow"}, "--optimizer flow is for kernels"),
        ({"width": "infinite"}, "--width infinite: must be a whole number from 1 on, or inf"),
        ({"width": "0"}, "--width 0: must be a whole number from 1 on, or inf"),
    ],
)
def test_flags_that_kernels_cannot_follow_are_refused(flags: dict[str, Any], message: str) -> None:
    values = {name: value for name, value in {**INFINITE, **flags}.items() if value is not None}
    with pytest.raises(UserError) as caught:
        validate(TrainConfig, values, "test")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--param mup", "under --param mup wide networks learn features (r = 0)"),
        ("--param sp", "under --param sp outputs or features of wide networks grow"),
        ("--param hybrid:1", "under --param hybrid:1 wide networks learn features (r = 0)"),
        ("--param mean-field", "under --param mean-field"),
        ("--param ntk --model fc-bn", "batch"),
        ("--param ntk --optimizer flow", "use --train-batch-size 1437"),
        ("--param ntk --optimizer flow --train-batch-size 1437", "at most 4000; use --loss mse"),
    ],
)
def test_runs_without_a_limit_are_refused_before_the_old_run_is_gone(
    tmp_path: Path, flags: str, message: str
) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    run.write_hyperparameters({"seed": 1})
    with pytest.raises(UserError) as caught:
        train_run(run.path, f"--model fc --width inf --overwrite {flags}")
    assert message in str(caught.value)
    assert run.hyperparameters.exists()


def test_kernels_larger_than_the_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "available_bytes", lambda: 1_000_000)
    flags = "--dataset gaussian-mixture --model fc --width inf --param ntk"
    with pytest.raises(UserError, match=r"need 16 MB.*1 MB are free; use --train-size 248"):
        train_run(tmp_path / "e" / "x", flags)


def test_a_loss_without_curvature_bears_any_learning_rate(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Outputs of the linear loss fall or grow by the same amount in every step."""
    flags = (
        "--dataset gaussian-mixture --train-size 300 --test-size 10 --model fc --depth 2 --width "
        "inf --param ntk --loss linear --train-batch-size 300 --epochs 2 --save-at 1"
    )
    run = train_run(tmp_path / "e" / "x", flags)
    assert "stay bounded" not in capfd.readouterr().err
    losses = [_train_loss(run, step) for step in (1, 2)]
    assert losses[0] == 0
    assert losses[1] < 0


def test_too_large_a_learning_rate_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The edge by the largest eigenvalue: below it the loss falls, above it it grows."""
    flags = (
        "--dataset gaussian-mixture --train-size 40 --test-size 10 --model fc --depth 2 --loss mse "
        "--width inf --param ntk --dtype float64 --train-batch-size 40 --epochs 40 --lr"
    )
    run = train_run(tmp_path / "e" / "a", f"{flags} 0.1")
    with h5py.File(run.kernels) as file:
        largest = float(torch.linalg.eigvalsh(torch.from_numpy(file["ntk/train"][()]))[-1])
        outputs = 40 * run.read_hyperparameters()["task"]["num_classes"]
    edge = outputs / largest
    assert f"stay bounded up to --lr {edge:.3g}" in capfd.readouterr().err
    losses = []
    for name, factor in (("b", 0.98), ("c", 1.1)):
        other = train_run(tmp_path / "e" / name, f"{flags} {factor * edge}")
        losses.append([*map(_train_loss, (other, other), (1, 40))])
        told = f"above {edge:.3g}, up to which steps on all examples stay bounded"
        assert (told in capfd.readouterr().err) == (factor > 1)
    assert losses[0][1] < losses[0][0]
    assert losses[1][1] > 2 * losses[1][0]


@pytest.mark.parametrize("batch", [40, 20])
def test_a_diverging_run_is_told_what_helps_at_infinity(tmp_path: Path, batch: int) -> None:
    """Not --clip-norm, which it refuses, but the rate that the run itself printed."""
    flags = (
        "--dataset gaussian-mixture --train-size 40 --test-size 10 --model fc --depth 2 --loss mse "
        f"--width inf --param ntk --train-batch-size {batch} --lr"
    )
    with pytest.raises(Diverged) as caught:
        train_run(tmp_path / "e" / "x", f"{flags} 1e9 --epochs 20")
    told = str(caught.value).rpartition("; ")
    assert caught.value.step > 0
    assert "; all that was saved before is kept" in told[0]
    found = re.fullmatch(
        r"lower --lr: steps on all examples stay bounded up to ([\d.]+)(.*)", told[2]
    )
    assert found
    assert found[2] == (", mini-batches may need less" if batch < 40 else "")
    losses = []
    for name, factor in (("a", 0.9), ("b", 1.2)):
        one = train_run(tmp_path / "e" / name, f"{flags} {factor * float(found[1])} --epochs 30")
        steps = one.checkpoint_steps()
        losses.append(_train_loss(one, steps[-1]) / _train_loss(one, steps[1]))
    assert losses[0] < 1 < losses[1]


def _train_loss(run: RunFolder, step: int) -> float:
    found: float = torch.load(run.checkpoint(step), weights_only=True)["train_loss"]
    return found


def test_there_are_no_laws_and_metrics_of_weights_are_left_out(own: Runs) -> None:
    run = own("--model fc --width inf --param sp-lr1n")
    laws = Laws.load(run.symmetries)
    assert len(laws) == 0
    assert "no weights" in laws.note
    assert [path.name for path in cache_run(run)] == ["performance.h5"]
    with h5py.File(run.cache("performance")) as file:
        assert list(file["steps"]) == run.checkpoint_steps()
        assert file["empirical/test_loss"][0] == pytest.approx(torch.tensor(10.0).log().item())
    with pytest.raises(UserError, match="has no weights, which these metrics are about: scale"):
        cache_run(run, "--metrics scale")
    with pytest.raises(UserError, match="no single activations; use --probe logits"):
        extract_run(run, "--probe activations --overwrite")


def test_models_of_infinite_width_have_no_module() -> None:
    config = _model({"model": "fc", "param": "ntk"}, "inf")
    with pytest.raises(UserError, match="--width inf: an infinitely wide network has kernels"):
        build_model(config, SHAPE, CLASSES)
    assert config.flat()["width"] == "inf"


def test_the_stages_by_their_commands(tmp_path: Path) -> None:
    """Another loss is another run."""
    run = RunFolder(tmp_path / "e" / "x")
    flags = "--model fc --depth 2 --width inf --param ntk --epochs 1 --lr 0.5 --loss mse"
    code, _, errors = run_stage("train", run, flags)
    assert code == 0, errors
    assert "kernels of 1437 training, 360 test and 64 probe examples: about" in errors
    code, _, errors = run_stage("extract", run)
    assert code == 0, errors
    with h5py.File(run.features(12)) as file:
        assert (file["probe/variance"][()] > 0).all()
    assert mistake("train", run, flags.replace("mse", "ce")).startswith(str(run.path))
