"""A thread that sends files, while the work that makes them goes on."""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from Utils.errors import UserError

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.25, 60.0  # between attempts
_SECONDS_BETWEEN_WARNINGS = 60.0


class Uploads:
    """Sends files one after the other, in the order in which they were added.

    What cannot be sent is tried again until :meth:`flush` gives up, and nothing overtakes it.

    Args:
        send: sends the file of a name.
        gives_up: the errors after which nothing more may be sent.
        log: is told of failures.
        patience: seconds that :meth:`flush` goes on without success.
    """

    def __init__(
        self,
        send: Callable[[str, Mapping[str, str]], None],
        gives_up: type[UserError],
        log: logging.Logger,
        patience: float,
    ):
        self._send, self._gives_up, self._log, self._patience = send, gives_up, log, patience
        self._waiting: dict[str, Mapping[str, str]] = {}
        self._current: str | None = None
        self._trouble: UserError | None = None
        self._fatal: Exception | None = None
        self._ends = self._hurries = False
        self._failing_since = self._warned = float("-inf")
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)
        self._thread.start()

    def add(self, name: str, tags: Mapping[str, str]) -> None:
        """Send a file soon; if it waits already, at its place in the queue.

        Args:
            name: the file's.
            tags: what ``send`` gets with it; those of before if there are none.

        Raises:
            UserError: another process writes what this one writes.
        """
        with self._changed:
            if self._fatal is not None:
                raise self._fatal
            self._waiting[name] = tags or self._waiting.get(name, {})
            self._changed.notify_all()

    def cancel(self, name: str) -> None:
        """Do not send a file; returns when it is not being sent."""
        with self._changed:
            self._waiting.pop(name, None)
            self._changed.wait_for(lambda: self._current != name)
            self._waiting.pop(name, None)

    def flush(self) -> None:
        """Wait until everything is sent.

        Raises:
            UserError: it cannot be sent; names the files.
        """
        with self._changed:
            self._hurries = True
            self._changed.notify_all()
            begun = time.monotonic()
            while self._fatal is None and self._left:
                self._changed.wait(0.2)
                tries = self._trouble is None or self._current is not None
                since = max(begun, self._failing_since)
                if not tries and time.monotonic() > since + self._patience:
                    raise UserError(f"{self._trouble}; {self._kept}")
            self._hurries = False
            if isinstance(self._fatal, UserError):
                raise UserError(f"{self._fatal}; {self._kept}")
            if self._fatal is not None:
                raise self._fatal

    @property
    def _left(self) -> list[str]:
        current = [] if self._current is None else [self._current]
        return current + [name for name in self._waiting if name not in current]

    @property
    def _kept(self) -> str:
        names = self._left
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return f"not in the bucket yet, and kept on this machine: {some}"

    def close(self) -> None:
        """Send no more."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join(timeout=2.0)  # not for an attempt that nobody waits for any more

    def _run(self) -> None:
        pause = _SHORTEST_PAUSE
        while (task := self._next()) is not None:
            name, tags = task
            try:
                self._send(name, tags)
            except self._gives_up as error:
                self._failed(name, tags, fatal=error)
                return
            except UserError as error:
                self._failed(name, tags, trouble=error)
                self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            except Exception as error:  # a mistake of ours, which flush tells
                self._failed(name, tags, fatal=error)
                return
            else:
                with self._changed:
                    self._current = self._trouble = None
                    self._changed.notify_all()
                pause = _SHORTEST_PAUSE

    def _next(self) -> tuple[str, Mapping[str, str]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._ends or self._waiting)
            if self._ends:
                return None
            self._current = next(iter(self._waiting))
            return self._current, self._waiting.pop(self._current)

    def _failed(
        self,
        name: str,
        tags: Mapping[str, str],
        trouble: UserError | None = None,
        fatal: Exception | None = None,
    ) -> None:
        """Put a file back to the head of the queue; it may have been added again meanwhile."""
        now = time.monotonic()
        with self._changed:
            if self._trouble is None:
                self._failing_since = now
            tags = self._waiting.pop(name, {}) or tags
            self._waiting = {name: tags} | self._waiting
            self._current, self._trouble, self._fatal = None, trouble, fatal
            self._changed.notify_all()
            if trouble is not None and now - self._warned > _SECONDS_BETWEEN_WARNINGS:
                self._warned = now
                self._log.warning("%s; %s", trouble, self._kept)

    def _rest(self, pause: float) -> None:
        with self._changed:
            until = time.monotonic() + pause
            while not self._ends and (left := until - time.monotonic()) > 0:
                if self._hurries and left > 1:
                    until = time.monotonic() + 1
                self._changed.wait(min(left, 1.0))
