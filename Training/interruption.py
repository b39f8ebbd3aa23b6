"""SIGTERM and Ctrl-C, noted instead of obeyed, so that a step is finished and saved."""

import signal
from types import FrameType
from typing import Self


class Interruption:
    """While entered, the first SIGTERM or SIGINT is noted; a Ctrl-C after it interrupts at once.

    Attributes:
        received: the signal's number, or ``None``.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> Self:
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
