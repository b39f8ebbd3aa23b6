"""Conservation laws: charges of a model's parameters, in arrays.

A charge is a fixed combination of reductions of the parameters. Quadratic laws (scale,
rescale) combine row sums, column sums and elements of θ²: ``q = ⟨θ, θ⟩_S``. Linear laws
(translation) combine those of θ itself: ``s = ⟨c, θ⟩``.

Shape letters: K laws, M reductions, R rows of a projection.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from Utils.storage import open_hdf5, write_hdf5

Kind = Literal["scale", "rescale", "translation"]
KINDS: tuple[Kind, ...] = ("scale", "rescale", "translation")

_BLOCK = 1 << 16
"""Numbers squared at a time, half a megabyte."""


@dataclass(frozen=True)
class Reduction:
    """A linear map from one parameter-shaped tensor to a vector.

    Attributes:
        parameter: its name.
        kind: "row" sums over all axes but the first; "column" over all but the second, per
            group; "element" flattens; "projection" combines the entries of one axis.
        groups: groups of a grouped convolution, for "column".
        axis: the combined axis, for "projection".
        basis: the combinations [R][entries of the axis], for "projection".
    """

    parameter: str
    kind: Literal["row", "column", "element", "projection"]
    groups: int = 1
    axis: int = 0
    basis: tuple[tuple[float, ...], ...] = ()

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

    def outputs(self, shape: Sequence[int]) -> int:
        """How many numbers a tensor of the parameter's shape is reduced to."""
        if self.kind == "element":
            return prod(shape)
        if self.kind == "row":
            return shape[0]
        if self.kind == "column":
            return self.groups * shape[1]
        return len(self.basis) * (prod(shape) // shape[self.axis])

    def transpose(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """The adjoint, ⟨Rx, y⟩ = ⟨x, Rᵀy⟩: [outputs] -> the parameter's shape.

        Args:
            y: a number for each output.
            shape: of the parameter.
        """
        if self.kind == "element":
            return y.reshape(tuple(shape))
        if self.kind == "row":
            return y.view(-1, *[1] * (len(shape) - 1)).expand(tuple(shape))
        if self.kind == "column":
            per_group = y.view(self.groups, 1, shape[1], 1)
            height, width = shape[0] // self.groups, prod(shape[2:])
            return per_group.expand(-1, height, -1, width).reshape(tuple(shape))
        basis = _basis(self.basis, y.dtype, y.device)
        flat = basis.T @ y.view(len(self.basis), -1)
        others = [size for axis, size in enumerate(shape) if axis != self.axis]
        return flat.view(shape[self.axis], *others).movedim(0, self.axis)


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

    def reduce(self, x: Callable[[str], Tensor], absolute: bool = False) -> NDArray[np.float64]:
        """The reductions [M] of parameter-shaped tensors, given by the parameter's name."""
        parts = [reduction(x(reduction.parameter), absolute) for reduction in self.reductions]
        reduced: NDArray[np.float64] = (
            torch.cat(parts).double().cpu().numpy() if parts else np.zeros(0)
        )
        return reduced

    def reduce_squares(self, parameter: Callable[[str], Tensor]) -> NDArray[np.float64]:
        """The reductions [M] of θ², in float64, for parameters given by name."""
        parts = [
            part
            for name, same in groupby(self.reductions, lambda reduction: reduction.parameter)
            for part in _squared(parameter(name), list(same))
        ]
        reduced: NDArray[np.float64] = torch.cat(parts).cpu().numpy() if parts else np.zeros(0)
        return reduced

    def evaluate(self, x: Callable[[str], Tensor], absolute: bool = False) -> NDArray[np.float64]:
        """The charges [K] of parameter-shaped tensors.

        Args:
            x: gives the tensor (θ² for quadratic laws, θ for linear ones) of a parameter.
            absolute: take all coefficients by their size, as the scale of rounding errors.
        """
        matrix = abs(self.matrix) if absolute else self.matrix
        values: NDArray[np.float64] = matrix @ self.reduce(x, absolute)
        return values

    def transpose(
        self, y: NDArray[np.float64], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, Tensor]:
        """The adjoint of :meth:`evaluate`: Σ_k y_k × the coefficients of charge k.

        Args:
            y: [K], a number for each charge.
            shapes: of all parameters, by name.

        Returns:
            float64 tensors of the shapes of the parameters that are involved.
        """
        weights, start = torch.from_numpy(self.matrix.T @ y), 0
        combined: dict[str, Tensor] = {}
        for reduction in self.reductions:
            name, shape = reduction.parameter, shapes[reduction.parameter]
            stop = start + reduction.outputs(shape)
            if weights[start:stop].any():
                part = reduction.transpose(weights[start:stop], shape)
                combined[name] = combined[name] + part if name in combined else part
            start = stop
        return combined


@dataclass(frozen=True)
class Family:
    """The laws of one kind that one set of parameters obeys, one law per unit.

    Attributes:
        kind: "scale", "rescale" or "translation".
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
        squares = self.quadratic.reduce_squares(parameter)
        linear = self.linear.evaluate(lambda name: parameter(name).double())
        linear_size = self.linear.evaluate(lambda name: parameter(name).double().abs(), True)
        charges = np.concatenate([self.quadratic.matrix @ squares, linear])
        return charges, np.concatenate([abs(self.quadratic.matrix) @ squares, linear_size])

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
    basis: list[list[float]] = fields.pop("basis")  # type: ignore[assignment]
    return Reduction(**fields, basis=tuple(map(tuple, basis)))  # type: ignore[arg-type]


def _brief(names: tuple[str, ...], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
