"""Runs of infinite width: equal to closed forms, to ensembles of wide networks, and to themselves.

Shape letters: N training and P probe examples, C outputs, M members, T steps.
"""

import logging
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from Data import load_dataset
from Data.batches import evaluation_batches
from Data.dataset import Dataset
from Models import build_model
from tests.runs import Runs, copy_run, extract_run, train_run
from tests.training.helpers import differences
from Training.checkpoints import load_checkpoint
from Training.config import TrainConfig
from Training.discrete_laws import Coefficients
from Training.function_space import (
    InfiniteEnsemble,
    SquaredError,
    Stretch,
    batch_numbers,
    gp_posterior,
    sgd_rules,
    train_on_batches,
)
from Training.infinite import kernels
from Training.infinite.ensemble import EnsembleVariance
from Training.infinite.kernels import prior_kernel
from Training.optimizers import build_optimizer
from Training.parametrized import resolve
from Training.rebuild import rebuild_config
from Training.registry import LOSSES
from Training.schedule import Schedule
from Utils.rundir import RunFolder

CLOUDS = (
    "--dataset gaussian-mixture --train-size 48 --test-size 24 --dimension 6 --classes 3 "
    "--probe-size 16 --model fc --depth 3 --param ntk"
)
INFINITE = f"{CLOUDS} --width inf --dtype float64"
BATCHES = f"{INFINITE} --train-batch-size 20 --epochs 3 --optimizer momentum --momentum 0.6"
NESTEROV = f"{BATCHES} --nesterov --lr 0.3 --warmup-steps 3 --lr-schedule cosine"
DAMPENED = f"{BATCHES} --dampening 0.2 --lr 0.15 --lr-drops 2 --loss mse"
FULL = f"{INFINITE} --train-batch-size 48 --epochs 6 --loss mse --lr 1.5"


def _config(run: RunFolder) -> TrainConfig:
    return rebuild_config(run, run.read_hyperparameters())


def _data(config: TrainConfig) -> Dataset:
    return load_dataset(config.dataset, config.data_dir, config.seed, **config.data_options)


def _kernels(run: RunFolder) -> dict[str, Tensor]:
    with h5py.File(run.kernels) as file:
        groups = {f"{g}/{name}": x[()] for g, group in file.items() for name, x in group.items()}
    return {name: torch.from_numpy(x) for name, x in groups.items()}


def _probe(run: RunFolder, step: int, name: str) -> NDArray[np.float64]:
    with h5py.File(run.features(step)) as file:
        values: NDArray[np.float64] = file[f"probe/{name}"][()]
    return values


