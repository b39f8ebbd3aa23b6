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
    flat = kernels.reshape(len(kernels), -1)
    sizes = np.linalg.norm(flat, axis=1, keepdims=True)
    units = np.divide(flat, sizes, out=np.full_like(flat, np.nan), where=sizes > 0)
    products: Floats = units @ units.T
    return products


def kernel_distances(kernels: Floats) -> Floats:
    """[T, T] S(t, t') = 1 − ⟨Θ_t, Θ_t'⟩ / (|Θ_t| |Θ_t'|) (Fort et al. 2020, equation 3)."""
    distances: Floats = np.maximum(1 - cosines(kernels), 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def alignment(kernel: Floats, targets: Floats) -> float:
    """A(K, YYᵀ), the cosine between a kernel and that of the targets [N, C].

    Cristianini et al. (2001), definition 1; for one output it is yᵀKy / (|K|_F |y|²).
    """
    return cosine(kernel, targets @ targets.T)


def centred_alignment(kernel: Floats, targets: Floats) -> float:
    """The same of centred kernels (Cortes et al. 2012, definition 4), which is CKA with YYᵀ."""
    return alignment(centred(kernel), targets - targets.mean(0))


def cka(left: Floats, right: Floats) -> float:
    """Centred kernel alignment of two kernels (Kornblith et al. 2019, with the biased HSIC)."""
    return cosine(centred(left), centred(right))


def effective_rank(eigenvalues: Floats) -> float:
    """exp of the entropy of λ/Σλ (Roy and Vetterli 2007); rounding below zero counts as zero."""
    positive = eigenvalues[eigenvalues > 0]
    parts = positive / positive.sum()
    return float(np.exp(-np.sum(parts * np.log(parts)))) if len(parts) else float("nan")


def participation_ratio(eigenvalues: Floats) -> float:
    """(Σλ)² / Σλ²."""
    squares = float(np.square(eigenvalues).sum())
    return float(eigenvalues.sum()) ** 2 / squares if squares else float("nan")


def stable_rank(eigenvalues: Floats) -> float:
    """Σλ / λ_max: of any J with Θ = JJᵀ, |J|_F² / |J|²."""
    largest = float(eigenvalues.max())
    return float(eigenvalues.sum()) / largest if largest else float("nan")


def condition_number(eigenvalues: Floats, precision: float) -> float:
    """λ_max / λ_min, infinite where λ_min is not above the rounding of its matrix.

    Args:
        eigenvalues: [n].
        precision: machine epsilon of the number format in which the kernel was computed.
    """
    smallest, largest = float(eigenvalues.min()), float(eigenvalues.max())
    return largest / smallest if smallest > len(eigenvalues) * precision * largest else np.inf


def top_eigenspace(kernel: Floats, dimensions: int) -> Floats:
    """[N, k] orthonormal eigenvectors of the k largest eigenvalues, largest first."""
    vectors: Floats = np.linalg.eigh(kernel)[1][:, ::-1][:, :dimensions]
    return np.ascontiguousarray(vectors)


def principal_angles(left: Floats, right: Floats) -> Floats:
    """[k] angles between the spans of two [N, k] arrays, largest first, in radians.

    Björck and Golub (1973), by scipy, to rounding also for small angles.
    """
    angles: Floats = subspace_angles(left, right)
    return angles


def mode_powers(vectors: Floats, residual: Floats) -> Floats:
    """[k] |u_iᵀ R|² / (N C): the parts of the mean square of a residual [N, C] along modes."""
    powers: Floats = np.square(vectors.T @ residual).sum(1) / residual.size
    return powers


def cumulative_power(vectors: Floats, targets: Floats) -> Floats:
    """[k] C(k) = Σ_{i≤k} |u_iᵀ Y|² / |Y|² (Canatar et al. 2021, equation 6)."""
    powers = np.square(vectors.T @ targets).sum(1)
    total = float(np.square(targets).sum())
    cumulative: Floats = np.cumsum(powers) / total if total else np.full(len(powers), np.nan)
    return cumulative


def relative_norm(change: Floats, start: Floats) -> float:
    """|change| / |start|, Frobenius norms; NaN for a start of zero."""
    size = float(np.linalg.norm(start))
    return float(np.linalg.norm(change)) / size if size else float("nan")
