"""The product of rows with a matrix, whose gradient moves no wide array.

In JAX's own gradient of the matrix, in `rows @ matrix` with short rows and a wide
result, the wide array comes first. XLA on CPUs copies that array with its axes
exchanged, and computes what it fuses into the copy (the derivative of an activation
function, say) against its layout. Here the rows come first, and they are what is
transposed. This needs a primitive: `jax.custom_vjp` has no forward mode, and
`jax.custom_derivatives.linear_call` cannot be mapped.

Shapes: R is the length of a row, and the matrix is `[R, ...]`, such as `[R, O]`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from . import compat

NAME = "rows_dot"


def rows_dot(rows: jax.Array, matrix: jax.Array, dtype: Any) -> jax.Array:
    """Computes `rows @ matrix`; the matrix's own axes follow those of the rows.

    Args:
      rows: `[..., R]`.
      matrix: `[R, ...]`.
      dtype: of the result, in which sums are accumulated.
    """
    # Read while the product is traced, as `lax.dot_general` does; it is lowered later.
    precision = jax.config.jax_default_matmul_precision
    return _bind(rows, matrix, dtype=jnp.dtype(dtype), precision=precision)


def _bind(rows, matrix, **options):
    if any(compat.varies_over(x) or compat.is_sharded(x) for x in (rows, matrix)):
        # Types that name axes of a mesh have rules of their own in JAX's product.
        return _product(rows, matrix, **options)
    return _rows_dot.bind(rows, matrix, **options)


def _dot(x, y, contracted, dtype, precision):
    return lax.dot_general(
        *(x, y, (contracted, ((), ()))),
        precision=precision,
        preferred_element_type=dtype,
    )


def _product(rows, matrix, *, dtype, precision):
    return _dot(rows, matrix, ((rows.ndim - 1,), (0,)), dtype, precision)


def _gradient_of_rows(g, rows, matrix, *, dtype, precision):
    own = range(1, matrix.ndim)
    ends = range(g.ndim - len(own), g.ndim)
    out = _dot(g, matrix, (tuple(ends), tuple(own)), dtype, precision)
    return out.astype(rows.aval.dtype)


def _gradient_of_matrix(g, rows, matrix, *, dtype, precision):
    leading = tuple(range(rows.ndim - 1))
    return _dot(rows, g, (leading, leading), dtype, precision).astype(matrix.aval.dtype)


def _batched(operands, axes, **options):
    rows, matrix = operands
    if axes[1] is None:  # Rows of all examples are rows of one product.
        rows = jnp.moveaxis(rows, axes[0], 0)
        return _bind(rows, matrix, **options), 0
    return jax.vmap(functools.partial(_product, **options), axes)(rows, matrix), 0


def _shape(rows, matrix, *, dtype, precision):
    del precision
    return jax.core.ShapedArray((*rows.shape[:-1], *matrix.shape[1:]), dtype)


_rows_dot = Primitive(NAME)
_rows_dot.def_impl(jax.jit(_product, static_argnames=("dtype", "precision")))
_rows_dot.def_abstract_eval(_shape)
mlir.register_lowering(_rows_dot, mlir.lower_fun(_product, multiple_results=False))
ad.defbilinear(_rows_dot, _gradient_of_rows, _gradient_of_matrix)
batching.primitive_batchers[_rows_dot] = _batched
