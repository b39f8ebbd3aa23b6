"""Exit codes, and one line for everything that the user can mend."""

import errno
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import ROOT
from Utils.errors import UserError, left_out, run_stage, storage_error


def raising(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "printed"),
    [
        (lambda: None, 0, ""),
        (lambda: 0, 0, ""),
        (lambda: 143, 143, ""),
        (raising(UserError("what, seen, do")), 2, "toy.py: error: what, seen, do\n"),
        (
            raising(OSError(errno.ENOSPC, "No space", "/a/b")),
            2,
            "toy.py: error: cannot access /a/b: the disk is full; free some space and run the same "
            "command again; everything written before is intact\n",
        ),
        (
            raising(KeyboardInterrupt()),
            130,
            "toy.py: interrupted; run the same command again to continue\n",
        ),
    ],
)
def test_exit_codes(
    main: Callable[[], int | None],
    code: int,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/toy.py"])
    with pytest.raises(SystemExit) as caught:
        run_stage(main)
    assert caught.value.code == code
    assert capsys.readouterr().err == printed


def test_a_reader_that_leaves_is_no_mistake() -> None:
    code = "from Utils.errors import run_stage; run_stage(lambda: print('a line\\n' * 100_000))"
    command = shlex.join([sys.executable, "-c", code])
    found = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (found.returncode, found.stdout, found.stderr) == (141, "a line\n", "")


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EIO, "bus")])
def test_our_own_mistakes_show_where_they_are(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_stage(raising(error))


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "permission denied; choose another --save-dir"),
        (errno.EROFS, "the file system is read-only"),
        (errno.ENOTDIR, "a part of this path is a file"),
        (errno.EEXIST, "there is a file where a folder is needed"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_storage_errors_say_where_and_what_to_do(number: int, advice: str) -> None:
    error = storage_error(OSError(number, os.strerror(number)), Path("a.h5"))
    assert str(error).startswith(f"cannot access a.h5: {advice}")
    assert str(error).endswith("everything written before is intact")


@pytest.mark.parametrize(
    ("count", "total", "message"),
    [
        (1, 1, "f0 is bad"),
        (1, 3, "f0 is bad; all 2 others are done"),
        (3, 9, "f0 is bad (likewise f1, f2); all 6 others are done"),
        (6, 6, "f0 is bad (likewise f1, f2, f3 and 2 more)"),
    ],
)
def test_files_that_were_left_out_are_named(count: int, total: int, message: str) -> None:
    errors = {f"f{i}": UserError(f"f{i} is bad") for i in range(count)}
    assert str(left_out(errors, total)) == message
