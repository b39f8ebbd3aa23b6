"""Folded parametrizations against networks with real multipliers, and whole runs with them."""

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from Models import build_model
from Models.parametrization.exponents import Family
from Models.parametrization.network import Parametrized
from Models.parametrization.scales import Scales, exponents_of
from tests.runs import mistake, run_stage
from tests.training.helpers import Train, checkpoint_of, differences
from Training.config import TrainConfig
from Training.optimizers import build_optimizer
from Training.parametrized import explanation
from Training.rebuild import rebuild_config, rebuild_model
from Training.registry import OPTIMIZERS
from Training.schedule import Schedule
from Training.state import schedule_multipliers
from Utils.cli import parse
from Utils.errors import UserError
from Utils.rundir import RunFolder

FIRST = "{input: {c: 0, first: -1}, hidden: {a: 1}, readout: {a: 1}, first_steps: 1}"
"""Exponents with a first step of its own, in one line."""

N, DEPTH, STEPS = 12, 4, 12

ODD = "{layers: [{a: 1, b: -1, c: 1/3}, {a: -1/2, b: 1, c: 1/4}, {a: 2, b: -1.5, c: -1}, {a: 1/3}]}"


class Explicit(nn.Module):
    """The same chain with a multiplier before every weight and bias, which are trained."""

    def __init__(self, folded: nn.Module, multipliers: dict[str, float]):
        super().__init__()
        self.names, self.multipliers = list(multipliers), multipliers
        self.w = nn.ParameterList(
            p.detach() / multipliers[name] for name, p in folded.named_parameters()
        )

    def effective(self, name: str) -> Tensor:
        w: Tensor = self.w[self.names.index(name)]
        return w * self.multipliers[name]

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in [name for name in self.names if name.endswith("weight")]:
            bias = self.effective(layer.replace("weight", "bias"))
            x = functional.linear(x, self.effective(layer), bias)
            x = x if layer.startswith("classifier") else torch.tanh(x)
        return x


def network(flags: str) -> tuple[TrainConfig, Parametrized]:
    given = f"--model fc --depth {DEPTH} --width {N} --nonlinearity tanh --dtype float64 {flags}"
    config = parse(TrainConfig, given.split(" "))
    return config, Parametrized(config, (1, 2, 3), 3)


def take_steps(model: nn.Module, optimizer: Optimizer, scheduler: LambdaLR) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        x = torch.randn(5, 1, 2, 3, generator=generator, dtype=torch.float64)
        loss = (model(x) - x.flatten(1)[:, :3]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "optimizer",
    [
        "sgd --lr 0.01 --wd 0.3",
        "momentum --lr 0.01 --momentum 0.8 --dampening 0.3 --wd 0.3",
        "momentum --lr 0.01 --momentum 0.8 --nesterov --wd 0.3",
        "adam --lr 0.01 --wd 0.3 --eps 0.02",
        "adamw --lr 0.01 --wd 0.3 --eps 0.02",
        "rms --lr 0.01 --wd 0.3 --momentum 0.4 --eps 0.02",
        "lion --lr 0.01 --wd 0.3",
        "adamw --lr 0.01 --wd 0.3 --wd-on matrices",
    ],
)
@pytest.mark.parametrize("param", ["sp-lr1n", "ntk", "mup", "mup-table8", "ip", "ipllr", "odd"])
def test_trajectories_are_those_of_a_network_with_real_multipliers(
    param: str, optimizer: str, tmp_path: Path
) -> None:
    (tmp_path / "odd.yaml").write_text(ODD)
    chosen = f"--abc {tmp_path}/odd.yaml" if param == "odd" else f"--param {param}"
    name, *_ = optimizer.split()
    entry = OPTIMIZERS[name]
    if param == "ipllr" and entry.family == "adam":
        pytest.skip("has no learning rates for adam")
    assert entry.family is not None
    config, places = network(f"{chosen} --optimizer {optimizer}")
    folded, abc = places.build(), places.abc(entry.family)
    exponents = {p.name: exponents_of(p, abc) for p in places.places}
    explicit = Explicit(folded, {n: N ** -float(e.a) for n, e in exponents.items()})

    scales = places.scales(entry.family, entry.decay)
    schedule = Schedule(config, 1000)
    ours = build_optimizer(config, folded, scales)
    take_steps(folded, ours, LambdaLR(ours, schedule_multipliers(ours, schedule, scales)))

    groups: list[dict[str, Any]] = []
    for parameter, e in zip(explicit.w, exponents.values(), strict=True):
        spared = config.wd_on == "matrices" and parameter.dim() < 2
        constant = N ** float(e.c) if abc.decay == "constant" else 1.0
        wd = 0.0 if spared else (config.wd or 0.0) * constant
        lr = (config.lr or 0.0) * N ** -float(e.c)
        groups.append({"params": [("p", parameter)], "lr": lr, "weight_decay": wd})
    options = {key: getattr(config, key) for key in entry.options}
    theirs = entry.load()(groups, **options)
    firsts = [N ** float(e.c - e.first) if e.first is not None else 1.0 for e in exponents.values()]

    def rule(first: float) -> Callable[[int], float]:
        return lambda step: first if step < abc.first_steps else 1.0

    rules = [rule(first) for first in firsts]
    take_steps(explicit, theirs, LambdaLR(theirs, rules))
    for parameter_name, parameter in folded.named_parameters():
        moved = (parameter - explicit.effective(parameter_name)).abs().max()
        assert moved < 1e-9 * max(1.0, float(parameter.detach().abs().max())), parameter_name


