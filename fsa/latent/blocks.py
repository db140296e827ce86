"""Computes functions of many observations block by block, in fixed memory.

Shapes: N observations, B of a block; `[N / B, B]` are blocked arrays.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Observations of one block; no more than these are worked on at once.
BLOCK = 2048


def split(arrays: Any, block: int = BLOCK) -> Any:
    """Turns the leading axis `[N]` of every array into two, `[N / B, B]`.

    Arrays that do not fill their last block are padded with zeros, which are copies:
    observations of weight 0 count for nothing.

    Args:
      arrays: a pytree of arrays `[N, ...]`.
      block: B; if N is smaller, there is one block of N.
    """
    n = len(jax.tree.leaves(arrays)[0])
    block = min(block, n)
    num_blocks = max(1, math.ceil(n / max(block, 1)))

    def split_one(x):
        x = jnp.pad(x, [(0, num_blocks * block - n)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(num_blocks, block, *x.shape[1:])

    return jax.tree.map(split_one, arrays)


def each(function: Callable[..., Any], blocked: Any) -> Any:
    """Returns what a function of a block returns, stacked, `[N / B, ...]`."""
    if len(jax.tree.leaves(blocked)[0]) == 1:
        only = function(jax.tree.map(lambda x: x[0], blocked))
        return jax.tree.map(lambda x: x[None], only)
    # What lies between is computed again for derivatives, rather than kept.
    return jax.lax.map(jax.checkpoint(function), blocked)


def total(function: Callable[..., Any], blocked: Any) -> Any:
    """Returns the sum over blocks of what a function of a block returns."""
    if len(jax.tree.leaves(blocked)[0]) == 1:
        return function(jax.tree.map(lambda x: x[0], blocked))
    function = jax.checkpoint(function)
    first = jax.eval_shape(function, jax.tree.map(lambda x: x[0], blocked))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

    def add(so_far, block):
        return jax.tree.map(jnp.add, so_far, function(block)), None

    return jax.lax.scan(add, zero, blocked)[0]
