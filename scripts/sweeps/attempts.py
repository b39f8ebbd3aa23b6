"""Who works on a run, how far it came, and how it ended: ``<run>/logs/attempt-{N}.json``.

A run belongs to whoever wrote its newest attempt. A further attempt is a new file with the next
number, made whole or not at all, and only if no one else has made it: of many processes on many
machines that want a run exactly one gets it, without locks. While its process lives it touches
the file, its heartbeat. An attempt whose process is gone is taken over by the next number; a
process that finds its own attempt taken over ends at once.
"""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal, Self
from uuid import uuid4

from Utils.errors import storage_error
from Utils.rundir import RunFolder
from Utils.storage import write_json

State = Literal["running", "stopped", "done", "failed", "diverged"]
Stages = Mapping[str, tuple[str, ...]]
"""The stages of a run in their order, each with its flags."""

SECONDS_BETWEEN_BEATS = 5.0
SECONDS_UNTIL_STALE = 120.0
"""Without a heartbeat, after which a process on another machine is taken for dead."""

DEATHS = 3
"""Of processes in a row that brought a run no further, after which it has failed."""

_NAME = re.compile(r"attempt-(\d+)\.json")


@dataclass(frozen=True)
class Attempt:
    """The content of an attempt's file.

    Attributes:
        place: machine and namespace of process numbers in which ``process`` is to be found.
        process: its number, and what tells it from a later one with the same number.
        state: "running" also if the process has died since; "diverged" if training failed as its
            loss is no number any more.
        stage: what it does, or did last.
        done: finished stages of the run with their flags, those of earlier attempts included.
        seconds: that the stages of this attempt took.
        begun_at: the run's newest checkpoint when the attempt began, −1 for none.
        ended_at: and when training ended, for this attempt.
        deaths: processes in a row that died on the run before this one without progress.
        error: one line on why it failed.
        traceback: the rest of it, if the fault is not the user's.
    """

    number: int
    place: str
    process: tuple[int, str]
    host: str
    state: State = "running"
    stage: str = ""
    done: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    begun_at: int = -1
    ended_at: int = -1
    deaths: int = 0
    error: str = ""
    traceback: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether the run is left alone until it is retried."""
        return self.state in {"failed", "diverged"}

    def lacks(self, stages: Stages) -> list[str]:
        """The stages that are not done with these flags, and those that follow one."""
        names = list(stages)
        for index, name in enumerate(names):
            if self.done.get(name) != list(stages[name]):
                return names[index:]
        return []


def path_of(run: RunFolder, number: int) -> Path:
    """The file of an attempt."""
    return run.logs / f"attempt-{number}.json"


def newest(run: RunFolder) -> Attempt | None:
    """The attempt to which a run belongs; ``None`` if there has been none."""
    numbers: list[int] = []
    with suppress(FileNotFoundError, NotADirectoryError):
        matches = map(_NAME.fullmatch, os.listdir(run.logs))
        numbers = [int(match[1]) for match in matches if match]
    if not numbers:
        return None
    content = json.loads(path_of(run, max(numbers)).read_text())
    return Attempt(**{**content, "process": tuple(content["process"])})


def is_alive(run: RunFolder, attempt: Attempt) -> bool:
    """Whether the process of an attempt works on the run.

    On this machine the system knows; elsewhere the heartbeat tells.
    """
    if attempt.state != "running":
        return False
    if attempt.place == _place():
        return _born(attempt.process[0]) == attempt.process[1]
    beat = path_of(run, attempt.number).stat().st_mtime
    return time.time() - beat < SECONDS_UNTIL_STALE


def newest_step(run: RunFolder) -> int:
    """Updates done in a run's newest checkpoint, −1 if it has none."""
    return max(run.checkpoint_steps(), default=-1)


class Claim:
    """A run that belongs to this process, until it is released; use it with ``with``.

    Args:
        run: the run.
        attempt: this process's, just written.
    """

    def __init__(self, run: RunFolder, attempt: Attempt):
        self._run, self.attempt = run, attempt
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._heart.join()

    def note(self, **changes: object) -> None:
        """Change what the attempt's file says.

        Raises:
            UserError: it cannot be written.
        """
        self.attempt = replace(self.attempt, **changes)  # type: ignore[arg-type]
        write_json(path_of(self._run, self.attempt.number), asdict(self.attempt))

    def _beat(self) -> None:
        path = path_of(self._run, self.attempt.number)
        while not self._ended.wait(SECONDS_BETWEEN_BEATS):
            if path_of(self._run, self.attempt.number + 1).exists():
                os._exit(1)  # taken for dead, and replaced: nothing may be written any more
            with suppress(OSError):  # a disk that fails is reported by what writes
                os.utime(path)


def claim(run: RunFolder, stages: Stages, retried: int = 0) -> Claim | None:
    """Take a run that something is to be done for.

    Args:
        run: the run.
        stages: what shall be done.
        retried: the attempt up to which a failure is no reason to leave the run alone.

    Returns:
        ``None`` if all is done, if it has failed, or if another process has it.

    Raises:
        UserError: its folder cannot be written to.
    """
    last = newest(run)
    if last is not None and (
        is_alive(run, last) or not last.lacks(stages) or (last.has_failed and last.number > retried)
    ):
        return None
    attempt = _next(run, last)
    if not _write_new(path_of(run, attempt.number), attempt):
        return None
    return Claim(run, attempt) if attempt.state == "running" else None


def _next(run: RunFolder, last: Attempt | None) -> Attempt:
    step = newest_step(run)
    process = (os.getpid(), _born(os.getpid()))
    attempt = Attempt(1, _place(), process, socket.gethostname(), begun_at=step)
    if last is None:
        return attempt
    attempt = replace(attempt, number=last.number + 1, done=last.done, stage=last.stage)
    if last.state != "running":
        return attempt
    deaths = 0 if step > last.begun_at or last.seconds else last.deaths + 1
    if deaths < DEATHS:
        return replace(attempt, deaths=deaths)
    error = (
        f"{deaths} processes died on it, one after another, and brought it no further; "
        "perhaps there is too little memory"
    )
    return replace(attempt, state="failed", error=error)


def _write_new(path: Path, attempt: Attempt) -> bool:
    """Make a file, whole; ``False`` if it is there already."""
    own = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        write_json(own, asdict(attempt))
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        own.unlink(missing_ok=True)
    return True


@cache
def _place() -> str:
    """What a process number belongs to: a machine, since its start, and a namespace in it."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # where there is no /proc the machine's name has to do
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _born(process: int) -> str:
    """When a process began, in ticks since the machine did; empty if there is none."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return ""
        return "alive"
    return "" if words[0] in {"Z", "X"} else words[19]
