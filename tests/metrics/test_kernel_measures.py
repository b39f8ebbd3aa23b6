"""Formulas of kernels against closed forms, in coordinates where the answer is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from Metrics.kernels import measures

Floats = NDArray[np.float64]

RANDOM = np.random.default_rng(0)


def gram(examples: int, features: int) -> Floats:
    """A random kernel."""
    x = RANDOM.standard_normal((examples, features))
    return x @ x.T


def orthogonal(size: int) -> Floats:
    return np.linalg.qr(RANDOM.standard_normal((size, size)))[0]


def test_alignment_is_a_cosine_with_the_targets() -> None:
    kernel, y = gram(7, 3), RANDOM.standard_normal((7, 1))
    one = float((y.T @ kernel @ y).item() / (np.linalg.norm(kernel) * (y**2).sum()))
    assert measures.alignment(kernel, y) == pytest.approx(one, rel=1e-12)
    assert measures.alignment(y @ y.T, y) == pytest.approx(1)
    u = orthogonal(7)  # K = a y yᵀ + b z zᵀ with orthonormal y, z: a / √(a² + b²)
    mixed = 3 * np.outer(u[0], u[0]) + 4 * np.outer(u[1], u[1])
    assert measures.alignment(mixed, u[:1].T) == pytest.approx(0.6, rel=1e-12)


def test_centring_ignores_constants() -> None:
    kernel, y = gram(9, 4), np.eye(3)[[0, 0, 0, 0, 0, 1, 1, 2, 2]]
    shift = RANDOM.standard_normal(9)
    shifted = kernel + shift[:, None] + shift[None]
    aligned = measures.centred_alignment(kernel, y)
    assert measures.centred_alignment(shifted, y) == pytest.approx(aligned, rel=1e-10)
    assert measures.cka(shifted, kernel) == pytest.approx(1, rel=1e-10)
    h = np.eye(9) - 1 / 9
    np.testing.assert_allclose(measures.centred(kernel), h @ kernel @ h, atol=1e-12)
    assert measures.centred_alignment(kernel, y) == pytest.approx(
        measures.cka(kernel, y @ y.T), rel=1e-12
    )


def test_cka_does_not_see_rotations_of_features() -> None:
    x = RANDOM.standard_normal((8, 5))
    turned = 3 * x @ orthogonal(5)
    assert measures.cka(x @ x.T, turned @ turned.T) == pytest.approx(1, abs=1e-12)
    # against the formula of linear CKA by features (Kornblith et al. 2019)
    y = RANDOM.standard_normal((8, 4))
    a, b = x - x.mean(0), y - y.mean(0)
    by_features = np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert measures.cka(x @ x.T, y @ y.T) == pytest.approx(by_features, rel=1e-12)
    assert measures.cka_distance(x @ x.T, y @ y.T) == pytest.approx(1 - by_features, rel=1e-10)
    assert measures.cka_distance(x @ x.T, 2 * x @ x.T) < 1e-30


def test_distances_are_those_of_angles() -> None:
    angles = np.array([0.0, 0.2, 1.1])
    kernels = np.stack([np.diag([np.cos(a), np.sin(a)]) for a in angles])
    expected = 1 - np.cos(angles[:, None] - angles[None])
    np.testing.assert_allclose(measures.kernel_distances(kernels), expected, atol=1e-15)
    np.testing.assert_allclose(measures.kernel_distances(7 * kernels), expected, atol=1e-15)
    assert np.isnan(measures.cosine(np.zeros((2, 2)), np.eye(2)))


@pytest.mark.parametrize("rank", [1, 4])
def test_ranks_of_flat_spectra(rank: int) -> None:
    values = np.concatenate([np.full(rank, 0.3), np.zeros(5), [-1e-18]])
    for of in (measures.effective_rank, measures.participation_ratio, measures.stable_rank):
        assert of(values) == pytest.approx(rank, rel=1e-12)
    assert measures.condition_number(values, 1e-16) == np.inf


def test_ranks_of_two_eigenvalues() -> None:
    values = np.array([3.0, 1.0])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert measures.effective_rank(values) == pytest.approx(np.exp(entropy))
    assert measures.participation_ratio(values) == pytest.approx(16 / 10)
    assert measures.stable_rank(values) == pytest.approx(4 / 3)
    assert measures.condition_number(values, 1e-16) == pytest.approx(3)
    many = np.concatenate([np.ones(9), [2e-15]])  # above the rounding 10 ε of a matrix of 10
    assert measures.condition_number(many, 1e-16) == pytest.approx(5e14)
    assert measures.condition_number(many, 3e-16) == np.inf


def test_principal_angles_of_turned_planes() -> None:
    basis, small, large = orthogonal(6), 1e-9, 0.7
    first = basis[:, :2]
    turned = np.stack(
        [
            np.cos(small) * basis[:, 0] + np.sin(small) * basis[:, 2],
            np.cos(large) * basis[:, 1] + np.sin(large) * basis[:, 3],
        ],
        axis=1,
    )
    mixed = turned @ orthogonal(2)  # another basis of the same plane
    np.testing.assert_allclose(measures.principal_angles(first, mixed), [large, small], rtol=1e-6)


def test_modes_share_out_the_mean_square() -> None:
    values, vectors = measures.eigenvectors(gram(6, 6))
    assert (np.diff(values) <= 0).all()
    error = RANDOM.standard_normal((6, 3))
    powers = measures.mode_powers(vectors, error)
    assert powers.sum() == pytest.approx(np.square(error).mean(), rel=1e-12)
    assert powers[2] == pytest.approx(np.square(vectors[:, 2] @ error).sum() / 18)
    only = np.outer(vectors[:, 1], [1.0, 2.0])  # all of the target's power is in the second
    expected = [0, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(measures.cumulative_power(vectors, only), expected, atol=1e-12)


def test_full_kernels_are_matrices_of_examples_and_outputs() -> None:
    j = RANDOM.standard_normal((4, 3, 10))  # [N, C, P]
    full = np.einsum("ncp,mdp->nmcd", j, j)
    flat = j.reshape(12, 10)
    np.testing.assert_allclose(measures.matrix(full), flat @ flat.T, rtol=1e-12)
    mean = np.mean([j[:, c] @ j[:, c].T for c in range(3)], axis=0)
    np.testing.assert_allclose(measures.traced(full), mean, rtol=1e-12)
    assert np.array_equal(measures.traced(mean), mean)
    assert np.array_equal(measures.matrix(mean), mean)


def test_kernels_that_are_not_finite_have_no_spectrum() -> None:
    broken = np.full((3, 3), np.nan)
    values, vectors = measures.eigenvectors(broken)
    assert np.isnan(values).all()
    assert np.isnan(measures.eigenvalues(broken)).all()
    assert np.isnan(measures.principal_angles(vectors, np.eye(3))).all()
    assert np.isnan(measures.effective_rank(values))
