"""From a grid of train.py's flags to a manifest of runs, each with an id made of its content.

Two runs have the same id if and only if train.py would do the same in both. It is the hash of
the flags that say anything: their order does not matter, nor does one that is left at what it
would be anyway, nor which values its neighbours in the grid have.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from scripts.sweeps import expressions
from Training.config import TrainConfig
from Training.folder import WITHOUT_EFFECT
from Utils.config import validate
from Utils.errors import UserError
from Utils.registry import unknown
from Utils.rundir import file_name
from Utils.storage import read_json, write_json

Grid = Mapping[str, Sequence[Any]]
"""The values of each flag, by field name; more than one value makes it an axis."""

REFUSED = {
    "expid": "the sweep names its runs",
    "overwrite": "delete the folders of the runs that shall begin anew",
    "list_laws": "use train.py for it",
    "tpu": "runs of a sweep train on one device each",
}
"""Flags of train.py that make no sense for many runs, each with the reason."""

_SHARED = ("experiment", "save_dir")

AXES = tuple(name for name in TrainConfig.model_fields if name not in {*REFUSED, *_SHARED})
"""What can be varied or fixed."""

_DIGITS_OF_THE_ID = 8


_FILE = "manifest.json"


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        expid: its name: what varies, then the hash of its content.
        flags: what was asked for, by field name, as JSON types.
    """

    expid: str
    flags: dict[str, Any]

    @property
    def digest(self) -> str:
        """The hash of its content."""
        return self.expid[-_DIGITS_OF_THE_ID:]

    def arguments(self) -> list[str]:
        """The flags as one types them behind ``train.py``."""
        return [word for name, value in self.flags.items() for word in _typed(name, value)]


