"""Grids, expressions and ids of a sweep, and what its command line refuses."""

import math
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.sweep import SweepConfig, main
from scripts.sweeps.arguments import read_arguments
from scripts.sweeps.expressions import evaluate, parse, ranges
from scripts.sweeps.manifest import AXES, REFUSED, load_manifest, manifest, save_manifest
from scripts.sweeps.stages import divided
from tests.runs import ROOT
from Training.config import TrainConfig
from Utils import cli
from Utils.config import validate
from Utils.errors import UserError

NOWHERE = Path("nowhere")


def value(text: str, **flags: float) -> float:
    return evaluate(parse(text), flags)


def test_expressions_are_arithmetic() -> None:
    assert value("0.1 * width**-1", width=64) == 0.1 / 64
    assert value("-2**2 + 7 // 2 % 2") == -(2**2) + 7 // 2 % 2
    assert value("max(sqrt(width), log2(8), 1)", width=16) == 4
    assert value("round(10**(1/2))") == 3
    assert value("12345678901234567890") == 12345678901234567890


numbers = st.one_of(
    st.integers(-99, 99), st.floats(-1e3, 1e3, allow_nan=False).map(lambda x: round(x, 3))
)
sums = st.recursive(
    st.one_of(numbers.map(lambda x: f"({x!r})"), st.just("width")),
    lambda part: st.tuples(part, st.sampled_from(["+", "-", "*"]), part).map(
        lambda parts: f"({' '.join(parts)})"
    ),
    max_leaves=8,
)


@given(text=sums, width=st.integers(1, 4096))
def test_expressions_have_pythons_values(text: str, width: int) -> None:
    expected = eval(text, {"__builtins__": {}}, {"width": width})  # the oracle
    if math.isfinite(expected):
        assert value(text, width=width) == expected


@given(text=st.text(st.sampled_from("width()*/+-.1e_,[]'\"lambd:x ={}@")))
def test_whatever_is_typed_is_a_number_or_a_mistake(text: str) -> None:
    try:
        result = value(text, width=2)
    except (UserError, KeyError):  # unknown names are found before an expression is evaluated
        return
    assert math.isfinite(result)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os')", "no function '__import__'; there are sqrt"),
        ("().__class__", "neither a number nor arithmetic"),
        ("width.real", "neither a number nor arithmetic"),
        ("(lambda: 1)()", "neither a number nor arithmetic"),
        ("[1][0]", "neither a number nor arithmetic"),
        ("True", "neither a number nor arithmetic"),
        ("1 if 1 else 2", "neither a number nor arithmetic"),
        ("0.1 *", "neither a number nor arithmetic"),
        ("9**9**9**9", "no value"),
        ("1/0", "no value: division by zero"),
        ("(-8)**0.5", "is not real"),
        ("1e308*10", "not finite"),
        ("1+" * 200 + "1", "longer than 300"),
    ],
)
def test_expressions_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace("'", ".")):
        value(text)


def test_ranges_include_both_ends() -> None:
    assert [value(text) for text in ranges("0..3")] == [0, 1, 2, 3]
    assert [value(text) for text in ranges("2**(6..8)")] == [64, 128, 256]
    assert [value(text) for text in ranges("10**(-2..0)")] == [0.01, 0.1, 1]
    assert [value(t) for t in ranges("(1..2) * 10 + (3..4)")] == [13, 14, 23, 24]
    assert ranges("1.5") == ["1.5"]
    with pytest.raises(UserError, match=r"range 3\.\.1 goes down; write 1\.\.3"):
        ranges("3..1")


def grid(**flags: Any) -> dict[str, list[Any]]:
    return {
        name: values if isinstance(values, list) else [values] for name, values in flags.items()
    }


def ids(**flags: Any) -> list[str]:
    return [run.expid for run in manifest(grid(**flags), NOWHERE)]


