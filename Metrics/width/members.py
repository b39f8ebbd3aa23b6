"""The runs of an experiment by what tells them apart: width, seed, and everything else."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import log
from typing import Any

from Models.config import INFINITE
from Training.config import TrainConfig
from Training.folder import WITHOUT_EFFECT
from Utils.errors import UserError
from Utils.rundir import RunFolder

_NAMES = {
    "width",
    "seed",
    "init_seed",
    "experiment",
    "expid",
    "save_dir",
    "provenance",
    "task",
    "overwrite",
}
_SAVED = {"save_at", "save_freq", "save_buffers", "observe_freq", "evaluate"}
"""What is seen of a training, and does not change it."""

_OF_LAWS = {"laws", "balance", "dtype"}
"""Flags in which the limit may differ from the networks: what is not looked for, and rounding."""

_NO_AXIS = _NAMES | WITHOUT_EFFECT | _SAVED
"""Flags that tell no two trainings of an experiment apart, or that are not an axis of their own."""


@dataclass(frozen=True)
class Member:
    """A run of an experiment, of finite or infinite width.

    Attributes:
        run: its folder.
        hyperparameters: its own.
        steps: that have features, ascending; the first is 0. None, if it diverged before any.
        diverged: the step whose update led to no finite loss; ``None`` if none did.
    """

    run: RunFolder
    hyperparameters: Mapping[str, Any]
    steps: tuple[int, ...]
    diverged: int | None = None

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def is_infinite(self) -> bool:
        """Whether it is of the limit, which has no weights."""
        return bool(self.hyperparameters["width"] == INFINITE)

    @property
    def width(self) -> int:
        """Of a network with weights."""
        return int(self.hyperparameters["width"])

    @property
    def seed(self) -> int:
        """Of its initial weights."""
        own = self.flag("init_seed")
        return int(self.hyperparameters["seed"] if own is None else own)

    def flag(self, name: str) -> Any:
        """What the run was trained with; the default for a flag that it does not know."""
        fields = TrainConfig.model_fields
        default = fields[name].default if name in fields else None
        return self.hyperparameters.get(name, default)


@dataclass(frozen=True)
class Group:
    """Runs that differ in width and seed alone, and in what follows from the width.

    Attributes:
        label: what tells the group from the others, as in "lr=0.1 param=mup"; "all" if nothing.
        members: at least one, of finite widths.
        limits: those of infinite width with the same flags.
        lr_exponent: e, where the runs' --lr goes as n^e; ``None`` where it is no power of n.
    """

    label: str
    members: tuple[Member, ...]
    lr_exponent: Fraction | None
    limits: tuple[Member, ...] = ()

    @property
    def runs(self) -> tuple[Member, ...]:
        """All of them."""
        return self.members + self.limits


def read_members(runs: Sequence[RunFolder]) -> tuple[list[Member], dict[str, str]]:
    """The runs that can be measured or have diverged, and why the others cannot, by their names."""
    found, members, skipped = [], [], {}
    for run in runs:
        try:
            found.append((run, run.read_hyperparameters(), run.feature_steps()))
        except UserError as error:
            skipped[run.path.name] = str(error)
    last = max((steps[-1] for *_, steps in found if steps), default=0)
    for run, hyperparameters, steps in found:
        # others came to the end; in a bucket each look costs a request
        diverged = _diverged(run) if not steps or steps[-1] < last else None
        if hyperparameters.get("width") is None:
            skipped[run.path.name] = "no --width"
        elif not steps and diverged is None:
            skipped[run.path.name] = "no features; run extract.py first"
        elif steps and steps[0] != 0:
            skipped[run.path.name] = "no features of step 0; run extract.py first"
        else:
            members.append(Member(run, hyperparameters, tuple(steps), diverged))
    return members, skipped


def _diverged(run: RunFolder) -> int | None:
    """The step at which training ended as its loss was not finite, by the run's journal."""
    journal = run.fetch(run.journal)
    lines = journal.read_text().splitlines() if journal.exists() else []
    try:
        last = json.loads(lines[-1]) if lines else {}
    except ValueError:  # half written, by a training that goes on
        return None
    return int(last["step"]) if last.get("diverged") else None


