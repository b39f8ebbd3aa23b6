"""One width metric's cache: ``<experiment>/cache/{metric}{suffix}.h5``.

R being runs and T steps: ``runs``, ``widths`` (floating, as infinity is one), ``seeds`` of
initial weights, ``data_seeds`` of everything else, ``groups``, ``rates``, ``diverged`` (the step at
which, or −1), ``exponents`` (a, b and c as JSON) [R]; ``steps`` [T]; ``sources`` [R, T], which
checkpoints, empty where a run has none;
``<quantity>/<layer>`` [R, T], NaN where nothing was measured, or [R, T, examples, outputs];
``fits/<column>`` [F], the table of exponents, by ``fits/line``; of ``ensemble`` also
``ensembles/<column>`` [E], [E, T] or [E, T, outputs shown], a row for each width. Dimension scales
name the axes.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from Metrics.registry import MetricEntry
from Metrics.width.exponents import COLUMNS, Exponent
from Metrics.width.layout import AXES, HEAD, OF_RUNS, WHOLE
from Metrics.width.members import Group
from Metrics.width.metric import Array, Cell, Cells, Quantity, Values
from Utils.storage import datasets, open_hdf5, write_hdf5

AGAIN = "run cache.py for this experiment again, with --overwrite"


class Measurements:
    """The numbers of all runs, as far as they are known.

    Args:
        path: of the cache; what it holds already is read.
        overwrite: begin anew.

    Attributes:
        cells: every number.
        arrays: what is kept for figures, [N, C] each.
        sources: which checkpoint the numbers of a run's step came from.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, path: Path, overwrite: bool):
        self.cells: Cells = {}
        self.arrays: dict[Cell, Array] = {}
        self.sources: dict[tuple[str, int], str] = {}
        if path.exists() and not overwrite:
            self._read(path)

    def _read(self, path: Path) -> None:
        with open_hdf5(path, AGAIN) as file:
            runs = np.char.decode(file["runs"][()], "utf-8").tolist()
            steps = file["steps"][()].tolist()
            sources = np.char.decode(file["sources"][()], "utf-8")
            curves = {
                name: dataset[()]
                for name, dataset in datasets(file)
                if name not in HEAD and not name.startswith(("fits/", "ensembles/"))
            }
        for r, run in enumerate(runs):
            for t, step in enumerate(steps):
                if sources[r, t]:
                    self.sources[run, step] = sources[r, t]
        for name, values in curves.items():
            quantity, _, layer = name.partition("/")
            what = Quantity(quantity, "" if layer == WHOLE else layer)
            if values.ndim > 2:
                for r, t in np.argwhere(np.isfinite(values).any((2, 3))).tolist():
                    self.arrays[Cell(runs[r], steps[t], what)] = values[r, t]
                continue
            for r, t in np.argwhere(np.isfinite(values)).tolist():
                self.cells[Cell(runs[r], steps[t], what)] = float(values[r, t])

    def keep(self, known: Mapping[tuple[str, int], str]) -> None:
        """Forget what came from other checkpoints than these."""
        self._keep({k: s for k, s in self.sources.items() if known.get(k) == s})

    def keep_runs(self, names: Collection[str]) -> None:
        """Forget other runs than these."""
        self._keep({k: s for k, s in self.sources.items() if k[0] in names})

    def _keep(self, sources: dict[tuple[str, int], str]) -> None:
        self.sources = sources
        self.cells = {c: v for c, v in self.cells.items() if (c.run, c.step) in self.sources}
        self.arrays = {c: v for c, v in self.arrays.items() if (c.run, c.step) in self.sources}

    def add(self, run: str, step: int, source: str, values: Values) -> None:
        """Note the numbers of a run's step."""
        self.sources[run, step] = source
        for quantity, value in values.items():
            cell = Cell(run, step, quantity)
            if isinstance(value, np.ndarray):
                self.arrays[cell] = value
            else:
                self.cells[cell] = value


