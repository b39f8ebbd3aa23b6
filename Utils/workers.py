"""Work shared out to processes: each item once, in order, and nothing left behind.

Unlike the executors of the standard library, the death of a process costs one item, which is
named, and the others are worked through.
"""

import itertools
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, Generic, TypeVar

from Utils.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2
"""Results per worker that may wait for an earlier one."""

_SECONDS_TO_END = 5.0


@dataclass(frozen=True)
class Failure:
    """What came of an item that could not be done.

    Attributes:
        error: the reason.
    """

    error: UserError


def shared_out(
    make: Callable[[], Callable[[T], R]], items: Iterable[T], workers: int, name: Callable[[T], str]
) -> Generator[tuple[T, R | Failure], None, None]:
    """The results of all items, in their order. Close it, and the processes end.

    Args:
        make: gives the function that does an item; called once in each process. With workers
            it must be picklable, and so must items, results and errors.
        items: what is to be done.
        workers: processes, with one thread each; 0 for none but this one.
        name: of an item, for messages; called here.

    Raises:
        UserError: ``make`` failed.
        RuntimeError: an item failed with anything but a ``UserError``; holds its traceback.
    """
    if workers:
        pool = _Pool(make, workers, name)
        try:
            yield from pool.results(iter(items))
        finally:
            pool.end()
        return
    function: Callable[[T], R] | None = None
    for item in items:
        function = function or make()
        try:
            result: R | Failure = function(item)
        except UserError as error:
            result = Failure(error)
        yield item, result


class _Pool(Generic[T, R]):
    """Processes that work on one item each; see :func:`shared_out`."""

    def __init__(
        self, make: Callable[[], Callable[[T], R]], workers: int, name: Callable[[T], str]
    ):
        self._context = get_context("spawn")  # threads of torch and HDF5 do not survive a fork
        self._make, self._workers, self._name = make, workers, name
        self._processes: dict[Connection, Any] = {}
        self._at_work: dict[Connection, tuple[int, T]] = {}

    def results(self, items: Iterator[T]) -> Iterator[tuple[T, R | Failure]]:
        """Hand out items, and give their results in order."""
        waiting: deque[tuple[int, T]] = deque(enumerate(itertools.islice(items, self._workers)))
        done: dict[int, tuple[T, R | Failure]] = {}
        handed_out, next_one = len(waiting), 0
        for _ in waiting:
            self._start()
        while waiting or self._at_work or done:
            self._hand_out(waiting)
            if self._at_work:
                ready = connection.wait(self._at_work)
                for pipe in [pipe for pipe in self._at_work if pipe in ready]:
                    number, item = self._at_work.pop(pipe)
                    done[number] = item, self._receive(pipe, item)
            while next_one in done:
                yield done.pop(next_one)
                next_one += 1
            room = _AHEAD * self._workers - (handed_out - next_one)
            more = list(itertools.islice(items, max(0, min(room, self._idle()))))
            waiting += enumerate(more, handed_out)
            handed_out += len(more)

    def _idle(self) -> int:
        return self._workers - len(self._at_work)

    def _hand_out(self, waiting: "deque[tuple[int, T]]") -> None:
        """Give each idle process an item; one that has ended is replaced."""
        while waiting and self._idle():
            if len(self._processes) == len(self._at_work):
                self._start()
            pipe = next(pipe for pipe in self._processes if pipe not in self._at_work)
            try:
                pipe.send(waiting[0][1])
            except OSError:  # it died without work
                self._forget(pipe)
            else:
                self._at_work[pipe] = waiting.popleft()

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._make), daemon=True)
        process.start()
        theirs.close()
        self._processes[ours] = process

    def _receive(self, pipe: Connection, item: T) -> R | Failure:
        try:
            what, content = pipe.recv()
        except (EOFError, OSError):
            return Failure(UserError(f"{self._name(item)}: {self._end_of(pipe)}"))
        if what == "result":
            result: R = content
            return result
        if what == "error":
            return Failure(content)
        if what == "refusal":
            raise content
        raise RuntimeError(f"{self._name(item)} failed in a worker process:\n{content}")

    def _end_of(self, pipe: Connection) -> str:
        """How a process ended, and what to do."""
        code = self._forget(pipe)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return (
            f"the worker process that had it {how}, perhaps for want of memory; run the same "
            "command again with fewer --workers"
        )

    def _forget(self, pipe: Connection) -> int:
        process = self._processes.pop(pipe)
        pipe.close()
        process.join()
        return int(process.exitcode)

    def end(self) -> None:
        """Stop all processes; those at work clean up what they have begun."""
        for process in self._processes.values():
            process.terminate()
        for pipe, process in self._processes.items():
            process.join(_SECONDS_TO_END)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()


def _work(pipe: Connection, make: Callable[[], Callable[[Any], Any]]) -> None:
    """What a worker process does until it is told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first process decides
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if torch := sys.modules.get("torch"):  # which came with ``make``, if it is needed
        torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError):
        function = None
        while True:
            item = pipe.recv()
            try:
                function = function or make()
            except UserError as error:
                pipe.send(("refusal", error))
                return
            pipe.send(_outcome(function, item))


def _outcome(function: Callable[[Any], Any], item: Any) -> tuple[str, Any]:
    try:
        return "result", function(item)
    except UserError as error:
        return "error", error
    except Exception:
        return "traceback", traceback.format_exc()


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    """A process whose parent was killed must not write where the next one does."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
