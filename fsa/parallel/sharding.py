"""Meshes with named axes, and sharding rules that place arrays on them.

Axes: the examples of a batch are split over `data` and `fsdp` together. Parameters,
their averages and optimizer moments are split over `fsdp` (stored in parts, gathered
where they are used) and `tensor` (the parts are used in the computation).

Each model defines its sharding rules as `SHARDING_RULES`, a sequence of (pattern,
PartitionSpec) pairs. The first pattern that is found in an array's path decides. If the
same pattern is listed again, its second spec is for arrays that the first spec does not
divide. The paths of optimizer moments and averages end in the path of their parameter,
so the same rules apply to them.

Shapes: B examples of a batch, T tokens, H features of an attention head.
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
# The axes over which the examples of a batch are split.
BATCH_AXES = (DATA, FSDP)

Rules = Sequence[tuple[str, PartitionSpec]]


def make_mesh(fsdp: int = 1, tensor: int = 1, devices: Sequence | None = None) -> Mesh:
    """Makes a mesh with the axes `AXES`; `data` gets the devices that the others leave.

    If the devices belong to several slices, whose links are slow, only `data` extends
    over slices, provided that its size is a multiple of their number.

    Args:
      fsdp: number of devices that store the parts of a parameter.
      tensor: number of devices that compute one example together.
      devices: devices of all processes; by default all that exist.

    Raises:
      InputError: if the sizes do not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp, tensor = sizes(fsdp, tensor, len(devices))
    arranged = device_array((data, fsdp, tensor), devices)
    # With explicit axes, the default, every operation must state its sharding.
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_array(shape: tuple[int, int, int], devices: Sequence) -> np.ndarray:
    """Returns devices in the shape of a mesh, with neighbours close to each other.

    See `make_mesh`. If a size is not a product of sizes of the torus of devices, a mesh
    axis gets a part of a torus axis.
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
    """Returns the sizes of `AXES`, see `make_mesh`."""
    data, rest = divmod(num_devices, fsdp * tensor)
    if rest:
        raise InputError(
            f"`fsdp`={fsdp} times `tensor`={tensor} does not divide the number of "
            f"devices, {num_devices}; choose sizes that do"
        )
    return data, fsdp, tensor


def num_parts(shape: Mapping[str, int]) -> int:
    """Returns the number of parts into which a mesh splits the examples of a batch."""
    return math.prod(shape[axis] for axis in BATCH_AXES)


def check_batch_size(
    batch_size: int, shape: Mapping[str, int], accumulate: int = 1
) -> None:
    """Raises InputError if a batch cannot be split evenly over a mesh.

    Args:
      batch_size: examples of a global batch.
      shape: axis -> size of the mesh.
      accumulate: number of micro-batches, each of which is split over all devices.
    """
    parts = num_parts(shape)
    if batch_size % (accumulate * parts):
        times = f" times `accumulate`={accumulate}" if accumulate > 1 else ""
        raise InputError(
            f"`batch_size`={batch_size} is not a multiple of the {parts} devices over "
            f"which examples are split (data x fsdp){times}; choose one that is"
        )


def path_of(path: Sequence[Any]) -> str:
    """Returns the path of a leaf as names joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """Returns the sharding of each array of a tree.

    If no spec of its rule divides an array, the first spec is used without the axes
    that do not divide their dimension. An array without a rule, or with fewer
    dimensions than its spec, is replicated.

    Args:
      tree: arrays, or anything with a shape.
      mesh: a mesh with the axes `AXES`.
      rules: the sharding rules.
    """

    def of(path, x):
        return sharding_of(path_of(path), x.shape, mesh, rules)

    return jax.tree_util.tree_map_with_path(of, tree)


def sharding_of(
    path: str, shape: Sequence[int], mesh: Mesh, rules: Rules
) -> NamedSharding:
    """Returns the sharding of one array, see `shardings`."""
    return NamedSharding(mesh, _fitted(path, shape, mesh, rules)[0])


def with_shardings(tree: Any, placement: Any) -> Any:
    """Returns the `jax.ShapeDtypeStruct`s of a tree, with a sharding for each."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        placement,
    )


def not_split(tree: Any, mesh: Mesh, rules: Rules) -> list[str]:
    """Returns a line for each axis of a rule that `shardings` had to leave out."""
    lines: dict[str, None] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        lines |= dict.fromkeys(_fitted(path_of(path), x.shape, mesh, rules)[1])
    return list(lines)


def _fitted(name: str, shape: Sequence[int], mesh: Mesh, rules: Rules):
    """Returns (spec of an array, a line for each axis that was left out of it)."""
    pattern = next((p for p, _ in rules if re.search(p, name)), None)
    choices = [_divided(p, spec, shape, mesh) for p, spec in rules if p == pattern]
    if not choices:
        return PartitionSpec(), []
    return next((choice for choice in choices if not choice[1]), choices[0])


def _divided(pattern: str, spec: PartitionSpec, shape: Sequence[int], mesh: Mesh):
    """Returns what `_fitted` does, for one spec."""
    if len(spec) > len(shape):
        return PartitionSpec(), []
    axes, lines = [], []
    for size, axis in zip(shape, spec, strict=False):
        wanted = _longer_than_one(axis, mesh)
        kept = _dividing(size, wanted, mesh)
        # Leaving a broadcast dimension unsplit costs nothing.
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
    """Returns the axes of a spec's entry that have more than one device."""
    names = (axis,) if isinstance(axis, str) else axis or ()
    return tuple(name for name in names if mesh.shape[name] > 1)