def digests(**flags: Any) -> set[str]:
    return {run.digest for run in manifest(grid(**flags), NOWHERE)}


def test_a_grid_is_all_combinations() -> None:
    runs = manifest(grid(model="fc", width="2**(4..5)", lr="0.1 * width**-1", seed="0..1"), NOWHERE)
    assert [(r.flags["width"], r.flags["lr"], r.flags["seed"]) for r in runs] == [
        (16, 0.1 / 16, 0),
        (16, 0.1 / 16, 1),
        (32, 0.1 / 32, 0),
        (32, 0.1 / 32, 1),
    ]
    assert runs[0].expid.startswith("width=16,lr=0.00625,seed=0-")


def test_a_run_is_not_called_by_what_it_has_none_of() -> None:
    """Infinite width has no initial weights, and so no seed of them."""
    flags = {"model": "fc", "depth": 2, "param": "ntk", "loss": "mse", "lr": 0.1}
    names = ids(**flags, width=[16, "inf"], init_seed=[1, 2])
    assert [name.rpartition("-")[0] for name in names] == [
        "width=16,init_seed=1",
        "width=16,init_seed=2",
        "width=inf",
    ]


def test_functions_are_no_flags_and_none_is_no_number() -> None:
    runs = manifest(
        grid(model="fc", width=16, lr="1 / sqrt(width)", clip_norm=["None", 2]), NOWHERE
    )
    assert [(run.flags["lr"], run.flags.get("clip_norm")) for run in runs] == [
        (1 / 4, None),
        (1 / 4, 2),
    ]


def test_ids_are_frozen() -> None:
    """Folders of old sweeps must be found by later versions."""
    assert ids(model="fc", width=[16], lr="0.1", seed=0) == ["run-d9a3f51a"]


def test_ids_depend_on_what_is_trained_alone() -> None:
    first = ids(lr=[0.1, 0.2], width=[8, 16], model="fc")
    assert digests(model="fc", width=[16, 8], lr=[0.2, 0.1]) == {name[-8:] for name in first}
    assert set(first) < set(ids(lr=[0.1, 0.2, 0.3], width=[8, 16, 32], model="fc"))
    same = digests(model="fc", width=8)
    assert same == digests(width="2**3", model="fc", bias=True, dtype="float32", lr_drops="")
    assert same == digests(model="fc", width=8, data_dir="elsewhere", device="cpu")
    assert digests(lr="1") == digests(lr=[1, 1.0, "2/2"])
    default = validate(TrainConfig, {"model": "fc"}, "test").width
    assert digests(model="fc", width=default) == digests(model="fc")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "width": st.integers(1, 9),
            "depth": st.integers(1, 4),
            "lr": st.sampled_from([0.01, 0.1, 1.0]),
            "bias": st.booleans(),
            "seed": st.integers(0, 3),
            "momentum": st.sampled_from([0.5, 0.9]),
            "nesterov": st.booleans(),
            "save_at": st.sampled_from([["log"], ["1", "5"]]),
            "clip_norm": st.sampled_from([1.0, 2.0]),
        },
    ),
    st.randoms(use_true_random=False),
)
def test_equal_ids_mean_equal_training(flags: dict[str, Any], random: Any) -> None:
    """The id is that of what train.py resolves, whatever was said and in which order."""
    flags = {"model": "fc", **flags}
    if "momentum" in flags or "nesterov" in flags:
        flags = {"optimizer": "momentum", "momentum": 0.9, **flags}
    (run,) = manifest({name: [value] for name, value in flags.items()}, NOWHERE)
    resolved = validate(TrainConfig, flags, "test").flat()
    full = {name: v for name, v in resolved.items() if v is not None and name in AXES}
    names = list(full)
    random.shuffle(names)
    (again,) = manifest({name: [full[name]] for name in names}, NOWHERE)
    assert again.digest == run.digest
    other = {**flags, "seed": flags.get("seed", 1) + 7}
    (changed,) = manifest({name: [value] for name, value in other.items()}, NOWHERE)
    assert changed.digest != run.digest


