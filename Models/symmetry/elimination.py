"""Sparse linear relations between many unknowns, and the unknowns that they leave free.

Shape letters: R relations, V unknowns.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TOLERANCE = 1e-9
"""What is smaller than this, relative to what cancelled in it, is zero."""

_PIVOT = 1e-3  # the smallest pivot, relative to the largest coefficient of its relation
_DENSE = 4_000_000  # the largest block [relations x unknowns] that is worth eliminating


def eliminate(rows: sparse.csr_matrix) -> sparse.csr_matrix:
    """The general solution of ``rows @ v = 0``.

    Unknowns that occur in one relation only are solved for first, again and again; this leaves
    small blocks for dense elimination. Unknowns of a block too large for that are set to zero,
    which is a solution, though not the general one.

    Args:
        rows: [R, V].

    Returns:
        a matrix M [V, V] with ``v = M @ v`` for every solution v (of those found), and
        ``rows @ M = 0``; the columns of unknowns that are not free are empty.
    """
    used = np.unique(rows.indices)
    peeled, rest = _peel(_normalised_rows(rows[:, used]))
    solution = _eliminate_blocks(rest)
    for expression in reversed(peeled):
        solution = product(expression, solution)
    return _embedded(solution, used, rows.shape[1])


def product(a: sparse.csr_matrix, b: sparse.csr_matrix) -> sparse.csr_matrix:
    """The product of two sparse matrices, without entries that are rounding errors."""
    exact = sparse.csr_matrix(a @ b)
    sizes = sparse.csr_matrix(abs(a) @ abs(b))
    kept = exact.multiply(abs(exact) > TOLERANCE * sizes).tocsr()
    kept.sort_indices()
    kept.eliminate_zeros()
    return kept


def scaled_rows(matrix: sparse.csr_matrix, factors: Floats) -> sparse.csr_matrix:
    """A sparse matrix with each row multiplied by a number."""
    data = matrix.data * np.repeat(factors, np.diff(matrix.indptr))
    return sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _normalised_rows(rows: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same relations with 1 as their largest coefficient; no relation is empty."""
    if not rows.nnz:
        return rows
    return scaled_rows(rows, 1 / np.maximum.reduceat(np.abs(rows.data), rows.indptr[:-1]))


def _peel(rows: sparse.csr_matrix) -> tuple[list[sparse.csr_matrix], sparse.csr_matrix]:
    """Solve relations for unknowns that no other remaining relation contains.

    Returns:
        for each round a matrix [V, V] that replaces the unknowns solved for by the others,
        which later rounds may replace in turn; and the remaining relations.
    """
    rounds: list[sparse.csr_matrix] = []
    while True:
        occurrences = np.bincount(rows.indices, minlength=rows.shape[1])
        candidates = (occurrences[rows.indices] == 1) & (np.abs(rows.data) >= _PIVOT)
        entries = np.flatnonzero(candidates)
        if not entries.size:
            return rounds, rows
        row = np.searchsorted(rows.indptr, entries, side="right") - 1
        solved, last = np.unique(row[::-1], return_index=True)  # the last candidate of each row
        pivots = entries[::-1][last]
        rounds.append(_solved(rows[solved], rows.indices[pivots], rows.data[pivots]))
        rows = rows[_others(rows.shape[0], solved)]


def _solved(rows: sparse.csr_matrix, unknowns: Ints, pivots: Floats) -> sparse.csr_matrix:
    """[V, V]: the identity, but ``unknowns[i]`` replaced as relation i tells."""
    size = rows.shape[1]
    identity = np.ones(size)
    identity[unknowns] = 0
    expressions = scaled_rows(rows, -1 / pivots).tocoo()
    others = expressions.col != unknowns[expressions.row]
    replaced = sparse.csr_matrix(
        (expressions.data[others], (unknowns[expressions.row[others]], expressions.col[others])),
        shape=(size, size),
    )
    return sparse.csr_matrix(sparse.diags(identity) + replaced)


def _eliminate_blocks(rows: sparse.csr_matrix) -> sparse.csr_matrix:
    """The general solution by dense elimination of each block of connected relations."""
    size = rows.shape[1]
    kept = np.ones(size)
    parts: list[tuple[Ints, Ints, Floats]] = []
    for members, unknowns in _blocks(rows):
        if len(members) * len(unknowns) > _DENSE:
            kept[unknowns] = 0
            continue
        reduced, pivots = _row_echelon(rows[members][:, unknowns].toarray())
        kept[unknowns[pivots]] = 0
        i, j = np.nonzero(np.where(np.isin(np.arange(len(unknowns)), pivots), 0, reduced))
        parts.append((unknowns[pivots][i], unknowns[j], -reduced[i, j]))
    identity = sparse.csr_matrix(sparse.diags(kept))
    if not parts:
        return identity
    i, j, data = (np.concatenate(part) for part in zip(*parts, strict=True))
    return sparse.csr_matrix(identity + sparse.csr_matrix((data, (i, j)), shape=(size, size)))


def _blocks(rows: sparse.csr_matrix) -> list[tuple[Ints, Ints]]:
    """The relations and the unknowns of each connected block."""
    used = np.unique(rows.indices)
    if not used.size:
        return []
    incidence = sparse.bmat([[None, rows], [rows.T, None]], format="csr")
    _, block = csgraph.connected_components(incidence, directed=False)
    of_row, of_unknown = block[: rows.shape[0]], block[rows.shape[0] :]
    row_order = np.argsort(of_row, kind="stable")
    used = used[np.argsort(of_unknown[used], kind="stable")]
    blocks, row_start = np.unique(of_row[row_order], return_index=True)
    unknown_start = np.searchsorted(of_unknown[used], blocks)
    row_parts = np.split(row_order, row_start[1:])
    return list(zip(row_parts, np.split(used, unknown_start[1:]), strict=True))


def _row_echelon(matrix: Floats) -> tuple[Floats, Ints]:
    """Reduced row echelon form [rank, columns] and its pivot columns, last columns first."""
    matrix = matrix.copy()
    pivots: list[int] = []
    for column in range(matrix.shape[1] - 1, -1, -1):
        rank = len(pivots)
        if rank == len(matrix):
            break
        row = rank + int(np.abs(matrix[rank:, column]).argmax())
        if np.abs(matrix[row, column]) <= TOLERANCE:
            continue
        matrix[[rank, row]] = matrix[[row, rank]]
        matrix[rank] /= matrix[rank, column]
        others = np.arange(len(matrix)) != rank
        matrix[others] -= np.outer(matrix[others, column], matrix[rank])
        pivots.append(column)
    return np.where(np.abs(matrix) > TOLERANCE, matrix, 0)[: len(pivots)], np.array(pivots, int)


def _embedded(matrix: sparse.csr_matrix, used: Ints, size: int) -> sparse.csr_matrix:
    """The matrix on the used unknowns, the identity on the others."""
    entries = matrix.tocoo()
    others = _others(size, used)
    i = np.concatenate([used[entries.row], others])
    j = np.concatenate([used[entries.col], others])
    data = np.concatenate([entries.data, np.ones(len(others))])
    return sparse.csr_matrix((data, (i, j)), shape=(size, size))


def _others(count: int, some: Ints) -> Ints:
    """The numbers below ``count`` that are not among some."""
    mask = np.ones(count, bool)
    mask[some] = False
    return np.flatnonzero(mask)
