"""The hyper-parameters of runs: which differ from their defaults, and between runs."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from Models.registry import find_model
from Training.config import TrainConfig
from Training.folder import WITHOUT_EFFECT
from Training.registry import OPTIMIZERS
from Utils.errors import UserError

GROUPS = ("task", "provenance")
"""What ``hyperparameters.json`` holds besides flags."""
PHASES = "phases"
"""The one fact of a task that is no number or text: a list, which has a table of its own."""


@dataclass(frozen=True)
class Flag:
    """One hyper-parameter.

    Attributes:
        name: as typed, ``--lr``.
        value: as typed; a dash where it is unset.
        default: what it is if it is left out, for the run's model and optimizer.
    """

    name: str
    value: str
    default: str

    @property
    def changed(self) -> bool:
        return self.value != self.default


def flags(hyperparameters: Mapping[str, Any]) -> list[Flag]:
    """The flags that shape a run, those that differ from their defaults first."""
    defaults = _defaults(hyperparameters)
    found = [
        Flag(_typed(name), text(value), text(defaults.get(name)))
        for name, value in sorted(hyperparameters.items())
        if name not in WITHOUT_EFFECT and name not in GROUPS
    ]
    return sorted(found, key=lambda flag: not flag.changed)


def differing(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The flags in which runs differ, each with the value in every run.

    A flag that differs only as the models' or optimizers' own defaults do is left out: it
    follows from --model and --optimizer.
    """
    names = sorted({name for run in runs for name in run} - WITHOUT_EFFECT - {*GROUPS})
    defaults = [_defaults(run) for run in runs]
    found = {}
    for name in names:
        values = [text(run.get(name)) for run in runs]
        usual = [text(default.get(name)) for default in defaults]
        if len(set(values)) > 1 and values != usual:
            found[_typed(name)] = values
    return found


def facts(group: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A group of ``hyperparameters.json`` as pairs of text, groups in it flattened."""
    pairs: list[tuple[str, str]] = []
    for name, value in group.items():
        if name == PHASES:
            continue
        if isinstance(value, Mapping):
            pairs += [(f"{name}: {key}", part) for key, part in facts(value)]
        else:
            pairs.append((name.replace("_", " "), text(value)))
    return pairs


def phase_table(task: Mapping[str, Any]) -> list[list[str]]:
    """The phases of an annealed run in text, the first row their heads; empty for one phase."""
    phases: list[Mapping[str, Any]] = task.get(PHASES, [])
    if len(phases) < 2:
        return []
    heads = ["step", "epoch", *(name for name in phases[0] if name not in {"step", "epoch"})]
    head = [name.replace("_", " ") for name in heads]
    return [head, *([text(phase.get(name)) for name in heads] for phase in phases)]


def text(value: Any) -> str:
    """A value of ``hyperparameters.json`` as one types it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None or value == "" else str(value)


def _typed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _defaults(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """What every flag is when left out; some defaults are the model's or the optimizer's own."""
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in TrainConfig.model_fields.items()
    }
    chosen = {name: str(hyperparameters.get(name, default)) for name, default in defaults.items()}
    if chosen["optimizer"] in OPTIMIZERS:
        defaults |= OPTIMIZERS[chosen["optimizer"]].options
    with suppress(UserError, KeyError):  # the user's own model, or one of another version
        defaults |= find_model(chosen["model_class"], chosen["model"]).options
    return defaults