def write(
    path: Path,
    entry: MetricEntry,
    measured: Measurements,
    groups: Sequence[Group],
    exponents: Sequence[Exponent],
    parametrizations: Mapping[str, Mapping[str, str]],
    ensembles: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Save a cache, atomically.

    Args:
        path: the file.
        entry: the metric.
        measured: all numbers.
        groups: of runs.
        exponents: the table.
        parametrizations: by group, :meth:`Metrics.width.theory.ChainTheory.coordinates`.
        ensembles: of each group what its networks say together, a width in each row.
    """
    members = [(group.label, member) for group in groups for member in group.runs]
    rows = {member.name: r for r, (_, member) in enumerate(members)}
    measured.keep_runs(rows)
    steps = sorted({step for _, step in measured.sources})
    columns = {step: t for t, step in enumerate(steps)}
    sources = np.full((len(rows), len(steps)), "", dtype=object)
    for (run, step), source in measured.sources.items():
        sources[rows[run], columns[step]] = source
    curves: dict[str, Any] = {}
    for cell, value in measured.cells.items():
        curve = curves.setdefault(_name(cell), np.full((len(rows), len(steps)), np.nan))
        curve[rows[cell.run], columns[cell.step]] = value
    samples = _samples(measured.arrays, rows, columns)
    head = {
        "runs": _texts([member.name for _, member in members]),
        "widths": np.array([np.inf if m.is_infinite else m.width for _, m in members], float),
        "seeds": np.array([member.seed for _, member in members], np.int64),
        "data_seeds": np.array([m.hyperparameters["seed"] for _, m in members], np.int64),
        "groups": _texts([label for label, _ in members]),
        "rates": np.array([float(member.flag("lr") or 0) for _, member in members]),
        "diverged": np.array([-1 if m.diverged is None else m.diverged for _, m in members]),
        "exponents": _texts([json.dumps(parametrizations[label]) for label, _ in members]),
        "steps": np.array(steps, np.int64),
        "sources": _texts(sources),
    }
    rows_of_table = [exponent.row() for exponent in exponents]
    table = {f"fits/{name}": _column([row[name] for row in rows_of_table]) for name in COLUMNS}
    scales: dict[str, tuple[str, ...]] = dict.fromkeys((*curves, "sources"), ("runs", "steps"))
    scales |= dict.fromkeys(OF_RUNS, ("runs",))
    scales |= dict.fromkeys(table, ("fits/line",))
    table["fits/line"] = np.arange(len(exponents))
    for values in samples.values():
        head |= {name: np.arange(n) for name, n in zip(AXES, values.shape[2:], strict=True)}
    scales |= dict.fromkeys(samples, ("runs", "steps", *AXES))
    together = _stacked(ensembles)
    for name, values in together.items():
        scales[name] = ("ensembles/line", "steps", "outputs shown")[: values.ndim]
    if together:
        shown = together["ensembles/mean"].shape[2]
        head["outputs shown"] = np.arange(shown)
        together["ensembles/line"] = np.arange(len(together["ensembles/width"]))
    told = (f"{run} {step} {source}" for (run, step), source in sorted(measured.sources.items()))
    write_hdf5(path, head | curves | samples | table | together, entry.attributes(told), scales)


def _stacked(ensembles: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of all groups that have some."""
    known = [tables for tables in ensembles if tables]
    names = known[0] if known else ()
    whole = {name: np.concatenate([tables[name] for tables in known]) for name in names}
    return {
        f"ensembles/{name}": _texts(values) if values.dtype.kind == "U" else values
        for name, values in whole.items()
    }


def _name(cell: Cell) -> str:
    return f"{cell.quantity.name}/{cell.quantity.layer or WHOLE}"


def _samples(
    arrays: Mapping[Cell, Array], rows: Mapping[str, int], columns: Mapping[int, int]
) -> dict[str, Array]:
    """Arrays of all runs [R, T, N, C], NaN where one has fewer examples or outputs."""
    shape = tuple(max((a.shape[i] for a in arrays.values()), default=0) for i in (0, 1))
    samples: dict[str, Array] = {}
    for cell, values in arrays.items():
        empty = np.full((len(rows), len(columns), *shape), np.nan)
        whole = samples.setdefault(_name(cell), empty)
        examples, outputs = values.shape
        whole[rows[cell.run], columns[cell.step], :examples, :outputs] = values
    return samples


def _column(values: list[Any]) -> Any:
    return _texts(values) if not values or isinstance(values[0], str) else np.array(values)


def _texts(values: Any) -> Any:
    return np.char.encode(np.array(values, dtype=str), "utf-8")
