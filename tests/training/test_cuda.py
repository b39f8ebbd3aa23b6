"""Training, extraction and metrics on a GPU, beside the same on the CPU.

Without a GPU only the rows of the CPU run: they check the tests' own logic, and what the same
flags do there.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from Models import build_model
from Models.symmetry import Laws, find_laws
from tests.runs import cache_run, copy_run, extract_run, run_stage
from tests.training.helpers import (
    Train,
    assert_same_training,
    checkpoint_of,
    differences,
    torchrun,
)
from tests.training.test_conservation import residual
from Training import TrainConfig
from Training.buffers import StepBuffers
from Training.conservation import ConservationObserver
from Training.losses import LossRecord
from Training.optimizers import build_optimizer
from Training.updates import updates_of
from Utils.config import validate
from Utils.devices import allow_tf32
from Utils.rundir import RunFolder

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

on_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])

CONV = "--model conv-bn --width 4"

FLAGS = (
    f"{CONV} --lr 0.1 --wd 1e-3 --lr-schedule cosine --optimizer momentum --momentum 0.9 "
    "--nesterov --clip-norm 1 --dtype float64"
)

ATOL = {"cpu": 1e-12, "cuda": 1e-9}
"""How far weights and charges of order 1 may be off in float64 after 24 steps at a large learning
rate: cuDNN adds products up in other orders, and training amplifies that."""

VIT = {"model": "vit", "width": 16, "depth": 2, "heads": 2}

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05, "wd": 1e-3},
    "momentum": {"optimizer": "momentum", "lr": 0.01, "momentum": 0.9, "wd": 1e-3},
    "nesterov": {
        "optimizer": "momentum", "lr": 0.01, "momentum": 0.9, "wd": 1e-3, "nesterov": True,
    },
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "wd": 0.1},
}  # fmt: skip


def observed(
    device: str, flags: dict[str, Any], dtype: str, steps: int = 20
) -> tuple[ConservationObserver, nn.Module]:
    """A network of the registry after some steps on images of digits' shape."""
    config = validate(TrainConfig, {"dtype": dtype, **flags}, "test")
    model = build_model(config, (1, 8, 8), 10)
    inputs = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = (torch.arange(32) % 10).to(device)
    inputs = inputs.to(device, getattr(torch, dtype))
    laws = find_laws(model, torch.zeros(2, 1, 8, 8, dtype=inputs.dtype), "ce")
    model.to(device)
    optimizer = build_optimizer(config, model)
    observer = ConservationObserver(model, optimizer, laws)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss: Any = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        if step % 6 == 0 or step == steps:
            observer.record(step)
    return observer, model


@on_devices
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov"])
@pytest.mark.parametrize("model", [{"model": "conv-bn", "width": 4}, VIT], ids=["conv-bn", "vit"])
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-12), ("float32", 1e-5)])
def test_laws_are_followed(
    device: str, model: dict[str, Any], optimizer: str, dtype: str, limit: float
) -> None:
    allow_tf32(False)
    observer, network = observed(device, model | OPTIMIZERS[optimizer], dtype)
    assert observer.open.all()
    assert residual(observer, network).max() < limit


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [{"model": "conv-bn", "width": 4}, VIT], ids=["conv-bn", "vit"])
def test_measurements_stay_on_the_device(model: dict[str, Any], optimizer: str) -> None:
    """Tensors of the device "meta" have no numbers: nothing can be read, or sent to the host."""
    config = validate(TrainConfig, model | OPTIMIZERS[optimizer], "test")
    network = build_model(config, (1, 8, 8), 10)
    laws = find_laws(network, torch.zeros(2, 1, 8, 8), "ce")
    stepped = build_optimizer(config, network.to("meta"))
    parameters = dict(network.named_parameters())
    updates = updates_of(stepped, parameters, laws)
    buffers = ("grad", "update") if optimizer == "adamw" else ("grad", "update", "sgd")
    kept = StepBuffers(network, stepped, buffers)
    for _ in range(2):  # the momentum buffers are made in the first
        for parameter in parameters.values():
            parameter.grad = torch.empty_like(parameter)
        updates.before(stepped)
        stepped.step()
        assert updates.after(stepped)[1].device.type == "meta"
    tensors = {
        t.device.type for held in kept.state_dict().values() for t in held.values() if t.dim()
    }
    assert tensors == {"meta"}


