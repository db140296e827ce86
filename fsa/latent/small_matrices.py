"""Cholesky factors of small matrices, and their inverses, in plain array operations.

Those of `jax.scipy.linalg` call LAPACK for each matrix of a batch. On CPUs with two
cores two such calls at once were seen to wait for one another for ever (jaxlib 0.10.2).
Here a factor comes with its inverse, so that everything else is a product.

Functions take one unbatched matrix; callers `jax.vmap`.

Shapes: D rows and columns.
"""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def cholesky(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the lower Cholesky factor of a positive definite matrix, and its inverse.

    Args:
      matrix: `[D, D]`, symmetric.

    Returns:
      Factor and inverse, `[D, D]`; NaN where the matrix is not positive definite.
    """
    size = len(matrix)
    index = jnp.arange(size)

    def column(rest, j):
        found = rest[:, j] * jax.lax.rsqrt(rest[j, j])
        found = jnp.where(index >= j, found, 0)
        # What is left is the Schur complement.
        return rest - found[:, None] * found, found

    _, columns = jax.lax.scan(column, matrix, index)

    def substitute(rows, j):
        found = rows[j] / columns[j, j]
        below = jnp.where(index > j, columns[j], 0)
        return rows - below[:, None] * found, found

    identity = jnp.eye(size, dtype=matrix.dtype)
    _, inverse = jax.lax.scan(substitute, identity, index)
    return columns.T, inverse


@cholesky.defjvp
def _cholesky_jvp(primals, tangents):
    """The derivatives of Murray (2016, arXiv 1602.07527), section 3.1."""
    (matrix,), (change,) = primals, tangents
    factor, inverse = cholesky(matrix)
    size = len(matrix)
    half = jnp.tril(jnp.ones((size, size), matrix.dtype)) - 0.5 * jnp.eye(
        size, dtype=matrix.dtype
    )
    symmetric = 0.5 * (change + change.T)
    d_factor = factor @ (half * (inverse @ symmetric @ inverse.T))
    return (factor, inverse), (d_factor, -inverse @ d_factor @ inverse)
