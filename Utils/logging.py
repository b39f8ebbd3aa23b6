"""What a stage tells the user while it works: a log file, log lines, a progress bar."""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from Utils.errors import storage_error

T = TypeVar("T")


def stage_logger(stage: str, log_file: Path | None = None, beside: bool = False) -> logging.Logger:
    """A logger that prints plain lines to stderr and keeps dated ones in ``log_file``.

    Args:
        stage: the stage's name, which is the logger's.
        log_file: appended to; its folder is made if missing.
        beside: for work that goes on together with that of the stage's logger: a logger of its
            own, whose user closes it by :func:`close`; it prints warnings only, as the others'
            lines would be many and alike.
    """
    name = f"learning-mechanics.{stage}"
    logger = logging.Logger(name) if beside else logging.getLogger(name)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    close(logger)
    console = _TqdmHandler(logging.WARNING if beside else logging.NOTSET)
    console.setFormatter(logging.Formatter(f"{stage}: %(message)s"))
    logger.addHandler(console)
    if log_file is not None:
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            file = _LogFile(log_file)
        except OSError as error:
            raise storage_error(error, log_file) from error
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(file)
    return logger


def close(logger: logging.Logger) -> None:
    """Take a logger's handlers away, and close them."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def silence() -> logging.Logger:
    """A logger that tells nobody: for all processes but the first."""
    logger = logging.getLogger("learning-mechanics.silence")
    logger.disabled = True
    return logger


def progress(items: Iterable[T], label: str, total: int | None = None) -> "tqdm[T]":
    """``items`` with a progress bar on a terminal, and nothing elsewhere.

    Args:
        items: what is worked through.
        label: what is being done.
        total: how many items there are, where ``items`` cannot tell.
    """
    return tqdm(items, desc=label, total=total, leave=False, disable=not sys.stderr.isatty())


class _LogFile(logging.FileHandler):
    """Log lines that do not fit on the disk are lost; what stops the work reports itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _TqdmHandler(logging.Handler):
    """Prints log lines above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
