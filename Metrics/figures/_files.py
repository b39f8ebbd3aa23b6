"""Figures as files: what they say of their origin, and whether they are up to date."""

import hashlib
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from Metrics.figures._cache import Header
from Metrics.figures._options import Options
from Metrics.figures._style import settings
from Utils.storage import write_atomically


def fingerprint(headers: Iterable[Header], options: Options) -> str:
    """What figures of caches carry: it tells the features and the options apart."""
    told = " ".join([*(f"{h.metric} {h.features_hash}" for h in headers), str(options)])
    return f"figure-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def is_current(figure: Path, sources: Iterable[Path], mark: str) -> bool:
    """Whether a figure is newer than what it shows and carries the fingerprint ``mark``."""
    return (
        figure.is_file()
        and figure.stat().st_mtime_ns >= max(source.stat().st_mtime_ns for source in sources)
        and mark.encode() in figure.read_bytes()
    )


def save(figure: Figure, path: Path, cache: Path, options: Options, mark: str) -> None:
    """Write a figure, in the format that the path's extension tells, atomically.

    The same figure has the same bytes: no date is written. The metadata name the cache, the
    command and the fingerprint ``mark``.
    """
    write_figure(figure, path, f"drawn from {cache} by: {command()}", mark, options.use_tex)


def write_figure(
    figure: Figure, path: Path, origin: str, mark: str = "", use_tex: bool = False
) -> None:
    """Write any figure likewise.

    Args:
        figure: what to draw.
        path: its extension is the format: pdf, png or svg.
        origin: what the metadata say of where it comes from.
        mark: a keyword in the metadata.
        use_tex: whether LaTeX sets the text.

    Raises:
        UserError: the file cannot be written, or LaTeX fails.
    """
    kind = path.suffix.removeprefix(".")
    metadata = _metadata(kind, origin, mark)
    with settings(use_tex):
        write_atomically(path, lambda file: figure.savefig(file, format=kind, metadata=metadata))


def _metadata(kind: str, origin: str, mark: str) -> dict[str, Any]:
    if kind == "pdf":
        return {"Subject": origin, "Keywords": mark, "CreationDate": None}
    if kind == "svg":
        return {"Description": origin, "Keywords": mark, "Date": None}
    return {"Description": origin, "Keywords": mark}


def command() -> str:
    """What the user typed."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