def grouped(members: Sequence[Member], within: Collection[str] = ()) -> list[Group]:
    """The members by everything but width and seed.

    A flag is an axis if it varies among runs of one width, or is no function of the width. Where
    initial weights have seeds of their own, the data's seed is an axis, too. What some runs have
    not, as the number of classes of a data set that is drawn, is none if it follows from others.

    Args:
        members: of an experiment.
        within: flags that do not tell groups apart either.
    """
    finite = [member for member in members if not member.is_infinite]
    axes = [name for name in _varying(finite) if name not in within and _is_axis(name, finite)]
    axes = _without_implied(axes, finite)
    groups: dict[str, list[Member]] = {}
    for member in finite:
        given = [name for name in axes if member.flag(name) is not None] or axes
        told = (f"{name}={_short(member.flag(name))}" for name in given)
        groups.setdefault(" ".join(told) or "all", []).append(member)
    limits = {
        label: tuple(m for m in members if m.is_infinite and not _differing(m, own, within))
        for label, own in groups.items()
    }
    return [
        Group(label, tuple(own), _lr_exponent(own), limits[label])
        for label, own in sorted(groups.items())
    ]


def strays(
    members: Sequence[Member], groups: Sequence[Group], within: Collection[str] = ()
) -> dict[str, str]:
    """Why members of infinite width are the limit of no group, by their names."""
    taken = {member.name for group in groups for member in group.limits}
    told = {}
    for member in members:
        if member.is_infinite and member.name not in taken and groups:
            least = min((_differing(member, g.members, within) for g in groups), key=len)
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in least)
            told[member.name] = f"no run of finite width has its {flags}"
    return told


def _differing(limit: Member, members: Sequence[Member], within: Collection[str] = ()) -> list[str]:
    """The flags of a member of infinite width that none of some finite ones has."""
    return [
        name
        for name in _told(members) | (limit.hyperparameters.keys() - _NO_AXIS)
        if name not in _OF_LAWS and name not in within
        if _text(limit.flag(name)) not in {_text(member.flag(name)) for member in members}
    ]


def _told(members: Sequence[Member]) -> set[str]:
    """The flags that may tell members apart."""
    names = {name for m in members for name in m.hyperparameters} - _NO_AXIS
    return names | {"seed"} if any(m.flag("init_seed") is not None for m in members) else names


def _varying(members: Sequence[Member]) -> list[str]:
    return [n for n in sorted(_told(members)) if len({_text(m.flag(n)) for m in members}) > 1]


def _is_axis(name: str, members: Sequence[Member]) -> bool:
    """Not if each width has one value of its own: then it follows from the width."""
    values: dict[int, set[str]] = {}
    for member in members:
        values.setdefault(member.width, set()).add(_text(member.flag(name)))
    return len(values) == 1 or any(len(found) > 1 for found in values.values())


def _without_implied(axes: Sequence[str], members: Sequence[Member]) -> list[str]:
    """Without flags that some members do not have and that those which all have determine."""
    whole = [name for name in axes if all(m.flag(name) is not None for m in members)]
    found: dict[str, dict[tuple[str, ...], set[str]]] = {n: {} for n in axes if n not in whole}
    for member in members:
        key = tuple(_text(member.flag(name)) for name in whole)
        for name, values in found.items():
            values.setdefault(key, set()).add(_text(member.flag(name)))
    implied = {name for name, values in found.items() if all(len(v) == 1 for v in values.values())}
    return [name for name in axes if name not in implied]


def _lr_exponent(members: Sequence[Member]) -> Fraction | None:
    """The power of the width by which --lr goes, exactly; 0 where some rate is every width's."""
    sets: dict[int, set[float]] = {}
    for member in members:
        sets.setdefault(member.width, set()).add(float(member.flag("lr") or 0))
    if set.intersection(*sets.values()):
        return Fraction(0)
    rates = {n: sorted(found) for n, found in sorted(sets.items())}
    (first, start), *_, (last, end) = rates.items()
    power = Fraction(log(end[0] / start[0]) / log(last / first)).limit_denominator(12)
    expected = {n: [rate * (n / first) ** float(power) for rate in start] for n in rates}
    alike = (len(rates[n]) == len(start) for n in rates)
    close = (
        abs(r / e - 1) < 1e-3 for n in rates for r, e in zip(rates[n], expected[n], strict=False)
    )
    return power if all(alike) and all(close) else None


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _short(value: Any) -> str:
    """A value in a label; exponents of --abc are told by letters of their hash."""
    text = value if isinstance(value, str) else f"{value:g}" if _is_number(value) else _text(value)
    return text if len(text) <= 24 else hash_of(text)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def hash_of(text: str) -> str:
    """Six letters that tell texts apart."""
    from hashlib import sha256

    return sha256(text.encode()).hexdigest()[:6]