def _one_hot(targets: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(targets).double()


@pytest.mark.parametrize("flags", [NESTEROV, DAMPENED])
def test_minibatch_runs_are_replayed_by_the_kernel_alone(trained: Runs, flags: str) -> None:
    """Outputs and losses of ``train_on_batches`` on the kernels in the run's folder."""
    run = trained(flags)
    config, kernels = _config(run), _kernels(run)
    data = _data(config)
    schedule = Schedule(config, 48)
    steps, zeros = run.checkpoint_steps(), torch.zeros(48, 3, dtype=torch.float64)
    loss = LOSSES[config.loss].load()
    path = train_on_batches(
        kernels["ntk/train"],
        zeros,
        data.train.targets,
        loss,
        sgd_rules(config, schedule),
        list(batch_numbers(config, schedule, data.train)),
        steps,
    )
    probe = path.at(kernels["ntk/probe"], torch.zeros(16, 3)).numpy()
    test = path.at(kernels["ntk/test"], torch.zeros(24, 3))
    assert steps == [0, 3, 6, 9]
    for index, step in enumerate(steps):
        np.testing.assert_allclose(_probe(run, step, "logits"), probe[index], atol=1e-12)
        checkpoint = load_checkpoint(run.checkpoint(step))
        assert checkpoint["test_loss"] == pytest.approx(float(loss(test[index], data.test.targets)))
        right = (test[index].argmax(1) == data.test.targets).double().mean()
        assert checkpoint["accuracy1"] == pytest.approx(100 * float(right))


def test_full_batches_are_the_closed_form(trained: Runs) -> None:
    """Mean and variance of the ensemble by eigenmodes, at steps that the run went through."""
    run = trained(FULL)
    kernels, targets = _kernels(run), _one_hot(_data(_config(run)).train.targets)
    rule = [Stretch(Coefficients(1.5, 0.0))]
    times = run.checkpoint_steps()
    mean = SquaredError(kernels["ntk/train"], torch.zeros_like(targets), targets)
    logits = mean.descent(rule, times).at(kernels["ntk/probe"], torch.zeros(16, 3)).numpy()
    ensemble = InfiniteEnsemble(kernels["ntk/train"], kernels["nngp/train"], targets)
    own = torch.diag(kernels["nngp/probe_variance"])  # other entries do not matter to variances
    cross = (kernels["ntk/probe"], kernels["nngp/probe"], own)
    variance = ensemble.descent(rule, times).at(*cross).variance.numpy()
    on_training = ensemble.descent(rule, times).train()
    for index, step in enumerate(times):
        np.testing.assert_allclose(_probe(run, step, "logits"), logits[index], atol=1e-11)
        np.testing.assert_allclose(_probe(run, step, "variance"), variance[index], atol=1e-11)
        if step:  # the loss of the last epoch, of one step, is that before it
            gap = (on_training.mean[index - 1] - targets).square().mean()
            expected = float(gap + on_training.variance[index - 1].mean())
            with h5py.File(run.features(step)) as file:
                assert file["ensemble/train_loss"][()] == pytest.approx(expected, rel=1e-6)
    prior = prior_kernel(run)
    assert prior is not None
    spread = EnsembleVariance(_config(run), kernels["ntk/train"], kernels["ntk/probe"], prior, 3)
    for index in (2, 2, 1, 4):  # in any order
        found = spread(times[index]).numpy()
        np.testing.assert_allclose(found, variance[index], atol=1e-11)


def test_flow_of_squared_error_is_a_matrix_exponential(trained: Runs) -> None:
    """f = Θ(x, X) Θ⁻¹ (1 − e^{−wΘt}) y, in steps of any length, and its variance."""
    flags = "--train-batch-size 48 --epochs 3 --loss mse --optimizer flow --lr 7 --lr-drops 1"
    run = trained(f"{INFINITE} {flags}")
    kernels, targets = _kernels(run), _one_hot(_data(_config(run)).train.targets)
    tangent, w = kernels["ntk/train"], 2 / (48 * 3)
    for step in run.checkpoint_steps():
        elapsed = (0, 7, 7.7, 8.4)[step]
        left = torch.matrix_exp(-w * elapsed * tangent)
        weights = kernels["ntk/probe"] @ torch.linalg.solve(tangent, torch.eye(48) - left)
        np.testing.assert_allclose(_probe(run, step, "logits"), weights @ targets, atol=1e-9)
        mixed = (weights * kernels["nngp/probe"]).sum(1)
        own = torch.einsum("pn,nm,pm->p", weights, kernels["nngp/train"], weights)
        variance = kernels["nngp/probe_variance"] - 2 * mixed + own
        np.testing.assert_allclose(_probe(run, step, "variance"), variance, atol=1e-9)
        with h5py.File(run.features(step)) as file:  # finite networks take steps
            assert np.isnan(file["ensemble/train_loss"][()] if step else np.nan)


def test_flow_of_any_loss_is_the_limit_of_small_steps(trained: Runs) -> None:
    """To first order in the step: half the step, half the difference."""
    flags = f"{INFINITE} --train-batch-size 48 --epochs"
    exact = _probe(trained(f"{flags} 1 --optimizer flow --lr 4"), 1, "logits")
    errors = []
    for steps in (20, 40):
        logits = _probe(trained(f"{flags} {steps} --lr {4 / steps}"), steps, "logits")
        errors.append(np.abs(logits - exact).max())
    assert errors[1] < 0.03 * np.abs(exact).max()
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


def _outputs_of_members(run: RunFolder, width: int, members: int) -> Tensor:
    """[M, P, C] of finite networks with the run's flags, batches and data, at its last step."""
    config, data = _config(run), _data(_config(run))
    schedule = Schedule(config, 48)
    with h5py.File(run.probe) as file:
        probe = torch.from_numpy(file["inputs"][()]).float()
    inputs, targets = next(evaluation_batches(data.train, 48))
    loss, found = LOSSES[config.loss].load(), []
    for seed in range(members):
        changes: dict[str, Any] = {"seed": seed, "width": width, "dtype": "float32"}
        member = config.model_copy(update=changes)
        model = build_model(member, data.entry.input_shape, data.entry.num_classes)
        optimizer = build_optimizer(member, model, resolve(member, data, None))
        rates = [group["lr"] / member.lr for group in optimizer.param_groups]
        for step, batch in enumerate(batch_numbers(config, schedule, data.train)):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = schedule.lr(step) * rate
            optimizer.zero_grad()
            loss(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        found.append(model(probe).detach())
    return torch.stack(found).double()


def test_wide_networks_with_the_same_flags_are_samples_of_the_ensemble(trained: Runs) -> None:
    """Mean and variance of 60 networks of width 512 within the errors of so many samples."""
    run, members = trained(DAMPENED), 60
    outputs = _outputs_of_members(run, 512, members)
    mean, variance = _probe(run, 9, "logits"), _probe(run, 9, "variance")
    z = (outputs.mean(0).numpy() - mean) / np.sqrt(variance / members)[:, None]
    assert np.abs(z).max() < 4.5  # of 48 correlated normal numbers
    assert 0.5 < np.mean(z**2) < 2
    ratio = outputs.var(0).numpy() / variance[:, None]
    assert np.mean(ratio) == pytest.approx(1, abs=0.15)
    initial = _probe(run, 0, "variance")
    assert (variance < 0.8 * initial).all()  # that the test can fail


def test_a_continued_run_equals_the_uninterrupted_one(own: Runs) -> None:
    whole, again = own(NESTEROV), own(NESTEROV)
    for step in (6, 9):
        again.remove(again.checkpoint(step))
    before = again.kernels.stat().st_mtime_ns
    train_run(again.path, NESTEROV)
    assert again.kernels.stat().st_mtime_ns == before  # computed once
    for step in whole.checkpoint_steps():
        one, other = (load_checkpoint(run.checkpoint(step)) for run in (whole, again))
        assert not differences(one, other)


@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-6), ("float32", 1e-3)])
def test_the_end_of_the_readouts_flow_is_bayesian_inference(
    trained: Runs, dtype: str, atol: float
) -> None:
    """The posterior of the Gaussian process, as docs/infinite_training.md computes it."""
    flags = "--train-batch-size 48 --epochs 1 --loss mse --optimizer flow --lr 1e9"
    run = trained(f"{CLOUDS} --width inf --dtype {dtype} --nngp --no-bias {flags}")
    targets, prior = _one_hot(_data(_config(run)).train.targets), prior_kernel(run)
    assert prior is not None
    posterior = gp_posterior(prior.train, targets, prior.probe, prior.probe_variance.diag())
    np.testing.assert_allclose(_probe(run, 1, "logits"), posterior.mean, atol=atol)
    np.testing.assert_allclose(_probe(run, 1, "variance"), posterior.variance, atol=atol)


