"""One command line from a schema, with defaults from a file; every mistake is one line."""

import re
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from Utils.cli import parse
from Utils.config import Integers, Names, RunConfig, validate
from Utils.errors import UserError


class Toy(RunConfig):
    """Plays with toys."""

    train_speed: float = Field(0.5, gt=0, le=9, description="How fast it goes.")
    cars: int = Field(3, ge=1, description="Behind the engine.")
    gauge: Literal["wide", "narrow"] = Field("wide", description="Of the track.")
    whistle: bool = Field(True, description="At every bend.")
    load: float | None = Field(None, ge=0, description="In kilogrammes.")
    stops: Names = Field(("home",), description="Where it stops.")
    hours: Integers = Field((), description="When it leaves.")
    bell: str | None = Field(None, description="Its tone.", json_schema_extra={"bare": "c"})


def write(folder: Path, text: str) -> str:
    (folder / "toy.yaml").write_text(text)
    return str(folder / "toy.yaml")


def test_flags_are_the_fields_with_hyphens() -> None:
    toy = parse(Toy, ["--train-speed", "2", "--no-whistle", "--load=1e3", "--hours", "1,22"])
    assert (toy.train_speed, toy.whistle, toy.load, toy.hours) == (2.0, False, 1000.0, (1, 22))
    toy = parse(Toy, ["--cars", "7", "--gauge", "narrow", "--whistle", "--stops", "a,b,"])
    assert (toy.cars, toy.gauge, toy.whistle, toy.stops) == (7, "narrow", True, ("a", "b"))


@pytest.mark.parametrize(
    ("arguments", "bell"),
    [("", None), ("--bell", "c"), ("--bell --cars 2", "c"), ("--bell d", "d"), ("--bell=e", "e")],
)
def test_a_value_that_may_be_left_out(arguments: str, bell: str | None) -> None:
    assert parse(Toy, arguments.split()).bell == bell


def test_defaults() -> None:
    toy = parse(Toy, [])
    assert toy == validate(Toy, {}, "here")
    assert (toy.train_speed, toy.load, toy.stops, toy.hours) == (0.5, None, ("home",), ())


@pytest.mark.parametrize("style", ["--config {}", "--config={}"])
def test_flags_override_the_file_and_the_file_overrides_defaults(
    tmp_path: Path, style: str
) -> None:
    file = write(tmp_path, "train-speed: 2\nsave_dir: r\ncars: 5\nstops: [a, b]\nhours: 7,8\n")
    toy = parse(Toy, [*style.format(file).split(), "--cars", "9"])
    assert (toy.train_speed, toy.save_dir, toy.cars) == (2.0, "r", 9)
    assert (toy.stops, toy.hours) == (("a", "b"), (7, 8))
    assert toy.gauge == "wide"


def test_flags_may_come_before_the_file(tmp_path: Path) -> None:
    assert parse(Toy, ["--cars", "9", "--config", write(tmp_path, "cars: 5")]).cars == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--train-sped 2",
            r"unknown flag '--train-sped'; did you mean '--train-speed'\? see --help",
        ),
        ("--cars many", r"^--cars many: input should be a valid integer.* \(command line\)$"),
        ("--cars 2.5", r"^--cars 2\.5: input should be a valid integer"),
        ("--cars 0", r"^--cars 0: input should be greater than or equal to 1"),
        ("--train-speed nan", r"^--train-speed nan: input should be a finite number"),
        ("--train-speed 10", r"^--train-speed 10\S*: input should be less than or equal to 9"),
        ("--gauge medium", r"--gauge"),
        ("--cars", r"--cars"),
        ("--hours 1,noon", r"^--hours noon: input should be a valid integer"),
        ("toy", r"toy"),
        ("--experiment a/b", r"^--experiment a/b: must be part of a file name, without '/'"),
        ("--experiment ..", r"^--experiment \.\.: must be part of a file name"),
        ("--config", r"^--config is missing its file"),
        ("--config absent.yaml", r"^--config absent\.yaml: cannot be read"),
        ("--cars 0 --train-speed 0", r"^--train-speed 0.*; --cars 0.*"),
    ],
)
def test_mistakes_on_the_command_line(arguments: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(Toy, arguments.split())
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("carrs: 5", r"unknown key 'carrs'; did you mean 'cars'\?"),
        ("cars: many", r"--cars many: input should be a valid integer.*toy\.yaml\)"),
        ("cars: 0", r"--cars 0: input should be greater"),
        ("gauge: medium", r"--gauge medium: input should be 'wide' or 'narrow'"),
        ("whistle: loud", r"--whistle loud: input should be a valid boolean"),
        ("- cars", r"expected 'flag: value' lines, found list"),
        ("", r"is empty; write 'flag: value' lines"),
        ("cars: [", r"not YAML"),
        ("experiment: a/b", r"--experiment a/b: must be part of a file name"),
        ("1: 2", r"unknown key '1'"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        parse(Toy, ["--config", file])
    assert file in str(caught.value)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot be read|not YAML"):
        parse(Toy, ["--config", str(tmp_path / "toy.yaml")])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_describes_every_flag(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Toy, ["--cars", "2", flag], epilog="toys:\n  bear  brown")
    assert not caught.value.code
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Plays with toys." in text
    assert "--config FILE" in text
    assert "toys: bear brown" in text
    for name, field in Toy.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert str(field.description) in text
