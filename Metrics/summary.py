"""How far measurements are from their laws, in one table."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Utils.storage import open_hdf5


@dataclass(frozen=True)
class Deviation:
    """The largest relative deviations of a metric, over its open laws and all steps.

    Attributes:
        run: the name of the run.
        metric: its name.
        laws: how many it has; open, how many of their gates are open.
        exact: |measured − exact law| / size.
        paper: |measured − the paper's continuous law| / size.
        leak: what the broken symmetry has moved, / size.
    """

    run: str
    metric: str
    laws: int
    open: int
    exact: float
    paper: float
    leak: float


def deviation(cache: Path) -> Deviation | None:
    """The deviations in one cache; ``None`` for a metric without laws.

    Raises:
        UserError: the cache is missing or damaged.
    """
    with open_hdf5(cache, "run cache.py again") as file:
        if file.attrs["kind"] != "law":
            return None
        laws, worst = [], np.zeros((0, 3))
        for layer in file.get("gate", ()):
            gate = file["gate"][layer][()].astype(bool)
            measured, size = file["empirical"][layer][()], file["size"][layer][()]
            size = np.where(size > 0, size, 1.0)
            exact, paper = file["exact"][layer][()], file["theoretical"][layer][()]
            moved = file["leak"][layer][()]
            relative = [np.abs(x) / size for x in (measured - exact, measured - paper, moved)]
            laws += gate.tolist()
            worst = np.vstack([worst, *([x[:, gate].max(initial=0.0) for x in relative],)])
        exact_, paper_, leak_ = worst.max(axis=0, initial=0.0).tolist()
        run = cache.parent.parent.name
        return Deviation(
            run, str(file.attrs["metric"]), len(laws), sum(laws), exact_, paper_, leak_
        )


def deviation_table(caches: list[Path]) -> str:
    """One line per run and metric that has laws.

    Args:
        caches: cache files of any metrics and runs.
    """
    head = ("run", "metric", "laws", "open", "exact law", "paper", "leak")
    rows = [
        (
            d.run,
            d.metric,
            str(d.laws),
            str(d.open),
            *(f"{x:.1e}" for x in (d.exact, d.paper, d.leak)),
        )
        for d in map(deviation, caches)
        if d is not None and d.laws
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = (
        "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in [head, *rows]
    )
    note = "largest |measured − predicted| / size, over all checkpoints and laws with an open gate"
    return "\n".join([note, *lines]) if rows else "no conservation laws in this run"