def test_only_the_readout_learns_with_nngp(trained: Runs) -> None:
    """Without biases its kernel is the covariance of initial outputs."""
    kernels = _kernels(trained(f"{FULL} --nngp --no-bias"))
    for name in ("train", "probe"):
        torch.testing.assert_close(kernels[f"ntk/{name}"], kernels[f"nngp/{name}"])
    both = _kernels(trained(f"{FULL} --no-bias"))
    assert (both["ntk/train"].diagonal() > 1.5 * kernels["ntk/train"].diagonal()).all()


def test_features_are_extracted_by_workers_as_by_one(trained: Runs, tmp_path: Path) -> None:
    """Also where the variance is replayed from a step in between."""
    run = trained(DAMPENED)
    other = copy_run(run, tmp_path / "e" / "y")
    for step in other.feature_steps():
        other.remove(other.features(step))
    assert extract_run(other, "--workers 2") == 4
    for step in run.feature_steps():
        for name in ("logits", "variance"):
            assert (_probe(run, step, name) == _probe(other, step, name)).all()


def test_progress_is_told_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of 1000 s in 1000 tiles: after 10, 30, 70, 150, 310, then every 300 seconds."""
    said, clock = [], [0.0]
    log = logging.getLogger("progress")
    monkeypatch.setattr(log, "info", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    tell = kernels._Progress(log, "training")
    for done in range(1, 1001):
        clock[0] = float(done)
        tell(done, 1000)
    shares = ["1", "3", "7", "15", "31", "61", "91"]
    assert [line.split()[4] for line in said] == shares
    assert said[0] == "kernel of training examples: 1 %, about 16 min left"  # 990 s
    assert said[-1] == "kernel of training examples: 91 %, about 90 s left"
