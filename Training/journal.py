"""What training reports while it goes on: ``logs/metrics.jsonl`` and TensorBoard events."""

import json
import os
import time
from pathlib import Path
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from Utils.errors import storage_error
from Utils.storage import write_atomically


class Journal:
    """Appends lines of numbers to ``metrics.jsonl`` and the same numbers to TensorBoard.

    Args:
        folder: the run's ``logs``.
        step: the step that training continues from; lines beyond it are dropped, because they
            will be written again. −1 for a new run.

    Raises:
        UserError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / "metrics.jsonl"
        self._last_event = 0.0
        _keep_lines(self._path, step)
        try:
            self._file = open(self._path, "a")  # noqa: SIM115 (closed by __exit__)
            self._events: Any = SummaryWriter(  # type: ignore[no-untyped-call]
                str(folder), purge_step=step + 1
            )
        except OSError as error:
            raise storage_error(error, self._path) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._events.close()

    def write(self, step: int, values: dict[str, float], milestone: bool) -> None:
        """Append one line: the step, the time in seconds since 1970, and ``values``.

        Args:
            step: updates done.
            values: the numbers by name.
            milestone: whether TensorBoard must get them; of other lines it gets one a second,
                because its events cost more than a step of a small network.

        Raises:
            UserError: full disk and the like.
        """
        now = time.time()
        try:
            self._file.write(json.dumps({"step": step, "time": now, **values}) + "\n")
            if milestone or now - self._last_event >= 1:
                self._last_event = now
                self._file.flush()
                for name, value in values.items():
                    self._events.add_scalar(name, value, step)
        except OSError as error:
            raise storage_error(error, self._path) from error

    def sync(self) -> None:
        """Force the lines onto the disk: no checkpoint may outlive the lines before it."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._events.flush()
        except OSError as error:
            raise storage_error(error, self._path) from error


def _keep_lines(path: Path, step: int) -> None:
    """Drop the lines beyond ``step``, and one that a killed process left half written."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    write_atomically(path, lambda file: file.write_text("".join(f"{line}\n" for line in kept)))


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return float("inf")
