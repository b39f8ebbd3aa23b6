"""Conservation laws: charges of a model's parameters, in arrays.

A charge is a fixed combination of reductions of the parameters. Quadratic laws (scale,
rescale) combine row sums, column sums and elements of θ², matrix laws (balance) inner products
between rows or between columns: ``q = ⟨θ, θ⟩_S``. Linear laws (translation) combine sums of θ
itself: ``s = ⟨c, θ⟩``.

Shape letters: K laws, M reductions, R rows of a projection, n rows of a Gram matrix.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from Utils.storage import open_hdf5, write_hdf5

Kind = Literal["scale", "rescale", "balance", "translation"]
KINDS: tuple[Kind, ...] = ("scale", "rescale", "balance", "translation")

_BLOCK = 1 << 16
"""Numbers squared at a time, half a megabyte."""


@dataclass(frozen=True)
class Reduction:
    """A linear map from one parameter-shaped tensor, or a bilinear one from two, to a vector.

    Attributes:
        parameter: its name.
        kind: "row" sums over all axes but the first; "column" over all but the second, per
            group; "element" flattens; "projection" combines the entries of one axis; "gram"
            takes inner products between n slices of one axis, of which there may be copies.
        groups: groups of a grouped convolution, for "column".
        axis: the combined axis, for "projection" and "gram", where −1 stands for the flattened
            parameter.
        basis: the combinations [R][entries of the axis], for "projection".
        places: the slices [copies][n], as places on the axis, for "gram".
    """

    parameter: str
    kind: Literal["row", "column", "element", "projection", "gram"]
    groups: int = 1
    axis: int = 0
    basis: tuple[tuple[float, ...], ...] = ()
    places: tuple[tuple[int, ...], ...] = ()

    @property
    def is_gram(self) -> bool:
        """Whether it is a bilinear map that is no sum over x ∘ y."""
        return self.kind == "gram"

    def __call__(self, x: Tensor, absolute: bool = False) -> Tensor:
        """Reduce ``x``, of the parameter's shape; ``absolute`` takes combinations by size."""
        if self.kind == "element":
            return x.reshape(-1)
        if self.kind == "row":
            return x.flatten(1).sum(1)
        if self.kind == "column":
            per_group = x.reshape(self.groups, x.shape[0] // self.groups, -1).sum(1)
            return per_group.view(self.groups * x.shape[1], -1).sum(1)
        basis = _basis(self.basis, x.dtype, x.device)
        flat = x.movedim(self.axis, 0).flatten(1)
        return ((basis.abs() if absolute else basis) @ flat).reshape(-1)

    def form(self, x: Tensor, y: Tensor) -> Tensor:
        """The bilinear form whose value at x = y is quadratic in x, symmetric in both.

        Args:
            x, y: of the parameter's shape.

        Returns:
            for "gram" the upper triangle, row by row, of (X Yᵀ + Y Xᵀ)/2, where X and Y [n, …]
            are the slices of x and y, summed over copies; else the reduction of x ∘ y.
        """
        if not self.is_gram:
            return self(x * y)
        upper, lower = self._triangles(x, y)
        return (upper + lower) / 2

    def turning(self, x: Tensor, y: Tensor) -> Tensor:
        """What :meth:`form` leaves out: for "gram" the upper triangle of (X Yᵀ − Y Xᵀ)/2, else 0.

        Args:
            x, y: of the parameter's shape.
        """
        if not self.is_gram:
            return torch.zeros_like(self(x))
        upper, lower = self._triangles(x, y)
        return (upper - lower) / 2

    def _triangles(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The upper triangle of X Yᵀ and that of its transpose, row by row."""
        left = self._slices(x)
        gram = left @ (left if y is x else self._slices(y)).T
        rows, columns = _triangle(len(gram), x.device)
        return gram[rows, columns], gram[columns, rows]

    def _slices(self, x: Tensor) -> Tensor:
        """[n, copies × entries of a slice]."""
        flat = x.reshape(-1, 1) if self.axis < 0 else x.movedim(self.axis, 0).flatten(1)
        copies = _places(self.places, x.device)
        return flat[copies].transpose(0, 1).flatten(1)


@lru_cache
def _triangle(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(n, n, device=device)
    return rows, columns


@lru_cache
def _places(places: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(places, device=device)


@lru_cache
def _basis(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=dtype, device=device)


@dataclass(frozen=True)
class Charges:
    """K charges: ``matrix @ concatenated reductions``.

    Attributes:
        reductions: what the charges are combined from.
        matrix: [K, M] float64.
    """

    reductions: tuple[Reduction, ...]
    matrix: sparse.csr_matrix

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def evaluate(self, x: Callable[[str], Tensor], absolute: bool = False) -> NDArray[np.float64]:
        """The linear charges [K] of parameter-shaped tensors.

        Args:
            x: gives the tensor of a parameter.
            absolute: take all coefficients by their size, as the scale of rounding errors.
        """
        parts = (reduction(x(reduction.parameter), absolute) for reduction in self.reductions)
        return self._combined(parts, absolute)

    def form(
        self, x: Callable[[str], Tensor], y: Callable[[str], Tensor], absolute: bool = False
    ) -> NDArray[np.float64]:
        """The bilinear forms [K] ⟨x, y⟩_S of quadratic charges.

        Args:
            x, y: give the tensors of a parameter.
            absolute: take all coefficients by their size.
        """
        parts = (r.form(x(r.parameter), y(r.parameter)) for r in self.reductions)
        return self._combined(parts, absolute)

    def turning(
        self, x: Callable[[str], Tensor], y: Callable[[str], Tensor]
    ) -> NDArray[np.float64]:
        """[K] the antisymmetric matrices J = Σ (X Yᵀ − Y Xᵀ)/2, 0 for all but matrix laws.

        The angular momentum of a frame, for positions x and velocities y: a rotation turns all
        sides of the frame alike, and so they are added up whatever their signs in the charge.

        Args:
            x, y: give the tensors of a parameter.
        """
        parts = (r.turning(x(r.parameter), y(r.parameter)) for r in self.reductions)
        return self._combined(parts, absolute=True)

    def _combined(self, parts: Iterator[Tensor], absolute: bool) -> NDArray[np.float64]:
        held = list(parts)
        reduced = torch.cat(held).double().cpu().numpy() if held else np.zeros(0)
        values: NDArray[np.float64] = (abs(self.matrix) if absolute else self.matrix) @ reduced
        return values

    def squares(
        self, parameter: Callable[[str], Tensor]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The quadratic charges [K] of parameters given by name, and their sizes, in float64.

        The size is what the charge would be if nothing in it cancelled.
        """
        values: list[Tensor] = []
        sizes: list[Tensor] = []
        for (name, gram), same in groupby(self.reductions, lambda r: (r.parameter, r.is_gram)):
            reductions, x = list(same), parameter(name)
            if gram:
                x = x.double()
                values += [reduction.form(x, x) for reduction in reductions]
                sizes += [reduction.form(x.abs(), x.abs()) for reduction in reductions]
            else:
                squares = _squared(x, reductions)
                values += squares
                sizes += squares
        return self._combined(iter(values), False), self._combined(iter(sizes), True)


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
    """

    quadratic: Charges
    linear: Charges
    families: tuple[Family, ...]
    lawless: tuple[tuple[str, str], ...]
    note: str = ""

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

        The size is what a charge would be if nothing in it cancelled, Σ|s|θ² or Σ|c θ|: what
        deviations are measured against.
        """
        quadratic, quadratic_size = self.quadratic.squares(parameter)
        linear = self.linear.evaluate(lambda name: parameter(name).double())
        linear_size = self.linear.evaluate(lambda name: parameter(name).double().abs(), True)
        charges = np.concatenate([quadratic, linear])
        return charges, np.concatenate([quadratic_size, linear_size])

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
        }
        for name, charges in (("quadratic", self.quadratic), ("linear", self.linear)):
            arrays[f"{name}/reductions"] = json.dumps([asdict(r) for r in charges.reductions])
            for part in ("data", "indices", "indptr", "shape"):
                arrays[f"{name}/matrix/{part}"] = np.asarray(getattr(charges.matrix, part))
        write_hdf5(path, arrays, {"note": self.note})

    @classmethod
    def load(cls, path: Path) -> "Laws":
        """Read laws written by :meth:`save`; raises ``UserError`` if the file is damaged."""
        with open_hdf5(path, "run train.py for this run again") as file:
            families = json.loads(file["families"].asstr()[()])
            lawless = json.loads(file["lawless"].asstr()[()])
            return cls(
                _read_charges(file["quadratic"]),
                _read_charges(file["linear"]),
                tuple(Family(**{**f, "parameters": tuple(f["parameters"])}) for f in families),
                tuple((name, reason) for name, reason in lawless),
                str(file.attrs["note"]),
            )


def _squared(x: Tensor, reductions: Sequence[Reduction]) -> list[Tensor]:
    """Reductions of x² in float64, for one parameter.

    A large weight is squared a few rows at a time, so that float64 copies stay in the
    processor's cache: three times faster than squaring it whole.
    """
    blocks = x.numel() > _BLOCK and x.device.type == "cpu"
    if not blocks or any(r.kind not in {"row", "column"} or r.groups > 1 for r in reductions):
        squares = x.double().square()
        return [reduction(squares) for reduction in reductions]
    flat = x.flatten(1)
    rows = torch.empty(len(flat), dtype=torch.float64)
    columns = torch.zeros(flat.shape[1], dtype=torch.float64)
    height = max(1, _BLOCK // flat.shape[1])
    buffer = torch.empty(height, flat.shape[1], dtype=torch.float64)
    for start in range(0, len(flat), height):
        part = flat[start : start + height]
        block = buffer[: len(part)].copy_(part).square_()
        torch.sum(block, 1, out=rows[start : start + height])
        columns += block.sum(0)
    sums_of = {"row": rows, "column": columns.view(x.shape[1], -1).sum(1)}
    return [sums_of[reduction.kind] for reduction in reductions]


def _read_charges(group: h5py.Group) -> Charges:
    parts = (group["matrix"][name][()] for name in ("data", "indices", "indptr"))
    matrix = sparse.csr_matrix(tuple(parts), shape=tuple(group["matrix/shape"][()]))
    reductions = json.loads(group["reductions"].asstr()[()])
    return Charges(tuple(_reduction(fields) for fields in reductions), matrix)


def _reduction(fields: dict[str, object]) -> Reduction:
    tables = {key: tuple(map(tuple, fields.pop(key))) for key in ("basis", "places")}  # type: ignore[call-overload]
    return Reduction(**fields, **tables)  # type: ignore[arg-type]


def _brief(names: tuple[str, ...], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
