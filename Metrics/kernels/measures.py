"""What kernels and networks are compared by: formulas of plain arrays, in float64.

Shape letters: N examples, C outputs, T checkpoints, k dimensions of a subspace.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import subspace_angles

Floats = NDArray[np.float64]


def matrix(kernel: NDArray[np.floating]) -> Floats:
    """A traced kernel [N, N] as it is, a full one [N, N, C, C] as a matrix [NC, NC]; float64."""
    wide = np.asarray(kernel, np.float64)
    if wide.ndim == 2:
        return wide
    examples, _, outputs, _ = wide.shape
    return wide.transpose(0, 2, 1, 3).reshape(examples * outputs, examples * outputs)


def traced(kernel: NDArray[np.floating]) -> Floats:
    """The mean over the outputs of a full kernel's blocks Θ_cc [N, N]; a traced one as it is."""
    wide = np.asarray(kernel, np.float64)
    if wide.ndim == 2:
        return wide
    mean: Floats = np.trace(wide, axis1=2, axis2=3) / wide.shape[2]
    return mean


def centred(kernel: Floats) -> Floats:
    """H K H with H = 1 − 11ᵀ/N: the kernel of features whose mean over the examples is zero."""
    rows = kernel - kernel.mean(0, keepdims=True)
    both: Floats = rows - rows.mean(1, keepdims=True)
    return both


def cosine(left: Floats, right: Floats) -> float:
    """⟨A, B⟩_F / (|A|_F |B|_F), NaN if one of them is zero."""
    sizes = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(np.vdot(left, right)) / sizes if sizes else float("nan")


def cosines(kernels: Floats) -> Floats:
    """[T, T] cosines between all pairs of [T, ...] arrays."""
    return 1 - _apart(kernels)


def _apart(kernels: Floats) -> Floats:
    """[T, T] 1 − cosine, half the squared distance of unit vectors: exact also for small ones."""
    flat = kernels.reshape(len(kernels), -1)
    sizes = np.linalg.norm(flat, axis=1, keepdims=True)
    units = np.divide(flat, sizes, out=np.full_like(flat, np.nan), where=sizes > 0)
    return np.array([np.square(units - unit).sum(1) / 2 for unit in units])


def kernel_distances(kernels: Floats) -> Floats:
    """[T, T] S(t, t') = 1 − ⟨Θ_t, Θ_t'⟩ / (|Θ_t| |Θ_t'|) (Fort et al. 2020)."""
    distances = _apart(kernels)
    np.fill_diagonal(distances, 0.0)
    return distances


def alignment(kernel: Floats, targets: Floats) -> float:
    """A(K, YYᵀ), the cosine between a kernel and that of the targets [N, C].

    Cristianini et al. (2001); for one output it is yᵀKy / (|K|_F |y|²).
    """
    return cosine(kernel, targets @ targets.T)


def centred_alignment(kernel: Floats, targets: Floats) -> float:
    """The same of centred kernels (Cortes et al. 2012), which is CKA with YYᵀ."""
    return alignment(centred(kernel), targets - targets.mean(0))


def cka(left: Floats, right: Floats) -> float:
    """Centred kernel alignment of two kernels (Kornblith et al. 2019, with the biased HSIC)."""
    return cosine(centred(left), centred(right))


def eigenvalues(kernel: Floats) -> Floats:
    """[N] of a symmetric matrix, largest first; NaN of one that is not finite."""
    if not np.isfinite(kernel).all():
        return np.full(len(kernel), np.nan)
    values: Floats = np.linalg.eigvalsh(kernel)[::-1].astype(np.float64)
    return values


def eigenvectors(kernel: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues [N] and eigenvectors [N, N] likewise."""
    if not np.isfinite(kernel).all():
        return np.full(len(kernel), np.nan), np.full_like(kernel, np.nan)
    values, vectors = np.linalg.eigh(kernel)
    return values[::-1].copy(), vectors[:, ::-1].copy()


def cka_distance(left: Floats, right: Floats) -> float:
    """1 − CKA, as half the squared distance of unit vectors: exact also for small ones."""
    units = []
    for kernel in map(centred, (left, right)):
        size = float(np.linalg.norm(kernel))
        units.append(kernel / size if size else np.full_like(kernel, np.nan))
    return float(np.square(units[0] - units[1]).sum()) / 2


def effective_rank(values: Floats) -> float:
    """exp of the entropy of λ/Σλ (Roy and Vetterli 2007); rounding below zero counts as zero."""
    positive = values[values > 0]
    parts = positive / positive.sum()
    return float(np.exp(-np.sum(parts * np.log(parts)))) if len(parts) else float("nan")


def participation_ratio(values: Floats) -> float:
    """(Σλ)² / Σλ²."""
    squares = float(np.square(values).sum())
    return float(values.sum()) ** 2 / squares if squares else float("nan")


def stable_rank(values: Floats) -> float:
    """Σλ / λ_max: of any J with Θ = JJᵀ, |J|_F² / |J|²; NaN of none."""
    largest = float(values.max(initial=0.0))
    return float(values.sum()) / largest if largest else float("nan")


def condition_number(values: Floats, precision: float) -> float:
    """λ_max / λ_min, infinite where λ_min is not above the rounding of its matrix.

    Args:
        values: [n] eigenvalues; NaN if n = 0.
        precision: machine epsilon of the number format in which the kernel was computed.
    """
    if not len(values):
        return float("nan")
    smallest, largest = float(values.min()), float(values.max())
    return largest / smallest if smallest > len(values) * precision * largest else np.inf


def principal_angles(left: Floats, right: Floats) -> Floats:
    """[k] angles between the spans of two [N, k] arrays, largest first, in radians.

    Björck and Golub (1973), by scipy, to rounding also for small angles; NaN where a span is.
    """
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return np.full(left.shape[1], np.nan)
    angles: Floats = subspace_angles(left, right)
    return angles


def mode_powers(vectors: Floats, residual: Floats) -> Floats:
    """[k] |u_iᵀ R|² / (N C): the parts of the mean square of a residual [N, C] along modes."""
    powers: Floats = np.square(vectors.T @ residual).sum(1) / residual.size
    return powers


def cumulative_power(vectors: Floats, targets: Floats) -> Floats:
    """[k] C(k) = Σ_{i≤k} |u_iᵀ Y|² / |Y|² (Canatar et al. 2021)."""
    powers = np.square(vectors.T @ targets).sum(1)
    total = float(np.square(targets).sum())
    cumulative: Floats = np.cumsum(powers) / total if total else np.full(len(powers), np.nan)
    return cumulative


def relative_norm(change: Floats, start: Floats) -> float:
    """|change| / |start|, Frobenius norms; NaN for a start of zero."""
    size = float(np.linalg.norm(start))
    return float(np.linalg.norm(change)) / size if size else float("nan")
