"""Meshes with named axes, and tables that say what lies where on them.

Axes: a batch's rows are split over `data` and `fsdp` together; parameters and what
follows them are split over `fsdp` (stored in parts and gathered where they are used)
and `tensor` (computed with in parts).

A table, `SHARDING_RULES`, stands beside the model it is for: (pattern, spec) pairs, of which
the first whose pattern is found in an array's path decides. A pattern that stands
there again gives a second choice, for arrays that the first does not divide. Optimizer
moments and averages end in the path of the parameter they belong to, so one table
serves them all.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from fsa.errors import InputError

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
# What the rows of a batch are split over.
BATCH_AXES = (DATA, FSDP)

Rules = Sequence[tuple[str, PartitionSpec]]


def make_mesh(fsdp: int = 1, tensor: int = 1, devices: Sequence | None = None) -> Mesh:
    """A mesh of `AXES`; `data` gets what the other two leave.

    Between several slices, whose links are slow, only `data` reaches where it can.

    Args:
      fsdp: devices that a parameter's parts are stored on.
      tensor: devices that compute one row together.
      devices: of all processes; all there are by default.

    Raises:
      InputError: for sizes that do not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp, tensor = sizes(fsdp, tensor, len(devices))
    arranged = device_array((data, fsdp, tensor), devices)
    # Axes are explicit by default, and then every operation must say where it is.
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_array(shape: tuple[int, int, int], devices: Sequence) -> np.ndarray:
    """Devices in the shape of a mesh, neighbours close by, see `make_mesh`.

    Where a size is no product of those of the torus, an axis gets part of a torus's.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    data, fsdp, tensor = shape
    if slices == 1 or data % slices:
        return mesh_utils.create_device_mesh(
            shape, devices, allow_split_physical_axes=True
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor),
        (slices, 1, 1),
        devices=devices,
        allow_split_physical_axes=True,
    )


def sizes(fsdp: int, tensor: int, num_devices: int) -> tuple[int, int, int]:
    """The sizes of `AXES`, see `make_mesh`."""
    data, rest = divmod(num_devices, fsdp * tensor)
    if rest:
        raise InputError(
            f"mesh.fsdp={fsdp} times mesh.tensor={tensor} does not divide the number "
            f"of devices, {num_devices}; choose sizes that do"
        )
    return data, fsdp, tensor


def num_parts(shape: Mapping[str, int]) -> int:
    """Into how many parts a mesh of a shape splits the rows of a batch."""
    return math.prod(shape[axis] for axis in BATCH_AXES)


def check_batch_size(
    batch_size: int, shape: Mapping[str, int], accumulate: int = 1
) -> None:
    """Refuses batches that cannot be split evenly over a mesh of a shape.

    Args:
      batch_size: rows of a global batch.
      shape: of the mesh.
      accumulate: micro-batches, each spread over all devices.

    Raises:
      InputError: naming the sizes.
    """
    parts = num_parts(shape)
    if batch_size % (accumulate * parts):
        times = f" times train.accumulate={accumulate}" if accumulate > 1 else ""
        raise InputError(
            f"train.batch_size={batch_size} is not a multiple of the {parts} devices "
            f"that rows are spread over (data x fsdp){times}; choose one that is"
        )


def path_of(path: Sequence[Any]) -> str:
    """The names on the way to a leaf, joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """The sharding of each array of a tree.

    Where no spec of its rule divides an array, the first does without the axes that do
    not divide their dimension. An array of fewer dimensions than its spec is on every
    device whole; so is one without a rule.

    Args:
      tree: arrays, or anything with a shape.
      mesh: of `AXES`.
      rules: the table.
    """

    def of(path, x):
        return sharding_of(path_of(path), x.shape, mesh, rules)

    return jax.tree_util.tree_map_with_path(of, tree)


def sharding_of(
    path: str, shape: Sequence[int], mesh: Mesh, rules: Rules
) -> NamedSharding:
    """The sharding of one array, see `shardings`."""
    return NamedSharding(mesh, _fitted(path, shape, mesh, rules)[0])


def not_split(tree: Any, mesh: Mesh, rules: Rules) -> list[str]:
    """A line for each rule that `shardings` could not follow to the letter."""
    lines: dict[str, None] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        lines |= dict.fromkeys(_fitted(path_of(path), x.shape, mesh, rules)[1])
    return list(lines)


def _fitted(name: str, shape: Sequence[int], mesh: Mesh, rules: Rules):
    """(the spec of an array, a line for each axis that was left out of it)."""
    pattern = next((p for p, _ in rules if re.search(p, name)), None)
    choices = [_divided(p, spec, shape, mesh) for p, spec in rules if p == pattern]
    if not choices:
        return PartitionSpec(), []
    return next((choice for choice in choices if not choice[1]), choices[0])


def _divided(pattern: str, spec: PartitionSpec, shape: Sequence[int], mesh: Mesh):
    """See `_fitted`; of one spec."""
    if len(spec) > len(shape):
        return PartitionSpec(), []
    axes, lines = [], []
    for size, axis in zip(shape, spec, strict=False):
        wanted = _longer_than_one(axis, mesh)
        kept = _dividing(size, wanted, mesh)
        # Nobody misses what is broadcast.
        if size > 1 and kept != wanted:
            lines.append(
                f"{pattern}: a dimension of {size} is not split over {axis} of mesh "
                f"{dict(mesh.shape)}, which does not divide it"
            )
        axes.append(kept)
    while axes and not axes[-1]:
        axes.pop()
    return PartitionSpec(*map(_entry, axes)), lines


