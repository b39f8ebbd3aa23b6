"""How far measurements are from their laws, in one table."""

import re
from dataclasses import dataclass
from math import isnan
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from Utils.storage import open_hdf5

_PARTED = 0.1
"""RMSE, relative to how far the outputs have moved, from which on two networks are said to part."""


@dataclass(frozen=True)
class Deviation:
    """The largest relative deviations of a metric, over its open laws and all steps.

    Attributes:
        run: the name of the run.
        metric: its name, followed by the layer's where it is about one layer.
        laws: how many it has.
        open: how many of their gates are open.
        worst: |measured − exact law| / size, |measured − the paper's continuous law| / size,
            and what the broken symmetry has moved / size; NaN without a theory.
        closed: the layers with closed gates, each with the reason.
    """

    run: str
    metric: str
    laws: int
    open: int
    worst: tuple[float, float, float]
    closed: tuple[tuple[str, str], ...]

    def row(self) -> tuple[str, ...]:
        """Its line in the table; nothing is claimed where no gate is open or nothing is known."""
        worst = (f"{x:.1e}" if self.open and not isnan(x) else "–" for x in self.worst)
        return (self.run, self.metric, str(self.laws), str(self.open), *worst)


def deviation(cache: Path, layer: str | None = None) -> Deviation | None:
    """The deviations in one cache; ``None`` for a metric that has no laws by its nature.

    Args:
        cache: the file.
        layer: only its laws; those of all layers if not given.

    Raises:
        UserError: the cache is missing or damaged.
    """
    with open_hdf5(cache, "run cache.py again") as file:
        if file.attrs["kind"] != "law":
            return None
        layers = list(file.get("gate", {})) if layer is None else [layer]
        gates = {name: file["gate"][name][()].astype(bool) for name in layers}
        worst = [_worst(file, name, gate) for name, gate in gates.items()]
        reasons = {name: file["gate"][name].attrs["reason"] for name in gates}
        exact, paper, leak = np.max([(0.0, 0.0, 0.0), *worst], axis=0).tolist()
        metric = str(file.attrs["metric"])
        return Deviation(
            run=cache.parent.parent.name,
            metric=metric if layer is None else f"{metric} {layer}",
            laws=sum(map(len, gates.values())),
            open=int(sum(gate.sum() for gate in gates.values())),
            worst=(exact, paper, leak),
            closed=tuple((name, why) for name, why in reasons.items() if why),
        )


def _worst(file: h5py.File, layer: str, gate: NDArray[np.bool_]) -> tuple[float, float, float]:
    """A layer's largest deviations from the exact and the paper's law, and its largest leak."""
    curves = ("empirical", "size", "exact", "theoretical", "leak")
    measured, size, exact, paper, leak = (file[name][layer][()][:, gate] for name in curves)
    size = np.where(size > 0, size, 1.0)
    relative = (np.abs(x) / size for x in (measured - exact, measured - paper, leak))
    first, second, third = (float(x.max(initial=0.0)) for x in relative)
    return first, second, third


def deviation_table(caches: list[Path], by_layer: bool = False) -> str:
    """One line per run and metric that has laws, and one per cause where they do not apply.

    Certificates and linear models have a line each, below the table.

    Args:
        caches: cache files of any metrics and runs.
        by_layer: one line per layer of each metric instead.

    Returns:
        the table; empty if no metric among them is about laws.
    """
    certified = [line for cache in caches for line in _certified(cache)]
    parted = [line for cache in caches for line in _parted(cache)]
    return "\n".join([*_law_lines(caches, by_layer), *certified, *parted])


def _law_lines(caches: list[Path], by_layer: bool) -> list[str]:
    wanted = [(c, layer) for c in caches for layer in (_layers(c) if by_layer else [None])]
    deviations = [d for d in (deviation(*which) for which in wanted) if d is not None]
    if not any(d.laws for d in deviations):
        return ["no conservation laws; train.py --list-laws tells why"] if deviations else []
    rows: list[tuple[str, ...]] = [("run", "metric", "laws", "open", "exact law", "paper", "leak")]
    rows += [d.row() for d in deviations if d.laws]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(_justified, range(len(row)), row, widths)) for row in rows]
    closed = [line for d in deviations for line in _closed_lines(d, by_layer)]
    note = "largest |measured − predicted| / size, over all checkpoints and laws with an open gate"
    return [note, *lines, *closed]


def _closed_lines(d: Deviation, by_layer: bool) -> list[str]:
    """One line for each cause of closed gates, told of the first layer that it has closed.

    A network under an optimizer that breaks every symmetry has dozens of closed layers whose
    reasons differ in their numbers only.
    """
    alike: dict[str, list[tuple[str, str]]] = {}
    for name, why in d.closed:
        alike.setdefault(re.sub(r"\d\S*", "", why), []).append((name, why))
    lines = []
    for (name, why), *more in alike.values():
        layer = "" if by_layer else f" {name}"  # which is in the metric's name there
        others = f" (and {len(more)} more layer{'s' * (len(more) > 1)} alike)" if more else ""
        lines.append(f"closed: {d.run} {d.metric}{layer}: {why}{others}")
    return lines


def _certified(cache: Path) -> list[str]:
    """What a certificate's newest gates say, and how far the logits have moved at any step."""
    with open_hdf5(cache, "run cache.py again") as file:
        if file.attrs["kind"] != "certificate" or "gate" not in file:
            return []
        run, gates = cache.parent.parent.name, file["gate"]
        laws, held = (sum(map(count, gates.values())) for count in (len, lambda g: g[()].sum()))
        moved = max(float(np.max(curve[()])) for curve in file["logits"].values())
        closed = [f"not certified: {run} {n}: {g.attrs['reason']}" for n, g in gates.items()]
        return [
            f"certified: {run} {held} of {laws} laws; logits moved by up to {moved:.1e}",
            *(
                line
                for line, gate in zip(closed, gates.values(), strict=True)
                if not gate[()].all()
            ),
        ]


def _parted(cache: Path) -> list[str]:
    """When a network's outputs leave those of the linear model that takes the same steps."""
    with open_hdf5(cache, "run cache.py again") as file:
        if file.attrs["kind"] != "linearized":
            return []
        moved, apart = file["empirical/outputs"][:, 0], file["weights/outputs"][()]
        left = file["steps"][()][(apart > _PARTED * moved) & (moved > 0)]
        run, part = cache.parent.parent.name, f"{_PARTED:.0%} of their change"
        told = f"linearized: {run}: outputs differ from the linear model's by"
        if not len(left):
            return [f"{told} less than {part}"]
        last = f"by {apart[-1] / moved[-1]:.0%} at the last step"
        return [f"{told} more than {part}, first at step {left[0]}; {last}"]


def _justified(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)  # names, then numbers


def _layers(cache: Path) -> list[str | None]:
    with open_hdf5(cache, "run cache.py again") as file:
        return list(file.get("gate", {}))
