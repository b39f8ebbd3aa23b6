"""An experiment's cache as arrays: everything that the figures of exponents need.

Shape letters: R runs, T steps.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from Metrics.figures._cache import Array
from Metrics.fits import Verdict
from Metrics.width import table as tables
from Metrics.width.layout import HEAD
from Utils.storage import datasets, open_hdf5

ADVICE = "run cache.py for this experiment again, with --overwrite"


@dataclass(frozen=True)
class FittedExponent:
    """A line of the cache's table; the columns are explained in docs/metrics/coordinates.md."""

    group: str
    quantity: str
    layer: str
    step: int
    exponent: float
    interval: float
    predicted: Fraction | None
    verdict: Verdict

    def cell(self) -> str:
        """As in the terminal's table: "-0.51±0.04 (-1/2)"."""
        return tables.cell(self.exponent, self.interval, self.predicted, self.verdict)

    def label(self) -> str:
        """ "fc1 −0.51 (−1/2)"."""
        theory = "" if self.predicted is None else f" ({self.predicted})"
        return f"{self.layer} {tables.signed(self.exponent)}{theory}".replace("-", "−").strip()


@dataclass(frozen=True)
class ExperimentCache:
    """One metric of an experiment.

    Attributes:
        metric: its name.
        kind: of :class:`Metrics.registry.MetricEntry`, which decides on the figure's form.
        title: what the metric is, in a few words.
        ylabel: label of the quantities, in mathtext.
        widths: [R] of the runs.
        seeds: [R] of their initial weights.
        data_seeds: [R] of their examples.
        groups: [R] their labels.
        rates: [R] their --lr.
        diverged: [R] the step at which a run's loss was no longer finite, −1 if it never was.
        parametrizations: a, b and c of the roles, the family and the depth, by group.
        steps: [T].
        curves: [R, T] by quantity and layer; NaN where nothing was measured.
        outputs: [R, N, C] of the untrained networks, examples and outputs; empty if not measured.
        fits: the table of exponents.
        features_hash: of the features it was made from.
        ensembles: what networks say together, by name, a width in each row; empty for metrics of
            single networks.
        limit: the same of the runs of infinite width, which are not in the others; ``None`` if
            there are none.
    """

    metric: str
    kind: str
    title: str
    ylabel: str
    widths: NDArray[Any]
    seeds: NDArray[np.int64]
    data_seeds: NDArray[np.int64]
    groups: NDArray[np.str_]
    rates: Array
    diverged: NDArray[np.int64]
    parametrizations: Mapping[str, Mapping[str, str]]
    steps: NDArray[np.int64]
    curves: Mapping[tuple[str, str], Array]
    outputs: Array
    fits: tuple[FittedExponent, ...]
    features_hash: str
    ensembles: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    limit: "ExperimentCache | None" = None

    @property
    def labels(self) -> list[str]:
        """Of the groups, each once, in their order."""
        return list(dict.fromkeys(self.groups.tolist()))

    def newest(self, group: str, quantity: str) -> list[FittedExponent]:
        """The exponents of a group's quantity, by layer, at the last step that has some."""
        own = [f for f in self.fits if (f.group, f.quantity) == (group, quantity)]
        last = max((f.step for f in own), default=-1)
        return [f for f in own if f.step == last]


def read_experiment(path: Path) -> ExperimentCache:
    """Read a metric's cache; raises ``UserError`` if it is missing, damaged or incomplete."""
    whole = _read(path)
    finite = np.isfinite(whole.widths)
    own = _of(whole, finite)
    return replace(
        own,
        widths=own.widths.astype(np.int64),
        limit=_of(whole, ~finite) if not finite.all() else None,
    )


def joined(cache: ExperimentCache) -> ExperimentCache:
    """All runs of a cache in one, those of infinite width last."""
    if cache.limit is None:
        return cache
    parts = (cache, cache.limit)
    of_runs: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _OF_RUNS
    }
    return replace(
        cache,
        **of_runs,
        curves={what: np.concatenate([p.curves[what] for p in parts]) for what in cache.curves},
        limit=None,
    )


def _of(cache: ExperimentCache, rows: NDArray[np.bool_]) -> ExperimentCache:
    """Some of a cache's runs."""
    outputs = cache.outputs[rows] if cache.outputs.size else cache.outputs
    of_runs: dict[str, Any] = {name: getattr(cache, name)[rows] for name in _OF_RUNS}
    return replace(
        cache,
        **of_runs,
        curves={what: curve[rows] for what, curve in cache.curves.items()},
        outputs=outputs,
    )


_OF_RUNS = ("widths", "seeds", "data_seeds", "groups", "rates", "diverged")


def _read(path: Path) -> ExperimentCache:
    with open_hdf5(path, ADVICE) as h5:
        curves, outputs = {}, np.empty((0, 0, 0))
        for name, dataset in datasets(h5):
            quantity, _, layer = name.partition("/")
            if name in HEAD or quantity in ("fits", "ensembles"):
                continue
            if dataset.ndim == 2:
                curves[quantity, layer] = dataset[()].astype(float)
            else:
                outputs = dataset[:, 0]
        together = {name: dataset[()] for name, dataset in h5.get("ensembles", {}).items()}
        if together:
            together["group"] = _texts(together["group"])
        texts = ("group", "quantity", "layer", "predicted", "verdict")
        table = {column: h5["fits"][column][()] for column in h5["fits"]}
        table |= {column: _texts(table[column]) for column in texts}
        return ExperimentCache(
            metric=str(h5.attrs["metric"]),
            kind=str(h5.attrs["kind"]),
            title=str(h5.attrs["title"]),
            ylabel=str(h5.attrs["ylabel"]),
            widths=h5["widths"][()],
            seeds=h5["seeds"][()],
            data_seeds=h5["data_seeds" if "data_seeds" in h5 else "seeds"][()],  # of older ones
            groups=_texts(h5["groups"][()]),
            rates=h5["rates"][()],
            diverged=h5["diverged"][()],
            parametrizations={
                label: json.loads(text)
                for label, text in zip(
                    _texts(h5["groups"][()]).tolist(), h5["exponents"][()], strict=True
                )
            },
            steps=h5["steps"][()],
            curves=curves,
            outputs=outputs,
            fits=tuple(_fit(table, line) for line in range(len(table["group"]))),
            features_hash=str(h5.attrs["features_hash"]),
            ensembles=together,
        )


def _texts(encoded: Any) -> Any:
    return np.char.decode(encoded, "utf-8")


def _fit(table: Mapping[str, NDArray[np.generic]], line: int) -> FittedExponent:
    value = {column: values[line].item() for column, values in table.items()}
    predicted = value["predicted"]
    return FittedExponent(
        group=value["group"],
        quantity=value["quantity"],
        layer=value["layer"],
        step=value["step"],
        exponent=value["exponent"],
        interval=value["interval"],
        predicted=Fraction(predicted) if predicted else None,
        verdict=value["verdict"],
    )
