"""The base of every configuration, and the types its fields use.

A configuration is a frozen pydantic model: the schema of the command line, of ``--config``
files and of ``hyperparameters.json``. Each stage's model lives beside the code that it
configures; :mod:`Utils.cli` makes the command line from it.
"""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import Field
from tyro.constructors import PrimitiveConstructorSpec

from Utils.buckets.places import folder_of
from Utils.errors import UserError


def _split(text: Any) -> Any:
    return (
        [part.strip() for part in text.split(",") if part.strip()]
        if isinstance(text, str)
        else text
    )


def _comma_list(of: str) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads ``a,b,c`` as one argument (pydantic checks the parts)."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{of},{of},…",
        instance_from_str=lambda args: tuple(_split(args[0])),
        is_instance=lambda value: isinstance(value, (tuple, list)),
        str_from_instance=lambda value: [",".join(map(str, value)) or "none"],
    )


def as_typed(metavar: str) -> PrimitiveConstructorSpec[Any]:
    """How tyro hands an argument over as text, which pydantic checks.

    Args:
        metavar: what ``--help`` calls it.
    """
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda args: args[0],
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


Names = Annotated[tuple[str, ...], pydantic.BeforeValidator(_split), _comma_list("NAME")]
"""A comma-separated list of names: ``scale,rescale``."""

Integers = Annotated[tuple[int, ...], pydantic.BeforeValidator(_split), _comma_list("INT")]
"""A comma-separated list of integers: ``10,20``."""


def _path_part(value: str) -> str:
    if value in {".", ".."} or "/" in value or "\\" in value or "\0" in value:
        raise ValueError("must be part of a file name, without '/'")
    return value


PathPart = Annotated[str, pydantic.AfterValidator(_path_part)]
"""Text that becomes the name of a file or folder, or a part of one."""


class Config(pydantic.BaseModel):
    """Base of all configurations: immutable, and unknown keys are refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def flat(self) -> dict[str, Any]:
        """The configuration as JSON types, sorted by key."""
        return dict(sorted(self.model_dump(mode="json").items()))


def with_defaults(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Values as the user gave them, and a registry entry's own defaults for the unset ones.

    Args:
        values: by field name; ``None`` where nothing was given.
        options: the fields that the entry reads, with its defaults.
    """
    return {**options, **{name: value for name, value in values.items() if value is not None}}


def refuse_unread(
    config: Config, options: Iterable[str], reads: Container[str], reader: str
) -> None:
    """Refuse options that would do nothing; an unset one's zero asks for nothing.

    Args:
        config: validated field by field.
        options: the fields that are looked at.
        reads: those that are read.
        reader: by what, as the user typed it: ``--optimizer adam``.

    Raises:
        ValueError: naming the flags that were given and are not read.
    """
    fields = type(config).model_fields
    refused = [
        f"--{'no-' if fields[name].default is True else ''}{name.replace('_', '-')}"
        for name in options
        if name not in reads
        and (value := getattr(config, name)) != fields[name].default
        and (value or fields[name].default)
    ]
    if refused:
        raise ValueError(f"{', '.join(refused)}: not read by {reader}; leave it out")


C = TypeVar("C", bound=Config)


class RunConfig(Config):
    """The flags every stage shares: which run it works on."""

    experiment: PathPart = Field("", description="Name of the experiment, a set of runs.")
    expid: PathPart = Field("", description="Name of the run within its experiment.")
    save_dir: str = Field(
        "results", description="Folder that holds the experiments, or gs://bucket/prefix."
    )
    overwrite: bool = Field(False, description="Replace what this stage wrote before.")

    @property
    def run_path(self) -> Path:
        """``<save-dir>/<experiment>/<expid>``, or the folder in which it is worked on.

        Raises:
            UserError: a name is missing, or is no bucket's.
        """
        path = self.experiment_path
        if not self.expid:
            raise UserError("--expid is missing; give the run a name, as in --expid demo")
        return path / self.expid

    @property
    def experiment_path(self) -> Path:
        """``<save-dir>/<experiment>``, likewise."""
        if not self.experiment:
            raise UserError("--experiment is missing; give the run a name, as in --experiment demo")
        return folder_of(self.save_dir) / self.experiment


def validate(schema: type[C], values: dict[str, Any], source: str) -> C:
    """``schema`` filled with ``values``, every mistake reported as one line.

    Args:
        schema: the configuration's class.
        values: by field name; lists and numbers may still be text.
        source: where the values came from, for the message ("command line").

    Raises:
        UserError: naming the flag, the value seen and what was expected.
    """
    try:
        return schema(**values)
    except pydantic.ValidationError as error:
        raise UserError("; ".join(_explain(e) for e in error.errors()) + f" ({source})") from None


def flag_of(field: str) -> str:
    """The flag of a field; "assert_" is a field because "assert" is a word of Python."""
    return "--" + field.removesuffix("_").replace("_", "-")


def _explain(error: Any) -> str:
    message: str = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    flag = flag_of(str(error["loc"][0]))
    seen = error["input"]
    typed = ",".join(map(str, seen)) if isinstance(seen, list | tuple) else seen
    return f"{flag} {typed}: {message[:1].lower()}{message[1:]}"
