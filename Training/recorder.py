"""Where the numbers and checkpoints of a training go: into its run folder, by one process."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, Self

from Training.checkpoints import Checkpoint, save_checkpoint
from Training.journal import Journal
from Utils.devices import snapshot
from Utils.rundir import RunFolder


class Recorder(Protocol):
    """What a training tells, to be used with ``with``."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def report(self, step: int, values: dict[str, float], milestone: bool) -> None:
        """Note numbers after a step; see :meth:`Training.journal.Journal.write`."""

    def save(self, step: int, content: Checkpoint) -> None:
        """Save a checkpoint."""

    def diverged(self, step: int) -> None:
        """Note that the update of this step led nowhere."""

    def finish(self) -> None:
        """Wait until everything is saved."""


class FolderRecorder:
    """Writes the journal, and checkpoints in a thread of its own while training goes on.

    Args:
        run: the run.
        step: the step that training continues from, −1 for a new run.

    Raises:
        UserError: the folder cannot be written to.
    """

    def __init__(self, run: RunFolder, step: int):
        self._run = run
        run.fetch(run.journal)
        self._journal = Journal(run.logs, step)
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.shutdown()
        self._journal.__exit__(*exception)

    def report(self, step: int, values: dict[str, float], milestone: bool) -> None:
        self._journal.write(step, values, milestone)

    def diverged(self, step: int) -> None:
        self._journal.write(step, {"diverged": True}, milestone=False)

    def save(self, step: int, content: Checkpoint) -> None:
        """Copy a checkpoint to the host, and write it soon.

        Raises:
            UserError: this or an earlier one cannot be written.
        """
        self._journal.sync()
        self.finish()  # the host holds one copy at a time
        held = snapshot(content)
        self._pending = self._writer.submit(self._write, self._run.checkpoint(step), held)

    def _write(self, path: Path, content: Checkpoint) -> None:
        save_checkpoint(path, content)
        self._run.publish(*self._run.logged(), path)  # the lines before what continues them

    def finish(self) -> None:
        """Wait until everything is saved.

        Raises:
            UserError: the last checkpoint could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()


class Silence:
    """In all processes but the first: tells nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing was opened."""

    def report(self, step: int, values: dict[str, float], milestone: bool) -> None:
        """The first process does."""

    def save(self, step: int, content: Checkpoint) -> None:
        """The first process does."""

    def diverged(self, step: int) -> None:
        """The first process tells."""

    def finish(self) -> None:
        """Nothing is pending."""