@on_devices
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_budget_of_adamw_closes(device: str, dtype: str) -> None:
    """Weights are compared in float64 in both number formats."""
    observer, model = observed(device, VIT | OPTIMIZERS["adamw"], dtype)
    state, parameters = observer.state_dict(), dict(model.named_parameters())
    after = observer.laws.measure(lambda name: parameters[name].detach())
    drift = after - state["start"].numpy()
    budget = (state["charge"] - state["start"]).numpy()
    assert np.abs(budget - drift).max() < 1e-10 * np.abs(drift).max()


@on_devices
def test_laws_of_attention_are_followed_with_tensorfloat32(device: str) -> None:
    """The network rounds its factors, the observer does not."""
    allow_tf32(True)
    try:
        observer, network = observed(device, VIT | OPTIMIZERS["momentum"], "float32")
    finally:
        allow_tf32(False)
    assert residual(observer, network).max() < 1e-5


@on_devices
def test_a_gpu_trains_as_the_cpu(
    device: str, trains: Train, run: RunFolder, tmp_path: Path
) -> None:
    trains(f"{FLAGS} --device cpu")
    here = copy_run(run, tmp_path / "here")
    trains(f"{FLAGS} --device {device} --overwrite")
    assert_same_training(here, run, ATOL[device])


@on_devices
@pytest.mark.parametrize("model", [CONV, "--model vit --width 16 --depth 2 --heads 2"])
def test_a_continued_run_is_the_uninterrupted_one_bit_for_bit(
    device: str, model: str, trains: Train, run: RunFolder, tmp_path: Path
) -> None:
    flags = f"{model} --device {device} --deterministic --optimizer momentum --momentum 0.9"
    try:
        trains(f"{flags} --save-freq 7")
        whole = copy_run(run, tmp_path / "whole")
        _forget_after(run, 14)
        trains(f"{flags} --save-freq 7")
    finally:
        torch.use_deterministic_algorithms(False)
    for step in (21, 24):
        assert not differences(checkpoint_of(run, step), checkpoint_of(whole, step))


def test_what_is_not_deterministic_is_named(tmp_path: Path) -> None:
    """As the pooling of torchvision's VGGs on GPUs; ``put_`` is deterministic nowhere."""
    (tmp_path / "putting.py").write_text(
        "from torch import autograd, nn, tensor\n"
        "class Put(autograd.Function):\n"
        "    @staticmethod\n"
        "    def forward(ctx, x):\n"
        "        return x.clone()\n"
        "    @staticmethod\n"
        "    def backward(ctx, g):\n"
        "        return g.clone().put_(tensor([0]), g.new_zeros(1))\n"
        "class Putting(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return Put.apply(super().forward(x.flatten(1)))\n"
        "def build(shape, classes):\n"
        "    return Putting(64, classes)\n"
    )
    run = RunFolder(tmp_path / "e" / "x")
    flags = f"--model {tmp_path}/putting.py:build --deterministic"
    code, _, errors = run_stage("train", run, flags)
    assert code == 2
    assert "--deterministic: there is no deterministic algorithm for put_" in errors
    assert "Traceback" not in errors


@on_devices
def test_the_cpu_continues_what_a_gpu_began(
    device: str, trains: Train, run: RunFolder, tmp_path: Path
) -> None:
    trains(f"{FLAGS} --device {device}")
    whole = copy_run(run, tmp_path / "whole")
    states = checkpoint_of(run, 24)["rng_state"]
    assert [sorted(state) for state in states] == [sorted({"cpu", device})]
    _forget_after(run, 12)
    trains(f"{FLAGS} --device cpu")
    assert_same_training(whole, run, ATOL[device])


def _forget_after(run: RunFolder, step: int) -> None:
    """Take away a run's later checkpoints, as if it had been killed."""
    for later in run.checkpoint_steps():
        if later > step:
            run.checkpoint(later).unlink()


@on_devices
def test_bfloat16_keeps_weights_and_laws_in_full(
    device: str, trains: Train, run: RunFolder
) -> None:
    trains(f"--model conv-bn --precision bf16 --epochs 3 --device {device}")
    last = checkpoint_of(run, 36)
    assert last["accuracy1"] > 80
    assert all(t.dtype != torch.bfloat16 for t in last["model_state_dict"].values())
    assert last["model_state_dict"]["classifier.weight"].dtype == torch.float32
    assert _open_quadratic(run, last).all()
    assert last["observer_state_dict"]["record"]["residual"].max() < 1e-5


