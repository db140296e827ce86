"""Running many steps a call, on one device or many: `jax.jit` with a mesh, or pmap.

Small models are bound by dispatch, so a call scans over S steps. Both ways give the
same numbers up to the order of sums. Shapes: S steps, B rows of a global batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fsa.training.step import LossFn, TrainState, make_step

AXIS = "data"

# (state, tables, rows, key) -> (state, metrics): `tables` are shared by all rows, the
# leaves of `rows` are `[S, B]`, those of metrics `[S]`.
Runner = Callable[[TrainState, Any, Any, jax.Array], tuple[TrainState, dict]]


def _scan(step):
    def many(state, tables, rows, key):
        def body(state, row):
            return step(state, (tables, row), key)

        return jax.lax.scan(body, state, rows)

    return many


def _mesh(devices):
    # Axes are explicit by default, and then every operation must say where it is.
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


def mesh_runner(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    devices: list | None = None,
    *,
    average_decay: float = 0.0,
) -> Runner:
    """Many steps under `jax.jit`, the batch sharded over a mesh axis named "data".

    Args:
      loss_fn: over batches `(tables, rows)`.
      optimizer: of the parameters.
      devices: to use; all by default. Their number divides B.
      average_decay: see `make_step`.
    """
    mesh = _mesh(devices or jax.devices())
    replicated = NamedSharding(mesh, PartitionSpec())
    by_row = NamedSharding(mesh, PartitionSpec(None, AXIS))
    jitted = jax.jit(
        _scan(make_step(loss_fn, optimizer, average_decay=average_decay)),
        in_shardings=(replicated, replicated, by_row, replicated),
        out_shardings=replicated,
        donate_argnums=0,
    )

    def run(state, tables, rows, key):
        # Where the last call left it: for a state elsewhere all is compiled again.
        state = jax.device_put(state, replicated)
        return jitted(state, tables, rows, key)

    return run


def pmap_runner(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    devices: list | None = None,
    *,
    average_decay: float = 0.0,
) -> Runner:
    """Many steps under `jax.pmap`, for one host.

    Args:
      loss_fn: over batches `(tables, rows)`.
      optimizer: of the parameters.
      devices: to use; all local ones by default. Their number divides B.
      average_decay: see `make_step`.
    """
    devices = devices or jax.local_devices()
    replicated = NamedSharding(_mesh(devices), PartitionSpec())
    mapped = jax.pmap(
        _scan(make_step(loss_fn, optimizer, AXIS, average_decay=average_decay)),
        axis_name=AXIS,
        in_axes=(None, None, 1, None),
        out_axes=None,
        devices=devices,
    )

    def run(state, tables, rows, key):
        def split(x):
            return x.reshape(x.shape[0], len(devices), -1, *x.shape[2:])

        # As above.
        state = jax.device_put(state, replicated)
        return mapped(state, tables, jax.tree.map(split, rows), key)

    return run


RUNNERS = {"mesh": mesh_runner, "pmap": pmap_runner}


def stack_rows(rows: list) -> Any:
    """The rows of S steps as one pytree with leaves `[S, B]`."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
