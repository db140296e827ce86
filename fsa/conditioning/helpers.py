"""`matmul`, `einsum`, `take` and `conv` for models written with `Conditioned` in mind.

Each is the function of jax of the same name, with arrays and conditioned parameters for
arguments in any place, and refuses to build a conditioned parameter.
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
    """`jnp.matmul`; keywords are its own, such as `preferred_element_type`.

    Raises:
      MaterializationError: as all of this module, where the parts do not separate.
    """
    return bridge(lambda a, b: jnp.matmul(a, b, **kwargs), strict=True)(a, b)


def einsum(subscripts: str, *operands: Operand, **kwargs: Any) -> jax.Array:
    """`jnp.einsum`."""

    def fn(*arrays):
        return jnp.einsum(subscripts, *arrays, **kwargs)

    return bridge(fn, strict=True)(*operands)


def take(table: Operand, indices: jax.Array, axis: int = 0, **kwargs: Any) -> jax.Array:
    """`jnp.take`, as of embeddings."""

    def fn(table, indices):
        return jnp.take(table, indices, axis=axis, **kwargs)

    return bridge(fn, strict=True)(table, indices)


def conv(
    x: jax.Array, kernel: Operand, strides: Sequence[int], padding: Any, **kwargs: Any
) -> jax.Array:
    """`lax.conv_general_dilated`."""

    def fn(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)

    return bridge(fn, strict=True)(x, kernel)