def _open_quadratic(run: RunFolder, checkpoint: dict[str, Any]) -> Any:
    """The gates of laws of squares; sums of gradients are zero only up to the rounding of each."""
    gates = checkpoint["observer_state_dict"]["open"]
    return gates[: len(Laws.load(run.symmetries).quadratic)]


@on_devices
@pytest.mark.parametrize("flags", ["--channels-last", "--deterministic", "--tf32", "--compile"])
def test_ways_to_compute_change_nothing_but_rounding(
    device: str, flags: str, trains: Train, run: RunFolder
) -> None:
    quick = flags == "--compile" and device == "cpu"  # whose compiler takes long
    model = f"--model {'logistic' if quick else 'conv --width 4'} --epochs 1 --device {device}"
    trains(f"{model} --dtype float64")
    plain = checkpoint_of(run, 12)["model_state_dict"]
    trains(f"{model} --dtype float64 --overwrite {flags}")
    torch.use_deterministic_algorithms(False)
    other = checkpoint_of(run, 12)
    for name, tensor in plain.items():
        torch.testing.assert_close(
            other["model_state_dict"][name], tensor, rtol=0, atol=ATOL[device]
        )
    assert other["observer_state_dict"]["record"]["residual"].max() < 1e-12


@needs_gpu
def test_all_ways_together_train(trains: Train, run: RunFolder) -> None:
    trains("--model conv-bn --epochs 3 --device cuda --compile --tf32 --channels-last")
    last = checkpoint_of(run, 36)
    allow_tf32(False)
    assert last["accuracy1"] > 80
    assert _open_quadratic(run, last).all()
    assert last["observer_state_dict"]["record"]["residual"].max() < 1e-5


@needs_gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [CONV, "--model vit --width 16 --depth 2 --heads 2"])
def test_no_step_waits_for_the_gpu(
    model: str, optimizer: str, trains: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first step and the end of the epoch, where losses are collected."""
    add, collect, steps = LossRecord.add, LossRecord.collect, []

    def add_and_watch(self: LossRecord, loss: torch.Tensor) -> None:
        add(self, loss)
        steps.append(loss)
        torch.cuda.set_sync_debug_mode("error")  # raises where the host waits

    def stop_watching(self: LossRecord, step: int) -> None:
        torch.cuda.set_sync_debug_mode("default")
        collect(self, step)

    monkeypatch.setattr(LossRecord, "add", add_and_watch)
    monkeypatch.setattr(LossRecord, "collect", stop_watching)
    flags = " ".join(
        f"--{key}" if value is True else f"--{key} {value}"
        for key, value in OPTIMIZERS[optimizer].items()
    )
    try:
        trains(f"{model} --device cuda --observe-freq 100 --epochs 1 --clip-norm 1 {flags}")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 12


@on_devices
def test_features_and_metrics_are_the_same_on_every_device(
    device: str, trains: Train, run: RunFolder, tmp_path: Path
) -> None:
    trains(f"{CONV} --dtype float64 --epochs 1 --device cpu")
    there = copy_run(run, tmp_path / "e" / "there")
    for each, where in ((run, "cpu"), (there, device)):
        extract_run(each, f"--probe activations --device {where}")
        cache_run(each, f"--metrics scale,sharpness --examples 64 --device {where}")
    files = [path.relative_to(run.path) for path in run.path.rglob("*.h5")]
    assert any(path.parts[0] == "cache" for path in files)
    assert any(path.parts[0] == "feats" for path in files)
    for path in files:
        _assert_same_numbers(run.path / path, there.path / path)


def _assert_same_numbers(here: Path, there: Path) -> None:
    """Two files hold the same numbers by the same names, to the precision of eigenvalues."""

    def numbers(path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with h5py.File(path) as file:

            def note(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub":
                    found[name] = item[()]

            file.visititems(note)
        return found

    first, second = numbers(here), numbers(there)
    assert first.keys() == second.keys()
    assert first
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-6, atol=1e-9, err_msg=name)


@needs_gpu
def test_one_process_of_torchrun_trains_as_one_of_none(
    trains: Train, run: RunFolder, tmp_path: Path
) -> None:
    trains(f"{FLAGS} --epochs 2 --observe-freq 4 --device cuda")
    there = RunFolder(tmp_path / "torchrun" / "x")
    process = torchrun(there, f"{FLAGS} --epochs 2 --observe-freq 4 --device cuda", 1)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same_training(run, there, ATOL["cuda"])
