"""Configurations: immutable, flat, and strict about what they do not know."""

from pathlib import Path

import pydantic
import pytest

from Utils.config import Config, Names, RunConfig, validate
from Utils.devices import select_device
from Utils.errors import UserError


class Toy(Config):
    """Plays."""

    b: int = 1
    a: Names = ("x",)


def test_flat_is_sorted_and_made_of_json_types() -> None:
    assert list(Toy().flat().items()) == [("a", ["x"]), ("b", 1)]


def test_it_cannot_be_changed() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Toy().b = 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"c": 1}, "--c 1: extra inputs are not permitted (here)"),
        ({"b": float("inf")}, "--b inf: input should be a finite number (here)"),
        ({"b": "x", "a": 3}, "--b x: input should be a valid integer"),
    ],
)
def test_mistakes_name_flag_value_and_source(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(Toy, values, "here")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_run_folder_is_save_dir_experiment_expid() -> None:
    config = validate(RunConfig, {"experiment": "e", "expid": "x", "save_dir": "~/r"}, "here")
    assert config.run_path == Path.home() / "r" / "e" / "x"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"expid": "x"}, "--experiment is missing; give the run a name, as in --experiment demo"),
        ({"experiment": "e"}, "--expid is missing"),
        ({"experiment": "e", "expid": "x", "save_dir": "gs://B/p"}, "--save-dir gs://B/p: not gs"),
    ],
)
def test_a_run_needs_a_name(values: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        _ = validate(RunConfig, values, "here").run_path
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a\\b", "a\0b", "/"])
def test_names_stay_inside_their_folder(name: str) -> None:
    for flag in ("experiment", "expid"):
        with pytest.raises(UserError, match=f"--{flag} .*: must be part of a file name"):
            validate(RunConfig, {flag: name}, "here")


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert select_device("auto").type == select_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="--device cuda: no CUDA GPU is visible; use --device cpu"):
        select_device("cuda")