def _longer_than_one(axis: Any, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The names in an entry of a spec, without those that split nothing."""
    names = (axis,) if isinstance(axis, str) else axis or ()
    return tuple(name for name in names if mesh.shape[name] > 1)


def _dividing(
    size: int, names: tuple[str, ...], mesh: Mesh | AbstractMesh
) -> tuple[str, ...]:
    """The first of some mesh axes, as many as together divide a dimension."""
    while size % math.prod(mesh.shape[name] for name in names):
        names = names[:-1]
    return names


def _entry(names: tuple[str, ...]) -> Any:
    """Of a spec; as JAX itself writes it, so that equal shardings look equal."""
    return names[0] if len(names) == 1 else names or None


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """Says in a program how its last dimensions lie, where a runner gave it a mesh.

    Without, XLA may split activations by the axes of weights instead of gathering the
    weights. Leading dimensions, of rows, are left to XLA and to `vmap_examples`; an axis
    that does not divide its dimension is left out.

    Args:
      x: an activation.
      *axes: of the mesh or None, for the last dimensions of x.
    """
    if not _has_mesh():
        return x
    mesh = jax.sharding.get_abstract_mesh()
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(axes))
    sizes = x.shape[len(free) :]
    fitted = [
        _entry(_dividing(size, _longer_than_one(axis, mesh), mesh))
        for size, axis in zip(sizes, axes, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*free, *fitted))


def replicated(tree: Any) -> Any:
    """Says in a program that arrays are gathered, where a runner gave it a mesh.

    For weights that are small beside activations: stored in parts, used whole.
    """
    if not _has_mesh():
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def by_heads(fn: Callable) -> Callable:
    """Runs a function of arrays `[B, T, heads, H]` on each device's own heads.

    For kernels, which XLA cannot split. Where `tensor` does not divide the heads of
    all arguments, every device computes all.
    """

    def run(*arrays):
        if not _has_mesh():
            return fn(*arrays)
        parts = jax.sharding.get_abstract_mesh().shape[TENSOR]
        divides = all(x.shape[2] % parts == 0 for x in arrays)
        spec = PartitionSpec(None, None, TENSOR if divides else None)
        return jax.shard_map(
            fn, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False
        )(*arrays)

    return run


def on_mesh(fn: Callable, mesh: Mesh | None) -> Callable:
    """`fn` for `jax.jit`, with a mesh for `constrain` and all others here that ask."""
    if mesh is None:
        return fn

    @functools.wraps(fn)
    def run(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return fn(*arguments)

    return run


def vmap_examples(fn: Callable) -> Callable:
    """`jax.vmap` over rows of a batch, which lie on `ROWS` where there is a mesh."""
    return jax.vmap(fn, spmd_axis_name=BATCH_AXES if _has_mesh() else None)


def _has_mesh() -> bool:
    return set(AXES) <= set(jax.sharding.get_abstract_mesh().axis_names)


def place(tree: Any, placement: Any) -> Any:
    """Puts arrays where their shardings say, on devices of all processes.

    Args:
      tree: arrays; those that are not spread over devices yet are the same in every
        process.
      placement: a tree of shardings of the same structure.
    """

    def put(x, sharding):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            # Keys cannot be put on devices of other processes, but their data can.
            data = put(jax.random.key_data(x), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        local = getattr(x, "is_fully_addressable", True)
        if sharding.is_fully_addressable or not local:
            return jax.device_put(x, sharding)
        # With one device in each process, device_put makes an array of it that cannot
        # be saved (jax 0.10.2).
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])

    return jax.tree.map(put, tree, placement)


def place_examples(tree: Any, mesh: Mesh | None) -> Any:
    """Spreads rows `[B, ...]` over a mesh, B a multiple of its `num_parts`.

    Args:
      tree: NumPy arrays, the same in every process.
      mesh: of `AXES`; without one they are left as they are.
    """
    if mesh is None:
        return tree
    by_example = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return place(tree, jax.tree.map(lambda _: by_example, tree))


def fetch(tree: Any) -> Any:
    """Arrays as NumPy in every process, wherever their parts lie.

    To be called by all processes.
    """

    def complete(x):
        if x.is_fully_addressable or x.is_fully_replicated:
            return x
        return _gathered(NamedSharding(x.sharding.mesh, PartitionSpec()))(x)

    return jax.device_get(jax.tree.map(complete, tree))


@functools.cache
def _gathered(everywhere: NamedSharding) -> Callable:
    # One for all calls, so that it is compiled once a shape.
    return jax.jit(lambda x: x, out_shardings=everywhere)


def own_positions(sharding: NamedSharding, size: int) -> np.ndarray:
    """The positions of an axis of `size` that lie on devices of this process."""
    slices = sharding.addressable_devices_indices_map((size,)).values()
    found = {i for (piece,) in slices for i in range(*piece.indices(size))}
    return np.array(sorted(found), np.int32)
