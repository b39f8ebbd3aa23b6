"""Log lines for the user and for later; no bar where nobody watches."""

import errno
import io
import logging
import re
from pathlib import Path

import pytest

from Utils.errors import UserError
from Utils.logging import progress, stage_logger


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
