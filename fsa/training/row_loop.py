"""Sums a function and its gradient over the rows of a packed batch, some at a time.

A batch has another number of rows in each step, and a program one shape. So a loop runs
over the rows that there are, and computes the gradient of some rows with their value.
Memory holds the activations of these rows on each device, and gradients are added up.

Shapes: B users of a batch, R places for rows of each, E devices that examples are split
over, C rows that a device computes at once.
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
    fn: RowFn, params: Any, constants: Any, rows: Sequence[Rows], at_once: int = 1
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the sums of values and of metrics of all rows.

    Args:
      fn: returns the value and the metrics of one row; it must not refer to traced
        values, which `params` and `constants` are for.
      params: arrays of floats, which gradients flow to.
      constants: any arrays; no gradient flows to them.
      rows: rows of each length, `[B, R]`.
      at_once: C, at most. Parameters that are stored in parts are gathered once for
        these rows.
    """
    total, metrics = _sum(fn, at_once, params, constants, tuple(rows))
    return total, jax.tree.map(lax.stop_gradient, metrics)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum(fn, at_once, params, constants, rows):
    return _loop(lambda some: _of_some(fn, params, constants, some), rows, at_once)


def _forward_rule(fn, at_once, params, constants, rows):
    def of_some(some):
        def value(params):
            return _of_some(fn, params, constants, some)

        return jax.value_and_grad(value, has_aux=True)(params)

    return _loop(of_some, rows, at_once)


def _backward_rule(fn, at_once, gradients, cotangents):
    del fn, at_once
    of_value, _ = cotangents
    scaled = jax.tree.map(lambda x: (of_value * x).astype(x.dtype), gradients)
    return scaled, None, None


_sum.defvjp(_forward_rule, _backward_rule)


def _of_some(fn: RowFn, params: Any, constants: Any, some: Rows) -> Any:
    """Returns the sum of a function of one row over rows `[C, E]`."""

    def of_one(row):
        return fn(params, constants, row)

    if len(some.pair) == parts_of_batch() == 1:
        return of_one(jax.tree.map(lambda x: x[0, 0], some))
    of_device = jax.vmap(of_one)
    found = vmap_examples(of_device, in_axes=1)(some)
    return jax.tree.map(lambda x: x.sum((0, 1)), found)


def _loop(fn: Callable[[Rows], Any], rows: Sequence[Rows], at_once: int) -> Any:
    """Returns the sum of a function of some rows `[C, E]` over all rows."""
    arranged = [_grouped(_real_first(of_length), at_once) for of_length in rows]
    shapes = jax.eval_shape(lambda: fn(_at(arranged[0], 0)))
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    for of_length in arranged:
        # Devices have as many rows, or one more, and an empty row adds nothing.
        real = (of_length.pair >= 0).any(-1)
        count = real.any((1, 2)).sum()

        def add(index, total, of_length=of_length):
            found = fn(_at(of_length, index))
            return jax.tree.map(jnp.add, total, found)

        total = lax.fori_loop(0, count, add, total)
    return total


def _at(rows: Rows, index: Any) -> Rows:
    return jax.tree.map(lambda x: x[index], rows)


def _grouped(rows: Rows, at_once: int) -> Rows:
    """Returns rows `[places, E]` as `[groups, C, E]`; the last ones may be empty."""
    size = min(at_once, len(rows.pair))
    more = -len(rows.pair) % size

    def grouped(x, filled=0):
        widths = [(0, more)] + [(0, 0)] * (x.ndim - 1)
        x = jnp.pad(x, widths, constant_values=filled)
        return x.reshape(-1, size, *x.shape[1:])

    return jax.tree.map(grouped, rows)._replace(pair=grouped(rows.pair, -1))


def _real_first(rows: Rows) -> Rows:
    """Returns rows `[B, R]` as `[B R / E, E]`, real ones first on each device."""

    def of_devices(x):
        return x.reshape(parts_of_batch(), -1, *x.shape[2:])

    rows = jax.tree.map(of_devices, rows)
    order = jnp.argsort(~(rows.pair >= 0).any(-1), axis=1, stable=True)
    ordered = jax.tree.map(lambda x: jax.vmap(lambda a, i: a[i])(x, order), rows)
    return jax.tree.map(lambda x: x.swapaxes(0, 1), ordered)
