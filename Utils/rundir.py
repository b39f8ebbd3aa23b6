"""The run folder: the only place that knows which file of a run is where.

::

    <save-dir>/<experiment>/<expid>/
        hyperparameters.json      the resolved configuration and its provenance
        symmetries.h5             the conservation laws found in the model
        kernels.h5                of a network of infinite width: its kernels between examples
        kernels.parts/            what is done of them while they are computed
        ckpt/step{N}.tar          checkpoints, N = number of updates done
        feats/step{N}.h5          features; feats/probe.h5 the probe batch
        cache/{metric}{suffix}.h5 measured and predicted curves
        img/{metric}{suffix}.*    figures
        logs/                     metrics.jsonl, run.log, TensorBoard events, locks, and
                                  who of a sweep works on the run: attempt-{N}.json
    <save-dir>/<experiment>/      cache/, img/, logs/ of metrics that read all runs; report.html
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from Utils.errors import UserError
from Utils.locks import file_lock
from Utils.storage import read_json, write_json

_CHECKPOINT = re.compile(r"step(\d+)\.tar")
_FEATURES = re.compile(r"step(\d+)\.h5")

_LONGEST_LABEL = 150

_WRITES = {
    "train": (
        "hyperparameters.json",
        "symmetries.h5",
        "kernels.h5",
        "feats/probe.h5",
        "logs/metrics.jsonl",
        "logs/events.out.tfevents.*",
        "logs/run.log",
        "ckpt/step*.tar",
    ),
    "extract": ("symmetries.h5", "feats/*.h5", "logs/run.log"),  # the first for runs moving in
    "cache": ("cache/*.h5", "logs/run.log"),
    "plot": ("img/*.*",),
}
"""What each stage writes, in the order in which others may have to read it."""

_EXPERIMENT_WRITES = {
    "cache": ("cache/*.h5", "cache/*.csv", "logs/cache.log"),
    "plot": ("report*.html", "img/*.*"),
}
"""The same, of the stages that work on a whole experiment."""


def file_name(label: str) -> str:
    """A label as part of a file's name: ``"param=hybrid:0.5"`` is ``param=hybrid_0.5``."""
    return re.sub(r"[^\w.,=+-]+", "_", label).lstrip(".-")[:_LONGEST_LABEL]


class Remote(Protocol):
    """Where the files of a folder are besides here."""

    def shown(self, text: str) -> str:
        """A text that names files, in the words of whoever gave ``--save-dir``."""

    def files(self, pattern: str) -> list[Path]:
        """The files whose names match, by the paths that they have once they are fetched."""

    def tags(self, path: Path) -> Mapping[str, str]:
        """What is known of a file without reading it."""

    def fetch(self, path: Path) -> None:
        """Make a file be here."""

    def publish(self, path: Path, tags: Mapping[str, str]) -> None:
        """Bring a file there, some time before the stage ends."""

    def remove(self, path: Path) -> None:
        """Delete a file there."""

    def hold(self, stage: str, writes: tuple[str, ...]) -> AbstractContextManager[None]:
        """Be the only process of a stage; in the end all that it writes is there."""