def test_equal_scales_share_a_group_and_the_base_width_has_one() -> None:
    config, places = network("--param mup --base-width 12")
    model = places.build()
    groups = build_optimizer(config, model, places.scales("sgd", "gradient")).param_groups
    plain = build_optimizer(config, model).param_groups
    assert [g.keys() for g in groups] == [g.keys() for g in plain]
    config, places = network("--param mup")
    groups = build_optimizer(config, model, places.scales("sgd", "gradient")).param_groups
    assert len(groups) == 3  # input and its vectors; hidden and finite; readout


def test_the_table_has_the_columns_that_say_something() -> None:
    always = ("parameter", "lr ×", "wd ×")
    for flags, more in (
        ("--param mup", ()),
        ("--param mup --optimizer adam", ("ε ×",)),
        ("--param ipllr", ("first lr ×",)),
    ):
        head = scales_for(f"--model fc --depth 3 --width 8 {flags}").table().splitlines()[0]
        assert [c for c in (*always, "ε ×", "first lr ×") if c in head] == [*always, *more]


def test_biases_of_attention_are_scaled_by_what_their_layers_read() -> None:
    """C = 2a + c of the mean-field biases is −1, 0 and 1, that of queries the keys'."""
    flags = "--model vit --depth 1 --heads 2 --patch-size 2 --width 8"
    found = scales_for(f"{flags} --param ip")
    assert found.of("embedding.patches.bias").lr == 8
    inner = [s for s in found.parameters if s.name.startswith("blocks") and ".norm" not in s.name]
    assert {s.lr for s in inner if s.name.endswith("bias")} == {1}
    assert found.of("classifier.bias").lr == 1 / 8
    first = scales_for(f"{flags} --abc '{FIRST}'")
    assert {first.of(f"blocks.0.attention.{k}.bias").first_lr for k in "qkv"} == {8}


@pytest.mark.parametrize("family", ["sgd", "adam"])
def test_one_learning_rate_for_all_parameters_under_standard_parametrization(
    family: Family,
) -> None:
    for param, lr in (("sp", 1), ("sp-lr1n", 1 / N)):
        scales = network(f"--param {param}")[1].scales(family, "gradient")
        assert {scale.lr for scale in scales.parameters} == {lr}


