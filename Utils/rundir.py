"""The run folder: the only place that knows which file of a run is where.

::

    <save-dir>/<experiment>/<expid>/
        hyperparameters.json      the resolved configuration and its provenance
        symmetries.h5             the conservation laws found in the model
        ckpt/step{N}.tar          checkpoints, N = number of updates done
        feats/step{N}.h5          features; feats/probe.h5 the probe batch
        cache/{metric}{suffix}.h5 measured and predicted curves
        img/{metric}{suffix}.*    figures
        logs/                     metrics.jsonl, run.log, TensorBoard events, locks, and
                                  who of a sweep works on the run: attempt-{N}.json
"""

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from Utils.errors import UserError, storage_error
from Utils.storage import read_json, write_json

_CHECKPOINT = re.compile(r"step(\d+)\.tar")
_FEATURES = re.compile(r"step(\d+)\.h5")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: ``<save-dir>/<experiment>/<expid>``.
    """

    path: Path

    @property
    def hyperparameters(self) -> Path:
        return self.path / "hyperparameters.json"

    @property
    def symmetries(self) -> Path:
        return self.path / "symmetries.h5"

    @property
    def probe(self) -> Path:
        return self.path / "feats" / "probe.h5"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def checkpoint(self, step: int) -> Path:
        return self.path / "ckpt" / f"step{step}.tar"

    def features(self, step: int) -> Path:
        return self.path / "feats" / f"step{step}.h5"

    def cache(self, metric: str, suffix: str = "") -> Path:
        return self.path / "cache" / f"{metric}{suffix}.h5"

    def figure(self, metric: str, suffix: str, extension: str) -> Path:
        return self.path / "img" / f"{metric}{suffix}.{extension}"

    def checkpoint_steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return _steps(self.path / "ckpt", _CHECKPOINT)

    def feature_steps(self) -> list[int]:
        """The steps that have features, ascending."""
        return _steps(self.path / "feats", _FEATURES)

    def read_hyperparameters(self) -> dict[str, Any]:
        """The configuration of the run; raises :class:`UserError` if there is no such run."""
        advice = "bring back the one that train.py wrote, or start anew with train.py --overwrite"
        content = read_json(self.hyperparameters, "run train.py for this run first", advice)
        if not isinstance(content, dict) or "seed" not in content:
            raise UserError(f"{self.hyperparameters} is no configuration of a run; {advice}")
        return content

    def write_hyperparameters(self, content: dict[str, Any]) -> None:
        """Save the configuration of the run."""
        write_json(self.hyperparameters, content)

    @contextmanager
    def lock(self, stage: str) -> Iterator[None]:
        """Hold the run for one stage; released by the system even if the process is killed.

        Args:
            stage: "train", "extract", "cache" or "plot"; different stages may run together.

        Raises:
            UserError: another process holds it; names its pid and host.
        """
        path = self.logs / f"{stage}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab+", buffering=0)  # noqa: SIM115 (closed below)
        except OSError as error:
            raise storage_error(error, path) from error
        with file:
            try:
                _acquire(file, stage, self.path)
            except OSError as error:
                raise storage_error(error, path) from error
            yield


def _acquire(file: IO[bytes], stage: str, run: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().decode() or "another process"
        raise UserError(
            f"{run}: {stage} is already running ({holder}); wait for it or stop it"
        ) from None
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}".encode())


def _steps(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    if not folder.is_dir():
        return []
    matches = (pattern.fullmatch(name) for name in os.listdir(folder))
    return sorted(int(match[1]) for match in matches if match)