@dataclass(frozen=True)
class Nowhere:
    """The :class:`Remote` of a folder of this machine."""

    root: Path

    def shown(self, text: str) -> str:
        return text

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern))

    def tags(self, path: Path) -> Mapping[str, str]:
        return {}

    def fetch(self, path: Path) -> None:
        pass

    def publish(self, path: Path, tags: Mapping[str, str]) -> None:
        pass

    def remove(self, path: Path) -> None:
        pass

    def hold(self, stage: str, writes: tuple[str, ...]) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class Folder:
    """Files of this machine, which may be a bucket's: then they are its working copy.

    Attributes:
        path: of the folder here.
        bucket: where its files are besides, if they are a bucket's; set by :mod:`Utils.runs`.
    """

    path: Path
    bucket: Remote | None = field(default=None, compare=False, repr=False)

    @property
    def remote(self) -> Remote:
        return self.bucket or Nowhere(self.path)

    def shown(self, path: Path) -> str:
        """The name of a file for the user: the bucket's, if it is there."""
        return self.remote.shown(str(path))

    def files(self, pattern: str) -> list[Path]:
        """The files whose names within the folder match; some may have to be fetched."""
        return self.remote.files(pattern)

    def fetch(self, path: Path) -> Path:
        """Have a file here before it is read; nothing happens if there is no such file.

        A checkpoint or a file of features stays here until this process fetches another.

        Returns:
            ``path``.

        Raises:
            Unreadable: it is damaged.
            Unreachable: it cannot be fetched.
            UserError: full disk and the like.
        """
        self.remote.fetch(path)
        return path

    def publish(self, *paths: Path, **tags: str) -> None:
        """Bring files, which are whole, to where others read them, in the background.

        Args:
            paths: the files, in the order in which they are to appear.
            tags: what :meth:`tags` shall tell of them.

        Raises:
            UserError: another process writes them.
        """
        for path in paths:
            self.remote.publish(path, tags)

    def tags(self, path: Path) -> Mapping[str, str]:
        """What a bucket tells of a file without reading it; nothing in a folder."""
        return self.remote.tags(path)

    def remove(self, path: Path) -> None:
        """Delete a file, here and elsewhere; raises :class:`OSError`."""
        self.remote.remove(path)
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunFolder(Folder):
    """The files of one run; ``path`` is ``<save-dir>/<experiment>/<expid>``."""

    @property
    def hyperparameters(self) -> Path:
        return self.path / "hyperparameters.json"

    @property
    def symmetries(self) -> Path:
        return self.path / "symmetries.h5"

    @property
    def kernels(self) -> Path:
        return self.path / "kernels.h5"

    @property
    def kernel_parts(self) -> Path:
        return self.path / "kernels.parts"

    def remove_kernel_parts(self) -> None:
        """Delete what is kept of kernels, if anything is; raises :class:`OSError`."""
        if self.kernel_parts.exists():
            shutil.rmtree(self.kernel_parts)

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

    @property
    def journal(self) -> Path:
        return self.logs / "metrics.jsonl"

    def logged(self) -> list[Path]:
        """What training reports while it goes on, as far as it is here."""
        return [self.journal, self.logs / "run.log", *self.logs.glob("events.out.tfevents.*")]

    def checkpoint_steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return _steps(self.files("ckpt/*.tar"), _CHECKPOINT)

    def feature_steps(self) -> list[int]:
        """The steps that have features, ascending."""
        return _steps(self.files("feats/*.h5"), _FEATURES)

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

        In the end everything that the stage wrote is where others read it.

        Args:
            stage: "train", "extract", "cache" or "plot"; different stages may run together.

        Raises:
            UserError: another process holds it; names its pid and host. Or what was written could
                not be brought into its bucket.
        """
        what = self.remote.shown(f"{self.path}: {stage}")
        with file_lock(self.logs / f"{stage}.lock", what), self.remote.hold(stage, _WRITES[stage]):
            yield


@dataclass(frozen=True)
class ExperimentFolder(Folder):
    """The files of an experiment; ``path`` is ``<save-dir>/<experiment>``."""

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def cache(self, metric: str, suffix: str = "") -> Path:
        return self.path / "cache" / f"{metric}{suffix}.h5"

    def figure(self, metric: str, suffix: str, extension: str) -> Path:
        return self.path / "img" / f"{metric}{suffix}.{extension}"

    def runs(self) -> list[Path]:
        """The folders of its runs, in the order of their names."""
        return [file.parent for file in self.files("*/hyperparameters.json")]

    @contextmanager
    def lock(self, stage: str) -> Iterator[None]:
        """Hold what belongs to the experiment itself for one stage, as :meth:`RunFolder.lock`.

        Args:
            stage: "cache" or "plot".

        Raises:
            UserError: another process holds it; names its pid and host.
        """
        what = self.remote.shown(f"{self.path}: {stage}")
        writes = _EXPERIMENT_WRITES[stage]
        with file_lock(self.logs / f"{stage}.lock", what), self.remote.hold(stage, writes):
            yield


def _steps(files: list[Path], pattern: re.Pattern[str]) -> list[int]:
    matches = (pattern.fullmatch(file.name) for file in files)
    return sorted(int(match[1]) for match in matches if match)