def _dividing(
    size: int, names: tuple[str, ...], mesh: Mesh | AbstractMesh
) -> tuple[str, ...]:
    """Returns the longest prefix of some mesh axes that divides a dimension."""
    while size % math.prod(mesh.shape[name] for name in names):
        names = names[:-1]
    return names


def _entry(names: tuple[str, ...]) -> Any:
    """Returns a spec's entry in JAX's own form, so that equal specs compare equal."""
    return names[0] if len(names) == 1 else names or None


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
    """Constrains the sharding of an activation's last dimensions, inside `on_mesh`.

    Without it, XLA may split activations by the axes of weights instead of gathering
    the weights. Leading dimensions, of examples, are left to XLA and to
    `vmap_examples`. An axis that does not divide its dimension is left out. Outside
    `on_mesh` this does nothing.

    Args:
      x: an activation.
      *axes: axes of the mesh, or None, for the last dimensions of x.
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
    """Constrains arrays to be replicated, inside `on_mesh`; elsewhere does nothing.

    For weights that are small beside activations: they are stored in parts and gathered
    for the computation.
    """
    if not _has_mesh():
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def by_heads(fn: Callable) -> Callable:
    """Makes a function of arrays `[B, T, heads, H]` run on each device's own heads.

    For kernels, which XLA cannot split. If `tensor` does not divide the number of heads
    of every argument, each device computes all heads. Arrays that are given as `whole`
    come last and are the same for all heads.
    """

    def run(*arrays, whole=()):
        if not _has_mesh():
            return fn(*arrays, *whole)
        parts = jax.sharding.get_abstract_mesh().shape[TENSOR]
        divides = all(x.shape[2] % parts == 0 for x in arrays)
        spec = PartitionSpec(None, None, TENSOR if divides else None)
        return jax.shard_map(
            fn,
            in_specs=(spec,) * len(arrays) + (PartitionSpec(),) * len(whole),
            out_specs=spec,
            check_vma=False,
        )(*arrays, *whole)

    return run


def on_mesh(fn: Callable, mesh: Mesh | None) -> Callable:
    """Makes a mesh known to `constrain` and the like while `jax.jit` traces `fn`."""
    if mesh is None:
        return fn

    @functools.wraps(fn)
    def run(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return fn(*arguments)

    return run


def vmap_examples(fn: Callable, in_axes: Any = 0, out_axes: Any = 0) -> Callable:
    """Applies `jax.vmap` over the examples of a batch, split over `BATCH_AXES`."""
    axes = BATCH_AXES if _has_mesh() else None
    return jax.vmap(fn, in_axes, out_axes, spmd_axis_name=axes)


def parts_of_batch() -> int:
    """Returns the number of parts that examples are split into, inside `on_mesh`.

    Elsewhere it is 1.
    """
    return num_parts(jax.sharding.get_abstract_mesh().shape) if _has_mesh() else 1


def _has_mesh() -> bool:
    return set(AXES) <= set(jax.sharding.get_abstract_mesh().axis_names)


def place(tree: Any, placement: Any) -> Any:
    """Places arrays on devices of all processes by their shardings.

    Args:
      tree: arrays; those on the host or on one process's devices must be the same in
        every process.
      placement: a tree of shardings of the same structure.
    """

    def put(x, sharding):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            # Keys cannot be placed on devices of other processes, but their data can.
            data = put(jax.random.key_data(x), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        local = getattr(x, "is_fully_addressable", True)
        if sharding.is_fully_addressable or not local:
            return jax.device_put(x, sharding)
        # With one device in each process, the array that device_put makes cannot be
        # saved (jax 0.10.2).
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])

    return jax.tree.map(put, tree, placement)


def place_examples(tree: Any, mesh: Mesh | None) -> Any:
    """Splits examples `[B, ...]` over a mesh, where B is a multiple of `num_parts`.

    Args:
      tree: NumPy arrays, the same in every process.
      mesh: a mesh with the axes `AXES`, or None to return the arrays unchanged.
    """
    if mesh is None:
        return tree
    by_example = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return place(tree, jax.tree.map(lambda _: by_example, tree))


def fetch(tree: Any) -> Any:
    """Returns arrays as NumPy arrays in every process, gathering parts where needed.

    All processes must call this.
    """

    def complete(x):
        if x.is_fully_addressable or x.is_fully_replicated:
            return x
        return _gathered(NamedSharding(x.sharding.mesh, PartitionSpec()))(x)

    return jax.device_get(jax.tree.map(complete, tree))


@functools.cache
def _gathered(everywhere: NamedSharding) -> Callable:
    # Cached, so that it is compiled once per shape and not in every call.
    return jax.jit(lambda x: x, out_shardings=everywhere)


def own_positions(sharding: NamedSharding, size: int) -> np.ndarray:
    """Returns the positions of an axis that are on devices of this process."""
    slices = sharding.addressable_devices_indices_map((size,)).values()
    found = {i for (piece,) in slices for i in range(*piece.indices(size))}
    return np.array(sorted(found), np.int32)
