"""Log lines for the user and for later; no bar where nobody watches."""

import errno
import io
import logging
import re
from pathlib import Path

import pytest

from Utils.errors import UserError
from Utils.logging import close, progress, stage_logger


def test_lines_go_to_stderr_and_dated_to_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "run.log"
    for stage in ("train", "extract"):
        stage_logger(stage, path).info("did %d", 3)
    stage_logger("train", path).warning("again")
    assert capsys.readouterr().err == "train: did 3\nextract: did 3\ntrain: again\n"
    lines = path.read_text().splitlines()
    date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    assert len(lines) == 3
    assert re.fullmatch(f"{date} INFO learning-mechanics.train: did 3", lines[0])
    assert re.fullmatch(f"{date} WARNING learning-mechanics.train: again", lines[2])


def test_the_root_logger_does_not_repeat_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage_logger("train", tmp_path / "run.log").info("once")
    assert caplog.records == []


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_does_not_fit_on_the_disk_is_no_reason_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = stage_logger("train", tmp_path / "run.log")
    (handler,) = (h for h in logger.handlers if isinstance(h, logging.FileHandler))
    handler.setStream(FullDisk()).close()  # type: ignore[arg-type, union-attr]
    logger.info("unheard")
    assert capsys.readouterr().err == "train: unheard\n"


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    with pytest.raises(UserError, match=r"cannot access .*logs"):
        stage_logger("train", tmp_path / "logs" / "run.log")


def test_progress_gives_every_item_and_writes_nothing_to_a_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(progress(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_runs_at_work_together_have_logs_of_their_own_and_one_is_heard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / name / "run.log" for name in "ab"]
    heard, other = (stage_logger("train", path, beside=i > 0) for i, path in enumerate(paths))
    heard.info("of a")
    other.info("of b")
    other.warning("of b, too")
    close(other)
    assert capsys.readouterr().err == "train: of a\ntrain: of b, too\n"
    lines = [path.read_text().splitlines() for path in paths]
    assert [line.rpartition(": ")[2] for line in lines[0]] == ["of a"]
    assert [line.rpartition(": ")[2] for line in lines[1]] == ["of b", "of b, too"]
