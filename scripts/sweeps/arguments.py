"""The sweep's own flags, and those of train.py with all their values, told apart."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.sweeps.manifest import Grid, check_names
from Training.config import TrainConfig
from Utils.config import Config
from Utils.errors import UserError
from Utils.mappings import read_mapping


def read_arguments(schema: type[Config], argv: Sequence[str]) -> tuple[list[str], Grid]:
    """What the command line, and the file that ``--config`` names, say.

    Args:
        schema: of the sweep's own flags; every other is train.py's.
        argv: the arguments. A flag of train.py may have several; ``--flag`` and ``--no-flag``
            alone are true and false.

    Returns:
        the sweep's own arguments, those of the file first where the command line has no such,
        and the values of train.py's flags by field name.

    Raises:
        UserError: an unknown flag, an argument that belongs to none, or an unreadable file.
    """
    own: dict[str, list[str]] = {}
    grid: dict[str, list[Any]] = {}
    file = None
    for flag, values in _grouped(schema, argv):
        name = flag[2:].replace("-", "_")
        if name == "config":
            if len(values) != 1:
                raise UserError("--config is missing its file; give one YAML file")
            file = Path(values[0])
        elif flag in {"--help", "-h"} or name.removeprefix("no_") in schema.model_fields:
            own[name.removeprefix("no_")] = _joined(flag, values)
        else:
            name, given = _axis(name, values)
            grid[name] = given
    check_names(grid, "command line")
    if file is not None:
        content = _read(file)
        for name in content.keys() & schema.model_fields.keys():
            own.setdefault(name, _typed(name, content[name]))
        axes = {name: values for name, values in content.items() if name not in own}
        check_names(axes, str(file))
        grid = {**{name: _as_list(value) for name, value in axes.items()}, **grid}
    return [word for words in own.values() for word in words], grid


def _read(file: Path) -> dict[str, Any]:
    content = read_mapping(file, f"--config {file}", "flag: values")
    return {name.replace("-", "_"): value for name, value in content.items()}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _joined(flag: str, values: list[str]) -> list[str]:
    """As one word where there is one value, which may look like a flag."""
    return [f"{flag}={values[0]}"] if len(values) == 1 else [flag, *values]


def _typed(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{flag}"]
    return [f"--{flag}={','.join(map(str, _as_list(value)))}"]


def _grouped(schema: type[Config], argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the arguments up to the next one."""
    groups: list[tuple[str, list[str]]] = []
    takes_one = False  # whatever it looks like, as the flags of a stage do
    for argument in argv:
        if takes_one:
            groups[-1][1].append(argument)
            takes_one = False
        elif argument.startswith("--") or argument == "-h":
            flag, equals, value = argument.partition("=")
            groups.append((flag, [value] if equals else []))
            field = schema.model_fields.get(flag[2:].replace("-", "_"))
            takes_one = not equals and field is not None and field.annotation is str
        elif groups:
            groups[-1][1].append(argument)
        else:
            raise UserError(f"unexpected argument '{argument}'; flags begin with --, see --help")
    yield from groups


def _is_switch(name: str) -> bool:
    field = TrainConfig.model_fields.get(name)
    return field is not None and field.annotation is bool


def _axis(name: str, values: list[str]) -> tuple[str, list[Any]]:
    """A flag of train.py, as a field with its values."""
    if not values and _is_switch(name):
        return name, [True]
    if not values and _is_switch(name.removeprefix("no_")):
        return name.removeprefix("no_"), [False]
    return name, list(values)
