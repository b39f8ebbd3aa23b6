"""Conservation laws: the charges of a model by kind and layer, and the file that holds them.

Scale, rescale and balance laws are quadratic, ``q = ⟨θ, θ⟩_S``; translation laws are linear,
``s = ⟨c, θ⟩``. Where steps of parameter p are s_p η g, the symmetries S and c conserve Σ S θ²/s and
Σ c θ/s instead: those of φ = θ/√s, which moves by η ∂L/∂φ.

Shape letters: K laws.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from Models.symmetry.charges import Charges
from Models.symmetry.reductions import Reduction
from Utils.storage import open_hdf5, write_hdf5

Kind = Literal["scale", "rescale", "balance", "translation"]
KINDS: tuple[Kind, ...] = ("scale", "rescale", "balance", "translation")


@dataclass(frozen=True)
class Family:
    """The laws of one kind that one set of parameters obeys, one law per unit.

    Attributes:
        kind: "scale", "rescale", "balance" or "translation". The n(n+1)/2 laws of a "balance"
            are the upper triangle of a symmetric matrix, row by row.
        layer: a short name, unique within its kind, without "/".
        start, stop: its laws' positions among all laws.
        parameters: the parameters its charges are made of.
    """

    kind: Kind
    layer: str
    start: int
    stop: int
    parameters: tuple[str, ...]

    @property
    def units(self) -> slice:
        return slice(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Laws:
    """All conservation laws of a model; quadratic ones come first.

    Attributes:
        quadratic: charges of scale and rescale laws.
        linear: charges of translation laws.
        families: the laws by kind and layer, in order.
        lawless: parameters in no law, each with the reason.
        note: why nothing could be found at all; empty if something could.
        rates: s of parameters by name; those that are not named have 1.
    """

    quadratic: Charges
    linear: Charges
    families: tuple[Family, ...]
    lawless: tuple[tuple[str, str], ...]
    note: str = ""
    rates: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.quadratic) + len(self.linear)

    def of_kind(self, kind: Kind) -> Iterator[Family]:
        """The families of one kind."""
        return (family for family in self.families if family.kind == kind)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Every parameter that a law involves, in order of appearance."""
        return tuple(dict.fromkeys(p for family in self.families for p in family.parameters))

    def measure(self, parameter: Callable[[str], Tensor]) -> NDArray[np.float64]:
        """The charges [K] of parameters given by name, computed in float64."""
        return self.measure_with_sizes(parameter)[0]

    def measure_with_sizes(
        self, parameter: Callable[[str], Tensor]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The charges [K] of parameters given by name, and their sizes [K], in float64.

        The size is what a charge would be if nothing in it cancelled, Σ|S|θ²/s or Σ|c θ|/s: what
        deviations are measured against.
        """
        return self.combined(self.reduced(parameter).cpu().numpy())

    def reduced(self, parameter: Callable[[str], Tensor]) -> Tensor:
        """What charges and their sizes are combined from, in float64 where the parameters are."""
        reduced = [
            self.scaled(charges.reductions, parts, -1)
            for charges, both in (
                (self.quadratic, self.quadratic.squares(parameter)),
                (self.linear, self.linear.sums(parameter)),
            )
            for parts in both
        ]
        parts = [part for parts in reduced for part in parts]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def scaled(
        self, reductions: Sequence[Reduction], parts: Sequence[Tensor], power: int
    ) -> list[Tensor]:
        """What reductions have made of their parameters, each times a power of its s.

        Args:
            reductions: of the charges.
            parts: what each has made.
            power: −1 of θ and θ², 1 of squares of gradients, whose counterparts for φ these are.
        """
        if not self.rates:
            return list(parts)
        rates = (self.rates.get(reduction.parameter, 1.0) for reduction in reductions)
        pairs = zip(parts, rates, strict=True)
        return [part if rate == 1 else part * rate**power for part, rate in pairs]

    def combined(
        self, reduced: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Charges and sizes, each [..., K], of what :meth:`reduced` gives, of several networks."""
        q, s = self.quadratic.matrix.shape[1], self.linear.matrix.shape[1]
        squares, square_sizes, sums, sum_sizes = np.split(reduced, np.cumsum([q, q, s]), axis=-1)
        charges = [self.quadratic.combined(squares), self.linear.combined(sums)]
        sizes = [self.quadratic.combined(square_sizes, True), self.linear.combined(sum_sizes, True)]
        return np.concatenate(charges, axis=-1), np.concatenate(sizes, axis=-1)

    def table(self) -> str:
        """The laws as a text table: kind, layer, number of laws, parameters; then the rest."""
        if self.note:
            return f"no laws: {self.note}"
        head = ("kind", "layer", "laws", "parameters")
        rows = [(f.kind, f.layer, str(len(f)), _brief(f.parameters)) for f in self.families]
        text = _aligned([head, *rows]) + f"\n{len(self)} laws"
        if self.lawless:
            text += "\n\nparameters without a law\n" + _aligned(self.lawless)
        return text

    def save(self, path: Path) -> None:
        """Write the laws to an HDF5 file."""
        arrays: dict[str, object] = {
            "families": json.dumps([asdict(family) for family in self.families]),
            "lawless": json.dumps(self.lawless),
            "rates": json.dumps(dict(self.rates)),
        }
        for name, charges in (("quadratic", self.quadratic), ("linear", self.linear)):
            arrays[f"{name}/reductions"] = json.dumps([asdict(r) for r in charges.reductions])
            for part in ("data", "indices", "indptr", "shape"):
                arrays[f"{name}/matrix/{part}"] = np.asarray(getattr(charges.matrix, part))
        write_hdf5(path, arrays, {"note": self.note})

    @classmethod
    def load(cls, path: Path) -> "Laws":
        """Read laws written by :meth:`save`; raises ``UserError`` if the file is damaged."""
        with open_hdf5(path, "delete it and run train.py for this run again") as file:
            families = json.loads(file["families"].asstr()[()])
            lawless = json.loads(file["lawless"].asstr()[()])
            return cls(
                _read_charges(file["quadratic"]),
                _read_charges(file["linear"]),
                tuple(Family(**{**f, "parameters": tuple(f["parameters"])}) for f in families),
                tuple((name, reason) for name, reason in lawless),
                str(file.attrs["note"]),
                json.loads(file["rates"].asstr()[()]) if "rates" in file else {},
            )


def _read_charges(group: h5py.Group) -> Charges:
    parts = (group["matrix"][name][()] for name in ("data", "indices", "indptr"))
    matrix = sparse.csr_matrix(tuple(parts), shape=tuple(group["matrix/shape"][()]))
    reductions = json.loads(group["reductions"].asstr()[()])
    return Charges(tuple(_reduction(fields) for fields in reductions), matrix)


def _reduction(fields: dict[str, Any]) -> Reduction:
    return Reduction(**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _brief(names: tuple[str, ...], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
