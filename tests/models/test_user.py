"""Models that users bring, and every way in which they can be wrong."""

import sys
from pathlib import Path

import pytest
import torch

from Models import ModelConfig, build_model
from Utils.config import validate
from Utils.errors import UserError

GOOD = """
from torch import nn
import helper

def small(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, helper.WIDTH), nn.ReLU(),
                         nn.Linear(helper.WIDTH, num_classes))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "helper.py").write_text("WIDTH = 5\n")
    return tmp_path


def build(reference: str, dtype: str = "float32") -> torch.nn.Module:
    config = validate(ModelConfig, {"model": reference, "dtype": dtype}, "command line")
    return build_model(config, (1, 8, 8), 10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_function_in_a_file_or_in_a_module(folder: Path, dtype: str) -> None:
    (folder / "both_ways.py").write_text(GOOD)
    from_file = build("both_ways.py:small", dtype).state_dict()
    from_module = build("both_ways:small", dtype).state_dict()
    assert from_file["1.weight"].shape == (5, 64)
    assert from_file["1.weight"].dtype == getattr(torch, dtype)
    assert all(torch.equal(from_file[k], from_module[k]) for k in from_file)


def test_running_statistics_and_mode_are_left_alone(folder: Path) -> None:
    (folder / "bn.py").write_text(
        "from torch import nn\n"
        "def f(s, c): return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, c))\n"
    )
    model = build("bn.py:f")
    assert model.training
    assert int(model.state_dict()["0.num_batches_tracked"]) == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def g(s, c): ...", "has no function 'f'; it defines: g"),
        ("f = 3", "has no function 'f'"),
        ("def f(s, c): return 3", "the function returned int; return a torch.nn.Module"),
        ("def f(s, c): return nn.Flatten()", "no parameters to train"),
        ("def f(s, c):\n  return 1 / 0", r"function failed: ZeroDivisionError.*mine.py, line 3"),
        ("def f(s): ...", "function failed: TypeError"),
        ("def f(s, c): return nn.Linear(7, c)", r"failed on inputs of shape \[2, 1, 8, 8\]: Runt"),
        ("def f(s, c): return nn.Linear(8, c)", r"outputs of shape \[2, 1, 8, 10\]; return \[2, 1"),
        ("import nothing_like_it", "importing mine.py failed: ModuleNotFoundError"),
        ("def f(", r"importing mine.py failed: SyntaxError.*line 2"),
    ],
)
def test_mistakes_in_the_users_file_are_told_in_one_line(
    folder: Path, source: str, message: str
) -> None:
    (folder / "mine.py").write_text(f"from torch import nn\n{source}\n")
    with pytest.raises(UserError, match=message) as caught:
        build("mine.py:f")
    assert str(caught.value).startswith("--model mine.py:f: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("absent.py:f", "there is no file absent.py"),
        ("absent_module:f", "importing absent_module failed: ModuleNotFoundError"),
        (":f", "write it as"),
        ("file.py:", "write it as"),
    ],
)
def test_references_to_nothing(folder: Path, reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(reference)


def test_options_of_our_models_are_refused() -> None:
    for flag, option in (("--width", {"width": 3}), ("--no-bias", {"bias": False})):
        with pytest.raises(UserError, match=rf"{flag}: not read by --model a\.py:f"):
            validate(ModelConfig, {"model": "a.py:f", **option}, "command line")
