"""Computes functions of many examples on all devices of a mesh.

Scoring, predicting, embedding and writing are such functions. Each of them calls
`over_examples`, which lays the examples over the mesh and collects the results, so that
the number of devices and of processes changes only the time that it takes:

    run = over_examples(lambda weights, x: x @ weights, mesh)
    y = run(weights, x)  # NumPy, complete in every process

Random numbers belong to examples: the callers make the key of each from its number.

Shapes: B examples.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fsa.parallel.sharding import (
    BATCH_AXES,
    fetch,
    make_mesh,
    num_parts,
    on_mesh,
    place,
    place_examples,
)


def find_mesh(fsdp: int | None = None, tensor: int | None = None) -> Mesh | None:
    """Returns a mesh of the devices of all processes; None for a single device.

    Args:
      fsdp: number of devices that store the parts of a parameter; 1 if None.
      tensor: number of devices that compute one example together; 1 if None.

    Raises:
      InputError: if the sizes do not divide the number of devices.
    """
    mesh = make_mesh(fsdp or 1, tensor or 1)
    return mesh if mesh.size > 1 else None


def parts_of(mesh: Mesh | None) -> int:
    """Returns the number of parts into which examples are split; 1 without a mesh."""
    return 1 if mesh is None else num_parts(mesh.shape)


def over_examples(fn: Callable, mesh: Mesh | None, *, apart: bool = False) -> Callable:
    """Compiles a function of examples that all devices of a mesh compute together.

    Args:
      fn: `(*shared, examples) -> results`, where the leaves of examples and of results
        are `[B, ...]`.
      mesh: a mesh with the axes `fsa.parallel.sharding.AXES`; None for one device.
      apart: whether each device runs `fn` on its own examples, with all of `shared`,
        as suits an `fn` that loops over a few examples at a time. Otherwise XLA splits
        the computation, and `shared` may be split as well.

    Returns:
      `run(*shared, examples)`, which takes any B >= 1 and returns NumPy arrays. The
      examples are filled up to a multiple of the devices by the first one. All
      processes must call it, with the same examples; `shared` must be NumPy arrays, or
      placed on the mesh if there are several processes. Its attribute `jitted` is the
      function under `jax.jit`.
    """
    if mesh is None:
        jitted = jax.jit(fn)
    elif apart:
        jitted = jax.jit(functools.partial(_apart, fn, mesh))
    else:
        jitted = jax.jit(on_mesh(fn, mesh))
    parts = parts_of(mesh)

    def run(*arguments):
        *shared, examples = arguments
        size = len(jax.tree.leaves(examples)[0])
        full = filled_up(examples, -(-size // parts) * parts)
        found = fetch(jitted(*shared, place_examples(full, mesh)))
        return jax.tree.map(lambda x: x[:size], found)

    run.jitted = jitted
    return run


def _apart(fn: Callable, mesh: Mesh, *arguments: Any) -> Any:
    """Runs `fn` on every device by itself, with the examples that it holds."""
    everywhere, by_example = PartitionSpec(), PartitionSpec(BATCH_AXES)
    specs = (*[everywhere] * (len(arguments) - 1), by_example)
    return jax.shard_map(
        fn, mesh=mesh, in_specs=specs, out_specs=by_example, check_vma=False
    )(*arguments)


def filled_up(examples: Any, size: int) -> Any:
    """Returns examples `[B, ...]` filled up to `size` by the first one."""

    def fill(x):
        return np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)])

    full = len(jax.tree.leaves(examples)[0]) == size
    return examples if full else jax.tree.map(fill, examples)


def place_everywhere(tree: Any, mesh: Mesh | None) -> Any:
    """Places complete arrays on every device of a mesh, for small ones.

    Args:
      tree: arrays, the same in every process.
      mesh: the mesh, or None to return the arrays unchanged.
    """
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())
    return place(tree, jax.tree.map(lambda _: everywhere, tree))
