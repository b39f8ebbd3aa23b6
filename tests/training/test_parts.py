"""The parts of the loop, each by itself."""

import json
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from Training import LOSSES
from Training.backends.backend import Backend
from Training.backends.config import BackendConfig
from Training.checkpoints import load_checkpoint, save_checkpoint
from Training.evaluation import evaluate
from Training.interruption import Interruption
from Training.journal import Journal
from Training.losses import LossRecord
from Utils.config import validate
from Utils.errors import UserError


def _evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], function: Callable[..., Tensor]
) -> dict[str, float]:
    backend = Backend(validate(BackendConfig, {}, "test"), torch.device("cpu"))
    return evaluate(model, model, batches, function, backend)


@pytest.mark.parametrize("loss", LOSSES.names)
@pytest.mark.parametrize("classes", [3, 10])
def test_evaluation_weighs_every_example_the_same(loss: str, classes: int) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(50, classes).double(), torch.randint(classes, (50,))
    function = LOSSES[loss].load()
    batches = zip(logits.chunk(3), targets.chunk(3), strict=True)
    metrics = _evaluate(nn.Identity(), batches, function)
    rank = (logits > logits.gather(1, targets[:, None])).sum(1)
    assert metrics["test_loss"] == pytest.approx(function(logits, targets).item(), rel=1e-14)
    assert metrics["accuracy1"] == pytest.approx(100 * (rank == 0).double().mean().item())
    assert metrics["accuracy5"] == pytest.approx(100 * (rank < 5).double().mean().item())


def test_a_regression_is_evaluated_by_its_loss_alone() -> None:
    torch.manual_seed(0)
    outputs, targets = torch.randn(50, 2).double(), torch.randn(50, 2).double()
    batches = zip(outputs.chunk(3), targets.chunk(3), strict=True)
    metrics = _evaluate(nn.Identity(), batches, LOSSES["mse"].load())
    squares = [(a - b) ** 2 for a, b in zip(outputs.view(-1), targets.view(-1), strict=True)]
    assert metrics == {"test_loss": pytest.approx(float(sum(squares)) / 100, rel=1e-14)}


@pytest.mark.parametrize("regression", [False, True])
def test_the_linear_loss_pulls_every_output_by_its_target_alone(regression: bool) -> None:
    torch.manual_seed(0)
    classes = torch.tensor([2, 0, 1, 2])
    rows = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).double()
    targets = torch.randn(4, 3).double() if regression else rows
    for size in (0.0, 1.0, 100.0):
        logits = (size * torch.randn(4, 3)).double().requires_grad_()
        loss = LOSSES["linear"].load()(logits, targets if regression else classes)
        (gradient,) = torch.autograd.grad(loss, [logits])
        torch.testing.assert_close(gradient, -targets / 12)
        assert loss.item() == pytest.approx(
            -float((logits.detach().numpy() * targets.numpy()).mean())
        )


def test_evaluation_uses_running_statistics_and_returns_to_training() -> None:
    model = nn.BatchNorm1d(3)
    _evaluate(model, [(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))], LOSSES["ce"].load())
    assert model.training
    assert model.num_batches_tracked == 0


def test_means_do_not_depend_on_when_losses_are_collected() -> None:
    losses = torch.rand(20)
    means = []
    for stops in ([20], [3, 4, 11, 20]):
        record = LossRecord()
        for step, loss in enumerate(losses, start=1):
            record.add(loss)
            if step in stops:
                record.collect(step)
                state = record.state_dict()
                record = LossRecord()
                record.load_state_dict(state)
        means.append(record.take_mean("epoch"))
    assert means[0] == means[1] == pytest.approx(losses.double().mean().item())


def test_the_journal_drops_what_will_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Journal(tmp_path, -1) as journal:
        for step in (0, 10, 20):
            journal.write(step, {"train_loss": 1.0}, milestone=step == 0)
    with open(path, "a") as file:
        file.write('{"step": 3')
    with Journal(tmp_path, 10) as journal:
        journal.write(15, {"train_loss": 2.0}, milestone=False)
        journal.sync()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 10, 15]


def test_signals_are_noted_and_a_second_ctrl_c_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        assert interruption.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /should/never/exist",)


def test_unreadable_checkpoints_are_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "step3.tar"
    with pytest.raises(UserError, match=r"step3\.tar does not exist; run train\.py"):
        load_checkpoint(path)
    save_checkpoint(path, {"model_state_dict": {"w": torch.zeros(1000)}, "step": 3})
    whole = path.read_bytes()
    assert load_checkpoint(path)["step"] == 3
    for damaged in (whole[:-100], whole[:1000], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"step3\.tar is truncated or no checkpoint"):
            load_checkpoint(path)
    path.write_bytes(whole.replace(b"model_state_dict", b"\xff" * 16))
    with pytest.raises(UserError, match=r"step3\.tar is damaged"):
        load_checkpoint(path)
    torch.save({"model_state_dict": Malicious()}, path)
    with pytest.raises(UserError, match=r"step3\.tar holds more than tensors"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match=r"step3\.tar is no checkpoint"):
        load_checkpoint(path)