def _typed(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{flag}"]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return [f"--{flag}", text]


def manifest(grid: Grid, experiment: Path) -> list[Run]:
    """The runs of a grid, the last axis varying fastest; what is asked for twice is one run.

    Args:
        grid: the values of each flag; text stands for arithmetic where a flag is a number.
        experiment: the folder of the runs; one that is there under another name keeps it.

    Raises:
        UserError: listing everything that is wrong, one mistake per line.
    """
    axes = _expanded(grid)
    shown = [n for n, values in axes.items() if len(values) > 1 or _reads_others(n, values[0])]
    runs: dict[str, Run] = {}
    mistakes: dict[str, list[str]] = {}
    present = {path.name[-_DIGITS_OF_THE_ID:]: path.name for path in experiment.glob("*-*")}
    for chosen in itertools.product(*axes.values()):
        point = dict(zip(axes, chosen, strict=True))
        try:
            run = _run(point, shown)
        except UserError as error:
            label = ",".join(f"{name}={_as_typed(point[name])}" for name in shown) or "the run"
            mistakes.setdefault(str(error), []).append(label)
        else:
            known = Run(present.get(run.digest, run.expid), run.flags)
            runs.setdefault(run.digest, known)
    if mistakes:
        raise UserError("\n  ".join(_summary(mistakes)))
    return list(runs.values())


def save_manifest(folder: Path, runs: Sequence[Run], stages: Mapping[str, Sequence[str]]) -> None:
    """Keep a sweep's runs, and what is to be done for them, for commands without a grid."""
    content = {"runs": {run.expid: run.flags for run in runs}, "stages": stages}
    write_json(folder / _FILE, content)


def load_manifest(folder: Path) -> tuple[list[Run], dict[str, tuple[str, ...]]]:
    """What :func:`save_manifest` kept; raises :class:`UserError` if there is nothing."""
    missing = "this experiment has no sweep yet; say what to vary, as in --lr 0.1 0.2"
    content = read_json(folder / _FILE, missing, "give the sweep's flags once more")
    runs = [Run(expid, flags) for expid, flags in content["runs"].items()]
    runs.sort(key=lambda run: _by_numbers(run.expid))
    return runs, {stage: tuple(flags) for stage, flags in content["stages"].items()}


def _by_numbers(expid: str) -> list[str | float]:
    """Orders ``width=64`` before ``width=128``: texts and numbers in turn."""
    parts: list[str | float] = [*re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", expid)]
    parts[1::2] = map(float, parts[1::2])
    return parts


def _summary(mistakes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if len(mistakes) > 1:
        yield f"{len(mistakes)} mistakes, nothing was started:"
    for message, where in mistakes.items():
        others = f" and {len(where) - 1} more" if len(where) > 1 else ""
        yield f"{message}; for {where[0]}{others}"


def check_names(names: Iterable[str], source: str) -> None:
    """Raise :class:`UserError` for what is no flag that a sweep can set."""
    for name in names:
        if name in REFUSED:
            raise UserError(f"--{name.replace('_', '-')} ({source}): {REFUSED[name]}; leave it out")
        if name not in AXES:
            flags = [axis.replace("_", "-") for axis in AXES]
            shown = f"--{name.replace('_', '-')}"
            message = unknown("flag", shown, flags, prefix="--", listing="see train.py --help")
            raise UserError(f"{message} ({source})")


def _kinds(name: str) -> set[Any]:
    annotation = TrainConfig.model_fields[name].annotation
    is_union = get_origin(annotation) in {Union, UnionType}
    return set(get_args(annotation)) if is_union else {annotation}


def _is_arithmetic(name: str, value: Any) -> bool:
    """Whether a value is text that has to be worked out, as the flag is a number."""
    kinds = _kinds(name)
    words = {word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)}
    return isinstance(value, str) and bool(kinds & {int, float}) and value not in words


def _expanded(grid: Grid) -> dict[str, list[Any]]:
    """The values of each flag, ranges written out; text that is no arithmetic is refused."""
    axes: dict[str, list[Any]] = {name: [] for name in grid}
    mistakes: dict[str, list[str]] = {}
    for name, value in ((name, value) for name, values in grid.items() for value in values):
        if not _is_arithmetic(name, value):
            axes[name].append(value)
        elif NoneType in _kinds(name) and value.lower() == "none":
            axes[name].append(None)
        else:
            try:
                axes[name] += [e for e in expressions.ranges(value) if expressions.parse(e)]
            except UserError as error:
                mistakes.setdefault(str(error), []).append(f"--{name.replace('_', '-')}")
    for name, values in grid.items():
        if not values:
            mistakes["no value; leave it out or give some"] = [f"--{name.replace('_', '-')}"]
    if mistakes:
        raise UserError("\n  ".join(_summary(mistakes)))
    return axes


def _reads_others(name: str, value: Any) -> bool:
    return _is_arithmetic(name, value) and any(expressions.names(expressions.parse(value)))


def _run(point: Mapping[str, Any], shown: Sequence[str]) -> Run:
    values = {k: v for k, v in _numbers(point).items() if v is not None}
    config = validate(TrainConfig, values, "sweep")
    flat = config.flat()
    content = {
        name: flat[name]
        for name in sorted(values)
        if name not in WITHOUT_EFFECT and not _goes_without_saying(name, values, flat)
    }
    if _effective(validate(TrainConfig, content, "sweep")) != _effective(config):
        content = {name: flat[name] for name in sorted(values) if name not in WITHOUT_EFFECT}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    label = ",".join(f"{name}={_brief(flat[name])}" for name in shown if flat[name] is not None)
    prefix = file_name(label) or "run"
    flags = {name: flat[name] for name in values if flat[name] is not None}
    return Run(f"{prefix}-{digest[:_DIGITS_OF_THE_ID]}", flags)


def _effective(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in config.flat().items() if name not in WITHOUT_EFFECT}


def _goes_without_saying(name: str, values: Mapping[str, Any], flat: Mapping[str, Any]) -> bool:
    """Whether a flag is what it would be if it were left out."""
    rest = {other: value for other, value in values.items() if other != name}
    try:
        return bool(validate(TrainConfig, rest, "sweep").flat()[name] == flat[name])
    except UserError:  # it cannot be left out
        return False


def _as_typed(value: Any) -> str:
    """Of a point, without the parentheses that a range has put around its numbers."""
    return re.sub(r"^\((-?\d+)\)$", r"\1", str(value))


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.rpartition("/")[2]  # of a path the file's name


def _numbers(point: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a run, its expressions worked out in the order in which they need it."""
    done = {name: value for name, value in point.items() if not _is_arithmetic(name, value)}
    waiting = {n: expressions.parse(v) for n, v in point.items() if n not in done}
    while waiting:
        ready = [n for n, e in waiting.items() if not set(expressions.names(e)) - done.keys()]
        if not ready:
            raise UserError(_why_not(waiting, point))
        for name in ready:
            expression = waiting.pop(name)
            for other in expressions.names(expression):
                if type(done[other]) not in {int, float}:
                    raise UserError(_about(name, point, f"{other} is {done[other]}, not a number"))
            try:
                done[name] = expressions.evaluate(expression, done)
            except UserError as error:
                raise UserError(f"--{name.replace('_', '-')}: {error}") from None
    return {name: done[name] for name in point}


def _why_not(waiting: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    for name, expression in waiting.items():
        for other in expressions.names(expression):
            if other not in point:
                how = "set it, too" if other in AXES else "it is no flag of train.py"
                return _about(name, point, f"{other} has no value in this sweep; {how}")
    name = next(iter(waiting))
    return _about(name, point, f"it depends on itself, by way of {', '.join(waiting)}")


def _about(name: str, point: Mapping[str, Any], message: str) -> str:
    return f"--{name.replace('_', '-')} '{point[name]}': {message}"
