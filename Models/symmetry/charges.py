"""Charges: fixed combinations of reductions of a model's parameters.

Those of quadratic laws combine row sums, column sums and elements of θ², or inner products
between rows or columns: ``q = ⟨θ, θ⟩_S``. Those of linear laws combine sums of θ itself:
``s = ⟨c, θ⟩``.

Shape letters: K laws, M reductions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from Models.symmetry.reductions import Reduction, in_blocks, squared


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
        return self.combined(reduced, absolute)

    def combined(self, reduced: NDArray[np.float64], absolute: bool = False) -> NDArray[np.float64]:
        """The charges [..., K] of reductions [..., M].

        Args:
            reduced: concatenated, of one network or of several.
            absolute: take all coefficients by their size.
        """
        matrix = abs(self.matrix) if absolute else self.matrix
        *several, numbers = reduced.shape
        columns = matrix @ reduced.reshape(prod(several), numbers).T
        return np.ascontiguousarray(columns.T).reshape(*several, len(self))

    def squares(self, parameter: Callable[[str], Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The reductions of squares of parameters given by name, in float64, by absolute size too.

        Combined, the first give quadratic charges; the second, by absolute coefficients, their
        sizes: what they would be if nothing in them cancelled.
        """
        values: list[Tensor] = []
        sizes: list[Tensor] = []
        for (name, gram), same in groupby(self.reductions, lambda r: (r.parameter, r.is_gram)):
            reductions, x = list(same), parameter(name)
            if gram:
                values += [in_blocks(r, x, partial(_gram, r)) for r in reductions]
                sizes += [in_blocks(r, x, partial(_gram_of_sizes, r)) for r in reductions]
            else:
                squares = squared(x, reductions)
                values += squares
                sizes += squares
        return values, sizes

    def sums(self, parameter: Callable[[str], Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The reductions of parameters given by name, as :meth:`squares`, for linear charges."""
        held = [(r, parameter(r.parameter)) for r in self.reductions]
        values = [in_blocks(r, x, partial(_sum, r)) for r, x in held]
        return values, [in_blocks(r, x, partial(_sum_of_sizes, r)) for r, x in held]

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


def _gram(reduction: Reduction, block: Tensor) -> Tensor:
    x = block.double()
    return reduction.form(x, x)


def _gram_of_sizes(reduction: Reduction, block: Tensor) -> Tensor:
    x = block.double().abs()
    return reduction.form(x, x)


def _sum(reduction: Reduction, block: Tensor) -> Tensor:
    return reduction(block.double())


def _sum_of_sizes(reduction: Reduction, block: Tensor) -> Tensor:
    return reduction(block.double().abs(), absolute=True)
