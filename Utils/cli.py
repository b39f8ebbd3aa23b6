"""One flat command line from a configuration: ``--config`` supplies defaults, flags override."""

import contextlib
import dataclasses
import inspect
import io
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import tyro
from pydantic import create_model
from pydantic.fields import FieldInfo
from tyro.constructors import PrimitiveConstructorSpec

from Utils.config import Config, as_typed, flag_of, validate
from Utils.errors import UserError
from Utils.mappings import read_mapping
from Utils.registry import unknown

C = TypeVar("C", bound=Config)


def parse(schema: type[C], argv: list[str] | None = None, epilog: str = "") -> C:
    """The configuration that the command line asks for.

    Args:
        schema: the configuration's class; its docstring is the help's first paragraph.
        argv: the arguments, ``sys.argv[1:]`` if not given.
        epilog: text for the end of ``--help``.

    Raises:
        UserError: unknown flags or keys, values of a wrong type or out of bounds.
        SystemExit: with 0, after ``--help`` was printed.
    """
    argv = sys.argv[1:] if argv is None else argv
    argv, defaults = _config_file(schema, _with_bare_flags(schema, argv))
    flags = _flags(schema, defaults)
    if "--help" in argv or "-h" in argv:
        _print_help(schema, flags, epilog)
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured), contextlib.redirect_stdout(captured):
            parsed: Any = tyro.cli(flags, args=argv)
    except SystemExit:
        raise UserError(_one_line(captured.getvalue(), flags)) from None
    return validate(schema, dataclasses.asdict(parsed), "command line")


def _with_bare_flags(schema: type[Config], argv: list[str]) -> list[str]:
    """Give flags whose value may be left out the one that this means, their ``bare`` one."""
    extras = {
        "--" + name.replace("_", "-"): info.json_schema_extra
        for name, info in schema.model_fields.items()
        if isinstance(info.json_schema_extra, dict)
    }
    filled: list[str] = []
    for argument, following in pairwise([*argv, "--"]):
        filled.append(argument)
        if argument in extras and following.startswith("--"):
            filled.append(str(extras[argument]["bare"]))
    return filled


def _flags(schema: type[Config], defaults: dict[str, Any]) -> type:
    """A plain dataclass with the schema's fields: tyro reads it, pydantic checks it after."""
    fields: list[Any] = []
    for name, info in schema.model_fields.items():
        default = defaults.get(name, info.get_default(call_default_factory=True))
        hint = "(optional)" if default is None else None  # None: tyro's own, "(default: …)"
        argument = tyro.conf.arg(
            name=flag_of(name).removeprefix("--"),
            help=info.description,
            help_behavior_hint=hint,
        )
        kind: Any = _type(info)
        annotated = Annotated[kind, *_as_text(info), argument]
        fields.append((name, annotated, dataclasses.field(default=default)))
    return dataclasses.make_dataclass(schema.__name__, fields)


def _as_text(info: FieldInfo) -> list[PrimitiveConstructorSpec[Any]]:
    """Have tyro hand values and optional choices over as typed: pydantic checks them better."""
    annotation: Any = info.annotation
    kinds: list[Any] = [kind for kind in get_args(annotation) if kind is not NoneType]
    names: dict[Any, str] = {int: "INT", float: "FLOAT", str: "STR"}
    kind = kinds[0] if len(kinds) == 1 else annotation
    metavar = names.get(kind)
    if get_origin(kind) is Literal and NoneType in get_args(annotation):  # no choice "None"
        metavar = f"{{{','.join(get_args(kind))}}}"
    if metavar is None:
        return []
    if isinstance(info.json_schema_extra, dict):  # the value may be left out
        metavar = f"[{metavar}]"
    return [as_typed(metavar)]


def _print_help(schema: type[Config], flags: type, epilog: str) -> None:
    description = inspect.cleandoc(schema.__doc__ or "")
    config_help = "--config FILE supplies defaults from a YAML file; flags override it."
    text = f"{description}\n\n{config_help}\n\n{epilog}".strip()
    tyro.cli(flags, prog=_program(), args=["--help"], description=text)


def _program() -> str:
    """How the user starts this program."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    path = Path(sys.argv[0])
    return (
        f"python -m {spec.name}" if spec else f"python {path.name if path.is_absolute() else path}"
    )


def _config_file(schema: type[Config], argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take ``--config FILE`` out of ``argv`` and read it."""
    rest, path = [], None
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            path = next(arguments, None)
            if path is None:
                raise UserError("--config is missing its file; give a YAML file")
        elif argument.startswith("--config="):
            path = argument.removeprefix("--config=")
        else:
            rest.append(argument)
    return rest, read_config_file(schema, Path(path)) if path else {}


def read_config_file(schema: type[Config], path: Path) -> dict[str, Any]:
    """The values in a YAML file whose keys are the long flags, with ``-`` or ``_``.

    Args:
        schema: the configuration whose fields may be set.
        path: the file.

    Raises:
        UserError: if it cannot be read, is no mapping, or has unknown keys or bad values.
    """
    content = read_mapping(path, f"--config {path}", "flag: value")
    values = {key.replace("-", "_"): value for key, value in content.items()}
    for key in values:
        if key not in schema.model_fields:
            raise UserError(f"--config {path}: {unknown('key', key, schema.model_fields)}")
    # Each value on its own: what fits together is known only when the flags have been read.
    fields: dict[str, Any] = {key: (_type(schema.model_fields[key]), ...) for key in values}
    single = create_model(schema.__name__, __base__=Config, **fields)
    return dict(validate(single, values, str(path)))


def _type(info: FieldInfo) -> Any:
    kind: Any = info.annotation
    for extra in info.metadata:
        kind = Annotated[kind, extra]
    return kind


def _one_line(box: str, flags: type) -> str:
    """The message in tyro's box as one line; unknown flags get a suggestion."""
    parts = [" ".join(part.split()) for part in re.split(r"[-─]{8,}", box.replace("│", " "))]
    message = next((part for part in parts[1:] if part), parts[0])
    unrecognized = re.match(r"Unrecognized options: ([^\s,]+)", message)
    if unrecognized:
        if not unrecognized[1].startswith("-"):
            return f"unexpected argument '{unrecognized[1]}'; flags begin with --, see --help"
        names = [f.name.replace("_", "-") for f in dataclasses.fields(flags)]
        return unknown("flag", unrecognized[1], names, prefix="--", listing="see --help")
    return f"{message.rstrip('. ')}; see --help"