@pytest.mark.parametrize(
    "flags",
    [
        {"model": "fc", "bias": False, "save_at": "log,100", "lr_drops": [[3, 5]], "lr": 1e-5},
        {"optimizer": "momentum", "momentum": 0.9, "nesterov": True, "clip_norm": None},
    ],
)
def test_runs_can_be_typed(flags: dict[str, Any]) -> None:
    (run,) = manifest(grid(**flags), NOWHERE)
    assert cli.parse(TrainConfig, run.arguments()) == validate(TrainConfig, run.flags, "test")


def test_a_run_keeps_the_name_of_its_folder(tmp_path: Path) -> None:
    (run,) = manifest(grid(model="fc", seed=3), tmp_path)
    (tmp_path / run.expid).mkdir()
    names = [r.expid for r in manifest(grid(model="fc", seed=[3, 4]), tmp_path)]
    assert names[0] == run.expid
    assert names[1].startswith("seed=4-")


def test_runs_come_back_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    runs = manifest(grid(model="fc", width=[8, 16, 128], lr=["0.5", "1e-05", "0.0625"]), tmp_path)
    save_manifest(tmp_path, runs, {})
    found = [(run.flags["width"], run.flags["lr"]) for run in load_manifest(tmp_path)[0]]
    assert found == [(width, lr) for width in (8, 16, 128) for lr in (1e-05, 0.0625, 0.5)]


