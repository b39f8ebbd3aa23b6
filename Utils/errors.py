"""Errors that are the user's to mend, and the exit codes of the four stages.

Exit codes: 0 done; 2 the user's mistake (one line: what was wrong, the value seen, what to
do); 1 ours (a traceback); 128 + n stopped by signal n, with whole files and nothing else left.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Self

_STORAGE_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the file-size limit was reached; raise it and run the same command again",
    errno.EROFS: "the file system is read-only; choose another --save-dir",
    errno.EACCES: "permission denied; choose another --save-dir or mend the permissions",
    errno.EPERM: "operation not permitted; choose another --save-dir or mend the permissions",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another --save-dir",
    errno.EEXIST: "there is a file where a folder is needed; move it away",
    errno.EISDIR: "this path is a folder, a file was expected",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter --experiment or --expid",
}


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what, the value seen, what to do."""


class Unreadable(UserError):
    """A file is missing, damaged or incomplete; a pass over many files can go on without it."""


class Unreachable(UserError):
    """A bucket does not answer or refuses: going on as if its files did not exist loses them."""


class Diverged(UserError):
    """What ends a diverging run.

    Attributes:
        step: the update that led to it.
        what: went wrong.
    """

    step, what = 0, ""

    @classmethod
    def at(
        cls,
        step: int,
        what: str,
        advice: str = "lower --lr, or use --warmup-steps or --clip-norm",
    ) -> Self:
        """The error of a step.

        Args:
            step: the update.
            what: went wrong, as in "loss of step 3 is nan".
            advice: what helps.
        """
        error = cls(f"the {what}; all that was saved before is kept; {advice}")
        error.step, error.what = step, what
        return error


class StorageError(UserError):
    """A file or folder of this machine cannot be read or written."""


class Unwritable(StorageError):
    """A file cannot be written; the next one in its folder could not be either."""


def left_out(errors: Mapping[str, UserError], total: int) -> UserError:
    """The one error of a pass that worked through all files that it could read.

    Args:
        errors: what was wrong with the others, by the file's name; at least one.
        total: how many files there were.
    """
    first, *others = errors
    names = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    also = f" (likewise {names})" if others else ""
    done = total - len(errors)
    return UserError(f"{errors[first]}{also}" + (f"; all {done} others are done" if done else ""))


def storage_error(error: OSError, path: Path | str | None = None) -> StorageError:
    """The error that explains a failed read or write.

    Args:
        error: the operating system's error.
        path: the file being read or written, where ``error`` does not name it.
    """
    where = error.filename or path or "a file"
    advice = _STORAGE_ADVICE.get(error.errno or 0, error.strerror or str(error))
    return StorageError(f"cannot access {where}: {advice}; everything written before is intact")


def run_stage(main: Callable[[], int | None]) -> None:
    """Run a stage's ``main`` and exit the process with the documented exit code.

    Args:
        main: the stage; returns its exit code, ``None`` meaning 0.
    """
    stage = Path(sys.argv[0]).name
    signal.signal(signal.SIGTERM, _stop)
    try:
        code = main() or 0
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:  # as by "| head"; what is left in the buffer must not raise again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in _STORAGE_ADVICE:
            raise
        message = str(storage_error(error))
    except KeyboardInterrupt as interrupt:
        print(f"{stage}: interrupted; run the same command again to continue", file=sys.stderr)
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        sys.exit(128 + number)
    print(f"{stage}: error: {message}", file=sys.stderr)
    sys.exit(2)


def _stop(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C, cleaning up on the way."""
    raise KeyboardInterrupt(number)
