"""Runs of train.py replayed in function space, from their hyper-parameters and kernels."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.optim.lr_scheduler import LambdaLR

from Data import load_dataset
from Data.batches import evaluation_batches
from Data.dataset import Split
from Models.parametrization.network import Parametrized
from Models.parametrization.scales import Scale, Scales
from tests.runs import TINY, flags_of, train_run
from tests.training.helpers import checkpoint_of
from tests.training.linear_models import D
from Training.config import TrainConfig
from Training.function_space import LinearizedModel, batch_numbers, sgd_rules, train_on_batches
from Training.optimizers import build_optimizer
from Training.registry import LOSSES
from Training.schedule import Schedule
from Training.state import schedule_multipliers
from Utils.cli import parse
from Utils.errors import UserError

FLAGS = (
    "--model logistic --dtype float64 --train-batch-size 200 --warmup-steps 3 "
    "--optimizer momentum --momentum 0.8 --save-freq 5"
)


@pytest.mark.parametrize(
    "flags",
    [
        "--lr 0.5 --wd 1e-2 --lr-schedule cosine",
        "--lr 0.5 --loss mse --dampening 0.3 --lr-drops 1 --clip-norm 0.01",
        "--lr 0.1 --nesterov --wd 1e-3 --schedule batch-doubling --anneal-steps 2 --epochs 1",
    ],
)
def test_a_run_of_a_linear_model_is_replayed_from_its_kernel(flags: str, tmp_path: Path) -> None:
    """Schedules, batches, clipping and decay of train.py itself, without any weight."""
    flags = f"{FLAGS} {flags}"
    run = train_run(tmp_path / "e" / "x", flags)
    config = parse(TrainConfig, [*TINY.split(), *flags.split(), *flags_of(run)])
    data = load_dataset("digits", seed=config.seed)
    schedule = Schedule(config, len(data.train))
    x, y = next(evaluation_batches(data.train, len(data.train), dtype=D))
    others, _ = next(evaluation_batches(data.test, len(data.test), dtype=D))
    at = run.checkpoint_steps()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return a.flatten(1) @ b.flatten(1).T + 1  # of weights and biases

    def outputs(step: int, inputs: Tensor) -> Tensor:
        state = checkpoint_of(run, step)["model_state_dict"]
        weight, bias = state.values()
        logits: Tensor = inputs.flatten(1) @ weight.T + bias
        return logits

    path = train_on_batches(
        kernel(x, x),
        outputs(0, x),
        y,
        LOSSES[config.loss].load(),
        sgd_rules(config, schedule),
        list(batch_numbers(config, schedule, data.train)),
        at,
        radial=outputs(0, x),  # a linear model's derivative along its weights is itself
        clip_norm=config.clip_norm,
    )
    assert len(at) > 3
    trained, held_out = (torch.stack([outputs(t, inputs) for t in at]) for inputs in (x, others))
    ours = path.at(kernel(others, x), outputs(0, others), outputs(0, others))
    torch.testing.assert_close(path.train, trained, rtol=0, atol=1e-11)
    torch.testing.assert_close(ours, held_out, rtol=0, atol=1e-11)


def kernel_of(model: nn.Module, inputs: Tensor, scales: Scales) -> Tensor:
    """Σ_p s_p J_p J_pᵀ [N, N, C, C]."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    parts = jacrev(lambda w: functional_call(model, w, (inputs,)))(weights)
    pairs = ((scales.of(name).lr, part.flatten(2)) for name, part in parts.items())
    return torch.stack([s * torch.einsum("ncp,mdp->nmcd", j, j) for s, j in pairs]).sum(0)


