"""What train.py makes of its run folder: a new run, the rest of an old one, or a refusal."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from Training.config import TrainConfig
from Utils.config import validate
from Utils.errors import UserError, storage_error
from Utils.rundir import RunFolder

WITHOUT_EFFECT = frozenset(
    {
        "experiment",
        "expid",
        "save_dir",
        "overwrite",
        "data_dir",
        "model_dir",
        "workers",
        "device",
        "tpu",
        "list_laws",
        "explain",
    }
)
"""Flags that may differ between a command and its continuation."""


def check_unchanged(run: RunFolder, config: TrainConfig) -> None:
    """Refuse to continue a run with another configuration.

    Raises:
        UserError: naming every flag that differs, with both values; or there are checkpoints
            without ``hyperparameters.json``.
    """
    if not run.hyperparameters.exists():
        if run.checkpoint_steps():
            raise UserError(
                f"{run.path} has checkpoints but no hyperparameters.json; "
                "choose another --expid, or start anew with --overwrite"
            )
        return
    # A flag that did not exist when the run began had no effect then, which is its default's.
    defaults = validate(TrainConfig, {}, "defaults").flat()
    saved, now = {**defaults, **run.read_hyperparameters()}, config.flat()
    differences = [
        f"--{key.replace('_', '-')} was {_brief(saved.get(key))} and is now {_brief(now[key])}"
        for key in now
        if key not in WITHOUT_EFFECT and saved.get(key) != now[key]
    ]
    if differences:
        raise UserError(
            f"{run.path} was trained with other flags: {'; '.join(differences)}; "
            "use the same ones, choose another --expid, or start anew with --overwrite"
        )


def _brief(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return "unset" if text in {"", "None"} else text


def clear(run: RunFolder) -> None:
    """Delete what train.py wrote, and the features and caches of the run that is no more.

    Figures are kept. ``hyperparameters.json`` goes last, so that a killed deletion never
    leaves checkpoints that nothing describes.

    Raises:
        UserError: an extraction or caching of the run is going on, or a file cannot be deleted.
    """
    with run.lock("extract"), run.lock("cache"):
        try:
            run.remove_kernel_parts()
            for path in _files_of(run):
                run.remove(path)
        except OSError as error:
            raise storage_error(error, run.path) from error


def _files_of(run: RunFolder) -> Iterator[Path]:
    yield from map(run.checkpoint, run.checkpoint_steps())
    yield from map(run.features, run.feature_steps())
    yield run.probe
    yield from run.files("cache/*.h5")
    yield from run.files("logs/events.out.tfevents.*")
    yield run.journal
    yield run.logs / "run.log"
    yield run.symmetries
    yield run.kernels
    yield run.hyperparameters


def describe(config: TrainConfig, device: str, task: dict[str, Any]) -> dict[str, Any]:
    """The content of ``hyperparameters.json``: the flat configuration and two groups.

    Args:
        config: the run's configuration.
        device: what it really runs on.
        task: what follows from the data: shapes, numbers of classes and examples.
    """
    return {
        **config.flat(),
        "task": task,
        "provenance": {
            "command": shlex.join(sys.argv),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": device,
            "commit": _commit(),
            "versions": dict(_versions()),
        },
    }


@cache
def _versions() -> Mapping[str, str]:
    libraries = ("torch", "torchvision", "numpy", "h5py")
    known = {name: metadata.version(name) for name in libraries}
    return {"python": platform.python_version(), **known}


@cache
def _commit() -> str | None:
    """The commit of this process's code, with ``+`` if there are changes; ``None`` outside git."""
    folder = Path(__file__).parent
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
