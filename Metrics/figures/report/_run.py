"""Everything that the page says of one run, read from its files."""

import json
from contextlib import suppress
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from Metrics.figures._cache import PERFORMANCE, Header, read_cache
from Metrics.figures._options import Options
from Metrics.figures.report._figures import Picture, picture
from Metrics.figures.report._flags import Flag, facts, flags, phase_table
from Metrics.summary import Deviation, deviation, deviation_table
from Models.symmetry import Laws
from Utils.rundir import RunFolder
from Utils.storage import open_hdf5


@dataclass(frozen=True)
class RunCaches:
    """A run and those of its caches that the page shows."""

    run: RunFolder
    headers: tuple[Header, ...]

    @property
    def sources(self) -> list[Path]:
        """The files that the page is made from."""
        own = (self.run.hyperparameters, self.run.symmetries)
        return [path for path in own if path.exists()] + [header.path for header in self.headers]


@dataclass(frozen=True)
class Gate:
    """Whether a theory applies to a layer: how many of its units, and why not to the others."""

    metric: str
    layer: str
    open: int
    units: int
    reason: str

    @property
    def verdict(self) -> str:
        if self.open == self.units:
            return "open"
        return f"{self.open} of {self.units} open" if self.open else "closed"


@dataclass(frozen=True)
class RunReport:
    """One run.

    Attributes:
        name: its ``--expid``.
        hyperparameters: the content of its ``hyperparameters.json``.
        flags: its hyper-parameters, those that differ from their defaults first.
        task: what follows from the data, as pairs of text.
        phases: of an annealed run, in text; the first row heads the columns.
        provenance: command, versions, device, commit, as pairs of text.
        laws: its conservation laws; ``None`` where no file tells.
        gates: the verdicts on every layer.
        deviations: of the metrics that have laws.
        certificates: what other metrics add to the table of deviations, one line each.
        pictures: a figure, or the reason why there is none, for each cache.
        final: the last evaluations of losses and accuracies, by name.
    """

    name: str
    hyperparameters: dict[str, Any]
    flags: list[Flag]
    task: list[tuple[str, str]]
    phases: list[list[str]]
    provenance: list[tuple[str, str]]
    laws: Laws | None
    gates: list[Gate]
    deviations: list[Deviation]
    certificates: list[str]
    pictures: list[Picture]
    final: dict[str, float]

    @property
    def has_section(self) -> bool:
        """Whether there is more to tell than fits a line of the comparison."""
        return bool(self.pictures)

    @property
    def worst(self) -> tuple[float | None, float | None]:
        """The largest deviations from the exact and the paper's laws, where there are some."""
        found = [d.worst for d in self.deviations if d.open]
        known = ([x[i] for x in found if not isnan(x[i])] for i in (0, 1))
        exact, paper = (max(values, default=None) for values in known)
        return exact, paper


def read_run(caches: RunCaches, options: Options, most: int) -> RunReport:
    """Read a run and draw its caches.

    Args:
        caches: the run.
        options: how figures are drawn.
        most: bytes of a figure, above which it is drawn in pixels.

    Raises:
        UserError: a file is missing or damaged, or LaTeX fails.
    """
    run, paths = caches.run, [header.path for header in caches.headers]
    hyperparameters = run.read_hyperparameters()
    task = hyperparameters.get("task", {})
    found = [d for d in map(deviation, paths) if d is not None]
    others = [path for path in paths if deviation(path) is None]
    return RunReport(
        name=run.path.name,
        hyperparameters=hyperparameters,
        flags=flags(hyperparameters),
        task=facts(task),
        phases=phase_table(task),
        provenance=facts(hyperparameters.get("provenance", {})),
        laws=Laws.load(run.symmetries) if run.symmetries.exists() else None,
        gates=[gate for path in paths for gate in _gates(path)],
        deviations=[d for d in found if d.laws],
        certificates=deviation_table(others).splitlines(),
        pictures=[picture(header, options, most) for header in caches.headers],
        final=_final(caches),
    )


def _gates(path: Path) -> list[Gate]:
    with open_hdf5(path, "run cache.py again") as file:
        metric = str(file.attrs["metric"])
        return [
            Gate(metric, layer, int(gate[()].sum()), gate.size, str(gate.attrs["reason"]))
            for layer, gate in file.get("gate", {}).items()
        ]


def _final(caches: RunCaches) -> dict[str, float]:
    """The last evaluations: from the cache of losses and accuracies, or else from the journal."""
    named = [header.path for header in caches.headers if header.metric == PERFORMANCE]
    if not named:
        return _journalled(caches.run.fetch(caches.run.journal))
    values = {layer.name: layer.measured for layer in read_cache(named[0]).layers}
    last = {name: curve[np.isfinite(curve)][-1:] for name, curve in values.items()}
    return {name: float(value[0]) for name, value in last.items() if len(value)}


def _journalled(path: Path) -> dict[str, float]:
    """The newest of every number in a run's journal; its last line may be half written."""
    newest: dict[str, float] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            newest |= json.loads(line)
    return newest