@dataclass
class Few:
    """A network in the NTK parametrisation, 20 digits, and what a run does with them."""

    config: TrainConfig
    model: nn.Module
    scales: Scales
    inputs: Tensor
    targets: Tensor
    batches: list[Tensor]

    @classmethod
    def of(cls, flags: str) -> "Few":
        config = parse(TrainConfig, f"--experiment e --expid x --model fc {flags}".split())
        network = Parametrized(config, config.data_entry.input_shape, 10)
        split = load_dataset("digits").train
        assert isinstance(split, Split)
        split = replace(split, inputs=split.inputs[:20], targets=split.targets[:20])
        x, y = next(evaluation_batches(split, 20, dtype=D))
        batches = list(batch_numbers(config, Schedule(config, 20), split))
        scales = network.scales("sgd", "gradient")
        assert len({scale.lr for scale in scales.parameters}) > 1
        return cls(config, network.build().double(), scales, x, y, batches)

    def train(self, model: nn.Module) -> Tensor:
        """The outputs [N, C] after the run's steps."""
        schedule, loss = Schedule(self.config, 20), LOSSES[self.config.loss].load()
        optimizer = build_optimizer(self.config, model, self.scales)
        multipliers = schedule_multipliers(optimizer, schedule, self.scales)
        scheduler = LambdaLR(optimizer, multipliers)
        for batch in self.batches:
            optimizer.zero_grad()
            loss(model(self.inputs[batch]), self.targets[batch]).backward()
            optimizer.step()
            scheduler.step()
        return model(self.inputs).detach()  # type: ignore[no-any-return]

    def predict(self) -> Tensor:
        """The same, of the linearised model, in function space."""
        path = train_on_batches(
            kernel_of(self.model, self.inputs, self.scales),
            self.model(self.inputs).detach(),
            self.targets,
            LOSSES[self.config.loss].load(),
            sgd_rules(self.config, Schedule(self.config, 20), self.scales),
            self.batches,
            [len(self.batches)],
        )
        return path.train[0]


NTK = "--depth 2 --param ntk --dtype float64 --optimizer momentum --momentum 0.9"


def test_a_linearised_network_trains_as_its_weighted_kernel_says() -> None:
    """The module under the run's own optimizer, scales, schedule and batches."""
    few = Few.of(f"{NTK} --width 5 --train-batch-size 7 --epochs 3 --lr 0.5 --warmup-steps 2")
    start = few.model(few.inputs).detach()
    moved, predicted = few.train(LinearizedModel(few.model)), few.predict()
    torch.testing.assert_close(predicted, moved, rtol=0, atol=1e-10)
    assert (predicted - start).abs().max() > 0.1


def test_networks_tend_to_the_prediction_as_they_widen() -> None:
    """Lee et al. 2019, theorem 2.1: |f_t − f_lin| falls at least as n^{-1/2}; 16 widths are 4."""
    errors = []
    for width in (32, 512):
        few = Few.of(f"{NTK} --width {width} --train-batch-size 10 --epochs 10 --lr 0.01")
        start, predicted = few.model(few.inputs).detach(), few.predict()
        trained = few.train(few.model)
        errors.append(float((predicted - trained).norm() / (trained - start).norm()))
    narrow, wide = errors
    assert wide < narrow / 3


@pytest.mark.parametrize(
    ("flags", "scales", "message"),
    [
        ("--optimizer adam", None, "--optimizer adam"),
        ("--wd 0.1 --wd-on matrices", None, "--wd-on matrices"),
        ("--wd 0.1", {"lr": 2.0}, "--wd 0.1 decays parameters differently"),
        ("", {"first_steps": 1}, "first steps"),
    ],
)
def test_what_outputs_alone_do_not_tell_is_refused(
    flags: str, scales: dict[str, Any] | None, message: str
) -> None:
    config = parse(TrainConfig, ["--experiment", "e", "--expid", "x", *flags.split()])
    factors = None
    if scales is not None:
        one = Scale("a", (1,), "input", "")
        other = replace(one, name="b", lr=scales.get("lr", 1.0))
        factors = Scales((one, other), scales.get("first_steps", 0), "1")
    with pytest.raises(UserError, match=message):
        sgd_rules(config, Schedule(config, 100), factors)


def test_decay_that_follows_the_learning_rates_is_one_decay() -> None:
    config = parse(TrainConfig, ["--experiment", "e", "--expid", "x", "--wd", "0.1"])
    one = Scale("a", (1,), "input", "", lr=4.0, wd=0.5)
    factors = Scales((one, replace(one, name="b", lr=0.5, wd=4.0)), 0, "1")
    assert {rule.wd for rule in sgd_rules(config, Schedule(config, 100), factors)} == {0.2}
