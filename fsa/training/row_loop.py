"""Sums a function and its gradient over the rows of a packed batch, one by one.

A batch has another number of rows in each step, and a program one shape. So a loop runs
over the rows that there are, and computes the gradient of each row with its value.
Memory holds the activations of one row on each device, and gradients are added up.

Shapes: B users of a batch, R places for rows of each, E devices that examples are split
over.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fsa.data.tasks.packing import Rows
from fsa.parallel.sharding import parts_of_batch, vmap_examples

# (parameters, constants, a row) -> (value, metrics)
RowFn = Callable[[Any, Any, Rows], tuple[jax.Array, dict[str, jax.Array]]]


def sum_over_rows(
    fn: RowFn, params: Any, constants: Any, rows: Sequence[Rows]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the sums of values and of metrics of all rows.

    Args:
      fn: returns the value and the metrics of one row; it must not refer to traced
        values, which `params` and `constants` are for.
      params: arrays of floats, which gradients flow to.
      constants: any arrays; no gradient flows to them.
      rows: rows of each length, `[B, R]`.
    """
    total, metrics = _sum(fn, params, constants, tuple(rows))
    return total, jax.tree.map(lax.stop_gradient, metrics)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(fn, params, constants, rows):
    return _loop(lambda row: fn(params, constants, row), rows)


def _forward_rule(fn, params, constants, rows):
    def of_row(row):
        def value(params):
            return fn(params, constants, row)

        return jax.value_and_grad(value, has_aux=True)(params)

    return _loop(of_row, rows)


def _backward_rule(fn, gradients, cotangents):
    del fn
    of_value, _ = cotangents
    scaled = jax.tree.map(lambda x: (of_value * x).astype(x.dtype), gradients)
    return scaled, None, None


_sum.defvjp(_forward_rule, _backward_rule)


def _loop(fn: Callable[[Rows], Any], rows: Sequence[Rows]) -> Any:
    """Returns the sum of a function of one row over all rows."""
    arranged = [_real_first(of_length) for of_length in rows]

    def all_devices(row):
        if parts_of_batch() == 1:
            return fn(jax.tree.map(lambda x: x[0], row))
        return jax.tree.map(lambda x: x.sum(0), vmap_examples(fn)(row))

    shapes = jax.eval_shape(lambda: all_devices(_at(arranged[0], 0)))
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    for of_length in arranged:
        # Devices have as many rows, or one more, and an empty row adds nothing.
        count = (of_length.pair >= 0).any(-1).sum(0).max()

        def add(index, total, of_length=of_length):
            found = all_devices(_at(of_length, index))
            return jax.tree.map(jnp.add, total, found)

        total = lax.fori_loop(0, count, add, total)
    return total


def _at(rows: Rows, index: Any) -> Rows:
    return jax.tree.map(lambda x: x[index], rows)


def _real_first(rows: Rows) -> Rows:
    """Returns rows `[B, R]` as `[B R / E, E]`, real ones first on each device."""

    def of_devices(x):
        return x.reshape(parts_of_batch(), -1, *x.shape[2:])

    rows = jax.tree.map(of_devices, rows)
    order = jnp.argsort(~(rows.pair >= 0).any(-1), axis=1, stable=True)
    ordered = jax.tree.map(lambda x: jax.vmap(lambda a, i: a[i])(x, order), rows)
    return jax.tree.map(lambda x: x.swapaxes(0, 1), ordered)
