"""Cholesky factors and inverses against NumPy in float64, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from fsa.latent.small_matrices import cholesky


def definite(size, seed=0, scale=1.0):
    root = np.random.default_rng(seed).normal(size=(size, size))
    return scale * (root @ root.T / size + 0.1 * np.eye(size))


@pytest.mark.parametrize("size", [1, 2, 9, 17])
def test_against_numpy(size):
    matrix = definite(size)
    expected = np.linalg.cholesky(matrix)
    with jax.enable_x64(True):
        factor, inverse = map(np.asarray, jax.jit(cholesky)(matrix))
    np.testing.assert_allclose(factor, expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(inverse @ expected, np.eye(size), atol=1e-10)
    assert not np.triu(factor, 1).any() and not np.triu(inverse, 1).any()


def test_in_float32_it_is_as_exact_as_lapack():
    exact = definite(12, scale=1e3)
    expected = np.linalg.cholesky(exact)
    found, _ = jax.jit(cholesky)(np.float32(exact))
    theirs = np.abs(np.linalg.cholesky(np.float32(exact)) - expected).max()
    assert np.abs(found - expected).max() < 3 * theirs


def test_derivatives():
    """Of a quadratic form and a log-determinant, twice."""
    matrix, right = definite(4), np.random.default_rng(1).normal(size=4)

    def quadratic(matrix, right):
        factor, inverse = cholesky((matrix + matrix.T) / 2)
        log_det = jnp.sum(jnp.log(jnp.diagonal(factor)))
        return jnp.sum((inverse @ right) ** 2) + log_det

    with jax.enable_x64(True):
        check_grads(jax.jit(quadratic), (matrix, right), 2, modes=("fwd", "rev"))


def test_a_batch_has_no_calls_of_lapack():
    """Two of which at once were seen to wait for one another for ever."""
    batch = np.stack([definite(3, seed) for seed in range(4)]).astype(np.float32)

    def run(matrix):
        factor, inverse = cholesky(matrix)
        return factor.sum() + inverse.sum()

    compiled = jax.jit(jax.grad(lambda x: jax.vmap(run)(x).sum())).lower(batch)
    assert "custom-call" not in compiled.compile().as_text()


def test_what_is_not_definite_is_nan():
    assert np.isnan(cholesky(np.float32([[1, 2], [2, 1]]))[0]).any()