@pytest.mark.parametrize("optimizer", ["sgd --lr 0.1", "adam --lr 0.01 --eps 1e-3"])
@pytest.mark.parametrize("param", ["mup", "mup-table8"])
def test_attention_divides_by_the_size_of_a_head(param: str, optimizer: str) -> None:
    """muP's 1/d is 1/√d with queries divided by √(d/d₀), here once in weights, once outside."""
    flags = f"--model vit --depth 1 --heads 2 --patch-size 2 --param {param} --base-width 8"
    given = f"{flags} --width 32 --dtype float64 --optimizer {optimizer}"
    plain = f"{given} --roles blocks.*.attention.q.weight=hidden"
    runs = []
    for chosen in (given, plain):
        config = parse(TrainConfig, chosen.split())
        network = Parametrized(config, (1, 4, 4), 3)
        entry = OPTIMIZERS[config.optimizer]
        assert entry.family is not None
        model, scales = network.build(), network.scales(entry.family, entry.decay)
        if chosen == plain:
            query = model.get_submodule("blocks.0.attention.q")
            query.register_forward_hook(lambda _, args, output: output / 2)  # √(32/8)
        runs.append((model, build_optimizer(config, model, scales)))
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        x = torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)
        losses = []
        for model, steps in runs:
            loss = (model(x) - x.flatten(1)[:, :3]).square().mean()
            steps.zero_grad()
            loss.backward()
            steps.step()
            losses.append(float(loss.detach()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-11)


# ---------------------------------------------------------------------- whole runs


def test_runs_from_before_parametrizations_go_on(trains: Train, run: RunFolder) -> None:
    assert trains() == 0
    saved = json.loads(run.hyperparameters.read_text())
    assert "parametrization" not in saved["task"]
    for flag in ("param", "abc", "roles", "base_width", "base_shapes", "explain"):
        del saved[flag]
    run.hyperparameters.write_text(json.dumps(saved))
    assert trains() == 0
    assert list(rebuild_model(run, saved, "").state_dict()) == list(
        checkpoint_of(run, 24)["model_state_dict"]
    )


def test_later_stages_rebuild_a_parametrized_model(trains: Train, run: RunFolder) -> None:
    assert trains("--param mup --epochs 0") == 0
    saved = run.read_hyperparameters()
    rebuilt = rebuild_model(run, saved, "")
    rebuilt.load_state_dict(checkpoint_of(run, 0)["model_state_dict"])
    begun = build_model(rebuild_config(run, saved), (1, 8, 8), 10)
    inputs = torch.randn(5, 1, 8, 8)
    assert torch.equal(rebuilt(inputs), begun(inputs))


def test_at_the_base_width_a_run_is_the_one_without_parametrization(
    trains: Train, run: RunFolder
) -> None:
    assert trains("--optimizer momentum --momentum 0.9") == 0
    plain = checkpoint_of(run, 24)
    assert (
        trains("--optimizer momentum --momentum 0.9 --param mup --base-width 16 --overwrite") == 0
    )
    assert differences(plain, checkpoint_of(run, 24)) == []
    assert trains("--optimizer momentum --momentum 0.9 --param mup --base-width 8 --overwrite") == 0
    assert "/model_state_dict/fc1.weight" in differences(plain, checkpoint_of(run, 24))


def test_the_first_step_has_its_own_learning_rates_and_survives_resuming(
    trains: Train, run: RunFolder
) -> None:
    flags = "--param ipllr --calibrate-width 32 --lr 0.02 --save-at 1,2"
    assert trains(flags) == 0
    whole = checkpoint_of(run, 24)
    groups = [checkpoint_of(run, k)["optimizer_state_dict"]["param_groups"] for k in (0, 1)]
    rows = json.loads(run.hyperparameters.read_text())["task"]["parametrization"]["parameters"]
    by_name = {row["name"]: row for row in rows}
    assert by_name["fc2.weight"]["lr"] == 1
    assert groups[1][0]["lr"] == pytest.approx(0.02 * by_name["fc1.weight"]["lr"])
    assert groups[0][0]["lr"] == pytest.approx(0.02 * by_name["fc1.weight"]["first_lr"])
    assert by_name["fc1.weight"]["first_lr"] == pytest.approx(16**1.5)
    for step in range(2, 25):
        run.checkpoint(step).unlink(missing_ok=True)
    assert trains(flags) == 0
    assert differences(whole, checkpoint_of(run, 24)) == []


def test_calibration_is_the_same_for_all_widths_and_seeds(trains: Train, run: RunFolder) -> None:
    found = []
    for flags in ("--width 16 --seed 1", "--width 64 --seed 9"):
        model = f"--model fc --depth 3 {flags} --param ipllr --calibrate-width 32 --epochs 0"
        assert trains(f"{model} --overwrite") == 0
        rows = json.loads(run.hyperparameters.read_text())["task"]["parametrization"]["parameters"]
        width = int(flags.split()[1])
        powers = {"fc1.weight": 1.5, "fc2.weight": 0.0, "classifier.weight": -0.5}
        found.append(
            [r["first_lr"] / width ** powers[r["name"]] for r in rows if r["name"] in powers]
        )
    assert found[0] == pytest.approx(found[1])
    assert found[0][0] == 1
    assert all(math.isfinite(rate) and rate > 0 for rate in found[0])


def test_calibration_needs_a_chain(trains: Train, tmp_path: Path) -> None:
    (tmp_path / "abc.yaml").write_text(FIRST)
    with pytest.raises(UserError, match="goes through a plain chain of layers"):
        trains(f"--model fc-bn --width 8 --abc {tmp_path}/abc.yaml --calibrate-width 8")


def test_the_command_line_tells_roles_and_theory(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    flags = "--model fc --depth 3 --width 16 --epochs 1"
    code, output, errors = run_stage("train", run, f"{flags} --param mup")
    assert code == 0
    assert "fc2.weight         16x16  hidden" in errors + output
    code, output, _ = run_stage("train", run, f"{flags} --param hybrid:0.5 --explain")
    assert code == 0
    regime = "hybrid:0.5, SGD, 2 hidden layers: stable, kernel regime, r = 1/4"
    assert regime in output
    at_infinity = explained("--model fc --depth 3 --width inf --param hybrid:0.5")
    assert regime in at_infinity
    assert "lr ×" in output
    assert "lr ×" not in at_infinity
    said = mistake("train", run, f"{flags} --param mup --optimizer muon")
    assert said.startswith("--optimizer muon has no established rule for widths")


def explained(flags: str) -> str:
    return explanation(parse(TrainConfig, [*flags.split(), "--explain"]))


def scales_for(flags: str) -> Scales:
    config = parse(TrainConfig, shlex.split(flags))
    entry = OPTIMIZERS[config.optimizer]
    return Parametrized(config, (1, 8, 8), 10).scales(entry.family or "sgd", entry.decay)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--explain", "--explain is about a parametrization"),
        ("--param mup --calibrate-width 8", "only a first step of its own is calibrated"),
        ("--param ipllr --optimizer adam", "use --param ip"),
        (f"--abc '{FIRST}' --optimizer adam --calibrate-width 8", "measures a step of SGD, not of"),
        ("--param mup --optimizer lamb", "relative to the size of each parameter; use sgd"),
        ("--base-width 8", "--base-width: not read by training without --param"),
        ("--roles a=hidden", "--roles: not read by training without --param"),
        ("--param mup --roles a=b", "write name=role"),
        ("--param mup --roles nothing.weight=hidden", "unknown parameter 'nothing.weight'"),
        ("--param mup --model logistic", "--model logistic has no width; use fc, fc-bn, conv"),
        ("--param mup --abc {}", "give one"),
        ("--param ipllr --model fc-bn", "plain chain"),
        ("--param mup --model vit --qk-norm", "--qk-norm takes it out again"),
        ("--abc nowhere.yaml", "--abc nowhere.yaml: cannot be read"),
    ],
)
def test_mistakes(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scales_for(flags)
