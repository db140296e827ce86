"""`@`, `matmul`, `einsum`, `take` and `conv` for models that expect `Conditioned`.

Each is the function of jax of the same name, takes arrays and conditioned parameters in
any place, and refuses to build a conditioned parameter.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .bridge import bridge
from .leaf import Conditioned

Operand = jax.Array | Conditioned


def matmul(a: Operand, b: Operand, **kwargs: Any) -> jax.Array:
    """Computes `jnp.matmul`.

    Args:
      a: array or conditioned parameter.
      b: likewise.
      **kwargs: keywords of `jnp.matmul`, such as `preferred_element_type`.

    Raises:
      MaterializationError: if the product has no order part by part; all functions of
        this module raise it.
    """
    return bridge(lambda a, b: jnp.matmul(a, b, **kwargs), strict=True)(a, b)


def einsum(subscripts: str, *operands: Operand, **kwargs: Any) -> jax.Array:
    """Computes `jnp.einsum`."""

    def fn(*arrays):
        return jnp.einsum(subscripts, *arrays, **kwargs)

    return bridge(fn, strict=True)(*operands)


def take(table: Operand, indices: jax.Array, axis: int = 0, **kwargs: Any) -> jax.Array:
    """Computes `jnp.take`, for example of embeddings."""

    def fn(table, indices):
        return jnp.take(table, indices, axis=axis, **kwargs)

    return bridge(fn, strict=True)(table, indices)


def conv(
    x: jax.Array, kernel: Operand, strides: Sequence[int], padding: Any, **kwargs: Any
) -> jax.Array:
    """Computes `lax.conv_general_dilated`."""

    def fn(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)

    return bridge(fn, strict=True)(x, kernel)


# `@` of the class is added here, above the bridge that computes it, as jax.numpy adds
# the operators of `jax.Array`.
Conditioned.__matmul__ = matmul
Conditioned.__rmatmul__ = lambda self, x: matmul(x, self)
