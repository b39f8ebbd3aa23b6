"""What ``scripts/doctor.py`` checks, one module per family.

Nothing here is imported before it is needed: the doctor must run where packages are missing.
"""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "FAIL"]

INSTALL = "python -m pip install -r requirements.txt"
"""What mends most of what can be wrong with an environment."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        level: "FAIL" where something will not work, "warn" where it may not.
        what: was looked at.
        found: was seen there, in one line.
        fix: what to do about it; empty for "ok".
    """

    level: Level
    what: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<6}{self.what:<13}{self.found}"
        return f"{line}\n      fix: {self.fix}" if self.fix else line


def one_line(error: BaseException) -> str:
    """An exception as one line: its type and the beginning of its message."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:200]}"