def test_every_mistake_is_listed() -> None:
    with pytest.raises(UserError) as caught:
        manifest(grid(model="fc", lr=["-1", "0.1", "1/width"], depth=[2, 0, "2**0.5"]), NOWHERE)
    lines = str(caught.value).split("\n  ")
    assert lines[0] == f"{len(lines) - 1} mistakes, nothing was started:"
    assert any(line.startswith("--lr -1: ") and "lr=-1,depth=2" in line for line in lines)
    assert any("--lr '1/width': width has no value in this sweep; set it, too" in x for x in lines)
    assert any("--depth 0: input should be greater" in line for line in lines)
    assert any("--depth 1.414" in line for line in lines)
    with pytest.raises(UserError, match=r"\(sweep\); for seed=-1$"):
        manifest(grid(model="fc", seed="-2..-1"), NOWHERE)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lr": "wd", "wd": "lr"}, "depends on itself, by way of lr, wd"),
        ({"lr": "1/speed"}, "speed has no value in this sweep; it is no flag of train.py"),
        ({"lr": "1/model", "model": "fc"}, "model is fc, not a number"),
        ({"lr": []}, "no value; leave it out or give some; for --lr"),
        ({"lr": "0..20000"}, "more than 10000 values"),
    ],
)
def test_mistakes(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        manifest(grid(**flags), NOWHERE)


def test_the_command_line_and_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("experiment: e\njobs: 3\nmodel: fc\nwidth: 2**(3..4)\nlr: [0.1, 0.2]\n")
    argv = f"--config {file} --lr 0.3 --seed 0..1 --no-bias --nesterov --save-at log 1,2 --jobs=2"
    own, axes = read_arguments(SweepConfig, [*argv.split(), "--extract", "--probe none"])
    config = cli.parse(SweepConfig, own)
    assert (config.experiment, config.jobs, config.extract) == ("e", 2, "--probe none")
    assert axes == {
        "model": ["fc"],
        "width": ["2**(3..4)"],
        "lr": ["0.3"],
        "seed": ["0..1"],
        "bias": [False],
        "nesterov": [True],
        "save_at": ["log", "1,2"],
    }


def test_own_flags_hide_none_of_trainings() -> None:
    shared = SweepConfig.model_fields.keys() & TrainConfig.model_fields.keys()
    assert shared == {"experiment", "save_dir"}
    assert REFUSED.keys() < TrainConfig.model_fields.keys()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--lr 0.1 --widht 3", "unknown flag '--widht'; did you mean '--width'?"),
        ("0.1 --lr", "unexpected argument '0.1'"),
        ("--expid a", "--expid (command line): the sweep names its runs; leave it out"),
        ("--tpu", "train on one device each"),
        ("--lr 0.1", "--experiment is missing"),
        ("--experiment none-such", "this experiment has no sweep yet"),
        ("--experiment e --save-dir gs://b/c --lr 1", "a sweep works in a folder"),
        ("--experiment e --lr 1 --stages train,plt", "unknown stage 'plt'; did you mean 'plot'?"),
        ("--experiment e --lr 1 --cache --workers", "--cache '--workers': add cache to --stages"),
        ("--experiment e --lr 1 --stages cache --cache=--wokers=2", "did you mean '--workers'?"),
        ("--experiment e --lr 1 --slurm partition=a", "how long may a job take?"),
        ("--experiment e --config no-such.yaml", "no-such.yaml: cannot be read"),
    ],
)
def test_mistakes_of_the_command_line(
    argv: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep.py", *argv.split()])
    with pytest.raises(UserError) as caught:
        main()
    assert message in str(caught.value)


def test_mistakes_end_with_code_2_before_anything_is_started(tmp_path: Path) -> None:
    flags = f"--experiment e --save-dir {tmp_path} --lr 0.1 0 --batch 3 --epochs 1".split()
    done = subprocess.run(
        [sys.executable, "-m", "scripts.sweep", *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown flag '--batch'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_names_both_kinds_of_flags_without_torch() -> None:
    code = (
        "import sys, scripts.sweep as s\nsys.argv = ['sweep', '--help']\n"
        "try: s.main()\nexcept SystemExit as e: assert not e.code\nsys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--retry-failed" in done.stdout
    assert "Every flag of train.py" in " ".join(done.stdout.split())


def test_the_page_shows_the_example_and_commands_that_work(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "sweeps.md").read_text()
    example = (ROOT / "scripts" / "sweeps" / "example.yaml").read_text()
    assert "\n".join(x for x in example.splitlines() if not x.startswith("#")) in page
    commands = re.findall(r"^ +python -m scripts\.sweep (--experiment .+)$", page, re.MULTILINE)
    numbers = []
    for command in commands:
        own, axes = read_arguments(SweepConfig, shlex.split(command))
        divided(cli.parse(SweepConfig, own).stage_flags())
        numbers.append(len(manifest(axes, tmp_path)))
    assert numbers == [4 * 2 * 5, 4 * 2 * 5, 5 * 3]


def test_the_example_is_a_sweep(tmp_path: Path) -> None:
    file = ROOT / "scripts" / "sweeps" / "example.yaml"
    own, axes = read_arguments(SweepConfig, ["--config", str(file), "--save-dir", str(tmp_path)])
    config = cli.parse(SweepConfig, own)
    runs = manifest(axes, config.path)
    assert len(runs) == 4 * 3 * 2
    assert {run.flags["lr"] * run.flags["width"] for run in runs} == {0.8, 1.6, 3.2}


def test_commands_of_measured_exponents_are_sweeps(tmp_path: Path) -> None:
    """Of five parametrizations, and of one, over five widths and five seeds."""
    page = (ROOT / "docs" / "parametrizations.md").read_text()
    commands = re.findall(r"^ +python -m scripts\.sweep (.+)$", page, re.MULTILINE)
    sizes = []
    for command in commands:
        arguments = command.replace("scripts/", f"{ROOT}/scripts/")
        own, axes = read_arguments(SweepConfig, shlex.split(arguments))
        assert cli.parse(SweepConfig, own).stages == ("train", "extract")
        sizes.append(len(manifest(axes, tmp_path)))
    assert sizes[0] == 5 * 5 * 5
    assert set(sizes[1:]) <= {5 * 5, 4 * 5}
