"""One rule for each primitive that can act on a conditioned parameter part by part.

A rule takes the jaxpr equation and its inputs, of which at least one holds a
`Conditioned`. It returns the output's data, or a list for several outputs. It raises
`NotSeparable` if the result needs the parameter to be built.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.sharding import NamedSharding, PartitionSpec

from . import compat, leaf, products, rows_dot
from .leaf import Conditioned, NotSeparable, is_conditioned


class Value(Protocol):
    """An input of an equation.

    Attributes:
      data: the array or the `Conditioned`.
      per_example: whether it, or the w of a `Conditioned`, depends on the example.
      narrow: an array that `data` is a broadcast of, with as many axes.
      is_zero: whether it is known to be 0 everywhere.
    """

    data: Any
    per_example: bool
    narrow: Any
    is_zero: bool

    def replace(self, data: Any, narrow: Any = None) -> "Value":
        """Returns it with other data."""


RULES = {}
# A parameter that these index with the data of an example becomes an activation.
INDEXING = {"gather", "dynamic_slice"}


def _rule(*names: str):
    def register(fn):
        RULES.update(dict.fromkeys(names, fn))
        return fn

    return register


def _only_first(eqn: core.JaxprEqn, inputs) -> Conditioned:
    """Returns the first input if no other is conditioned."""
    first, *others = inputs
    if not is_conditioned(first.data) or any(is_conditioned(v.data) for v in others):
        raise NotSeparable(f"it is an index of {eqn.primitive.name}")
    return first.data


def _bind(eqn: core.JaxprEqn, part: jax.Array) -> jax.Array:
    out = eqn.primitive.bind(part, **eqn.params)
    return out[0] if eqn.primitive.multiple_results else out


@_rule(*compat.VARY)
def _vary(eqn, value: Value):
    return value.data.map_parts(lambda part: compat.vary(part, eqn.params["axes"]))


@_rule("all_gather", "all_gather_invariant")
def _all_gather(eqn, value: Value):
    """Gathers a sharded weight; parts that are alike on all devices are left alone."""
    params, data = eqn.params, value.data
    axis, names = params["all_gather_dimension"], params["axis_name"]
    names = set(names if isinstance(names, tuple) else (names,))
    # Without these types, a part that is alike cannot be told from one that is not.
    if not params["tiled"] or not names <= compat.varies_over(data.base):
        raise NotSeparable("it is gathered without `tiled` and `check_vma`")

    def part(x):
        if x.shape[axis] == data.shape[axis]:
            return _bind(eqn, x)
        if names & compat.varies_over(x):
            raise NotSeparable("devices that each modulate their own part gather it")
        return x

    return data.map_parts(part)


@_rule(*compat.POINTWISE)
def _pointwise(eqn, *values: Value):
    return [
        value.data.map_parts(lambda part: _bind(eqn, part))
        if is_conditioned(value.data)
        else _bind(eqn, value.data)
        for value in values
    ]


@_rule("transpose")
def _transpose(eqn, value: Value):
    return value.data.transpose(eqn.params["permutation"])


@_rule("reshape")
def _reshape(eqn, value: Value):
    if eqn.params["dimensions"] is not None:
        raise NotSeparable("it transposes and reshapes at once")
    return leaf.reshape(value.data, eqn.params["new_sizes"])


@_rule("squeeze")
def _squeeze(eqn, value: Value):
    return value.data.map_parts(lambda part: _bind(eqn, part))


@_rule("rev")
def _rev(eqn, value: Value):
    return value.data.map_parts(lambda part: _bind(eqn, part))


@_rule("broadcast_in_dim")
def _broadcast_in_dim(eqn, value: Value, *_):
    params = eqn.params
    return leaf.broadcast_in_dim(
        value.data, params["shape"], params["broadcast_dimensions"]
    )


@_rule("tile")
def _tile(eqn, value: Value):
    """Repeats it along new axes, and merges each with the axis that it repeats."""
    data, reps = value.data, eqn.params["reps"]
    pairs = [size for pair in zip(reps, data.shape, strict=True) for size in pair]
    repeated = leaf.broadcast_in_dim(data, pairs, range(1, 2 * data.ndim, 2))
    return leaf.reshape(repeated, eqn.outvars[0].aval.shape)


@_rule("slice")
def _slice(eqn, value: Value):
    params = eqn.params
    strides = params["strides"] or (1,) * value.data.ndim
    starts, limits = params["start_indices"], params["limit_indices"]
    return leaf.slice_parts(value.data, starts, limits, strides)


@_rule("dynamic_slice")
def _dynamic_slice(eqn, *inputs: Value):
    starts = [value.data for value in inputs[1:]]
    return leaf.slice_parts(_only_first(eqn, inputs), starts, eqn.params["slice_sizes"])


@_rule("split")
def _split(eqn, value: Value):
    axis, start, outs = eqn.params["axis"], 0, []
    for size in map(int, eqn.params["sizes"]):
        index = [slice(None)] * value.data.ndim
        index[axis] = slice(start, start + size)
        outs.append(value.data[tuple(index)])
        start += size
    return outs


@_rule("gather")
def _gather(eqn, *inputs: Value):
    indices, shared = inputs[1].data, not inputs[1].per_example
    data = _only_first(eqn, inputs)
    return products.gather(data, indices, shared=shared, **eqn.params)


@_rule("concatenate")
def _concatenate(eqn, *inputs: Value):
    return leaf.concatenate(_all_lazy(inputs), eqn.params["dimension"])


def _all_lazy(inputs) -> list[Conditioned]:
    if any(v.per_example and not is_conditioned(v.data) for v in inputs):
        raise NotSeparable("it is concatenated with data of an example")
    if any(is_conditioned(v.data) and v.data.is_integer for v in inputs):
        raise NotSeparable("integers are concatenated")
    return [v.data if is_conditioned(v.data) else Conditioned(v.data) for v in inputs]


@_rule("stack")
def _stack(eqn, *inputs: Value):
    return leaf.stack(_all_lazy(inputs), eqn.params["axis"])


@_rule("convert_element_type")
def _convert(eqn, value: Value):
    if not jnp.issubdtype(eqn.params["new_dtype"], jnp.floating):
        raise NotSeparable("it is cast to a dtype that is not floating")
    return value.data.astype(eqn.params["new_dtype"])


@_rule("reduce_precision")
def _reduce_precision(eqn, value: Value):
    if value.data.gains:
        raise NotSeparable("it is rounded after it was multiplied")
    return dataclasses.replace(value.data, base=_bind(eqn, value.data.base))


@_rule("neg")
def _neg(eqn, value: Value):
    _refuse_integers(value)
    return leaf.multiply(value.data, jnp.full((), -1, value.data.dtype), shared=True)


def _refuse_integers(value: Value):
    if value.data.is_integer:
        raise NotSeparable("integer arithmetic on it")


@_rule("mul")
def _mul(eqn, left: Value, right: Value):
    value, other = (left, right) if is_conditioned(left.data) else (right, left)
    _check_array(other)
    _refuse_integers(value)
    data = leaf.broadcast_to(value.data, eqn.outvars[0].aval.shape)
    return leaf.multiply(data, other.narrow, shared=not other.per_example)


@_rule("div")
def _div(eqn, value: Value, other: Value):
    if not is_conditioned(value.data):
        raise NotSeparable("it is a divisor")
    _check_array(other)
    _refuse_integers(value)
    data = leaf.broadcast_to(value.data, eqn.outvars[0].aval.shape)
    return leaf.multiply(data, 1 / other.narrow, shared=not other.per_example)


def _check_array(other: Value):
    if is_conditioned(other.data):
        raise NotSeparable("two conditioned parameters meet")


@_rule("add", "add_any")
def _add(eqn, left: Value, right: Value):
    value, other = (left, right) if is_conditioned(left.data) else (right, left)
    _check_array(other)
    _refuse_integers(value)
    data = leaf.broadcast_to(value.data, eqn.outvars[0].aval.shape)
    return leaf.add(data, other.narrow, shared=not other.per_example)


@_rule("sub")
def _sub(eqn, left: Value, right: Value):
    if is_conditioned(right.data):
        return _add(eqn, left, right.replace(_neg(eqn, right)))
    return _add(eqn, left, right.replace(-right.data, -right.narrow))


@_rule("select_n")
def _select(eqn, which: Value, *cases: Value):
    """Masks the parameter, and adds what the other cases are elsewhere."""
    lazy = [n for n, case in enumerate(cases) if is_conditioned(case.data)]
    if len(lazy) != 1 or which.per_example:
        raise NotSeparable("an example, or another parameter, decides its entries")
    (n,), value = lazy, cases[lazy[0]]
    _refuse_integers(value)

    def chosen(n):
        # A boolean chooses between two, an integer between any number of cases.
        same = which.narrow == jnp.asarray(n).astype(which.narrow.dtype)
        return same.astype(value.data.dtype)

    out = leaf.multiply(value.data, chosen(n), shared=True)
    for k, case in enumerate(cases):
        if k != n and not case.is_zero:
            # What is not finite may stand where it is not chosen.
            kept = jnp.where(chosen(k) == 1, case.narrow, 0)
            out = leaf.add(out, kept, shared=not case.per_example)
    return out


@_rule("pad")
def _pad(eqn, value: Value, filler: Value):
    if not is_conditioned(value.data):
        raise NotSeparable("it is what an array is padded with")
    _check_array(filler)
    config = eqn.params["padding_config"]
    out = leaf.pad(value.data, config)
    if filler.is_zero:
        return out
    _refuse_integers(value)
    zeros = jnp.zeros(value.data.shape, filler.data.dtype)
    around = lax.pad(zeros, jnp.reshape(filler.data, ()), config)
    return leaf.add(out, around, shared=not filler.per_example)


@_rule("dot_general")
def _dot_general(eqn, left: Value, right: Value):
    return _product(left, right, **eqn.params)


@_rule(rows_dot.NAME)
def _rows_dot(eqn, rows: Value, matrix: Value):
    # The model itself has a product with a `Conditioned`.
    contracted = (rows.data.ndim - 1,), (0,)
    return _product(
        *(rows, matrix, (contracted, ((), ()))),
        precision=eqn.params["precision"],
        preferred_element_type=eqn.params["dtype"],
    )


def _product(left: Value, right: Value, *args, **options):
    if is_conditioned(left.data) and is_conditioned(right.data):
        raise NotSeparable("two conditioned parameters meet")
    return products.dot_general(left.data, right.data, *args, **options)


@_rule("conv_general_dilated")
def _conv(eqn, left: Value, right: Value):
    if is_conditioned(left.data):
        raise NotSeparable("it is the input of a convolution, not its kernel")
    return products.conv_general_dilated(left.data, right.data, **eqn.params)


@_rule("sharding_constraint")
def _sharding_constraint(eqn, value: Value):
    return _placed(lax.with_sharding_constraint, eqn.params["sharding"], value)


@_rule("reshard")
def _reshard(eqn, value: Value):
    return _placed(jax.sharding.reshard, eqn.params["dst_sharding"], value)


def _placed(place, sharding, value: Value) -> Conditioned:
    if not isinstance(sharding, NamedSharding):
        raise NotSeparable("its sharding constraint has no mesh axes")

    def part(x):
        spec = part_spec(sharding.spec, x.shape, value.data.shape)
        return place(x, NamedSharding(sharding.mesh, spec))

    return value.data.map_parts(part)


def part_spec(spec: PartitionSpec, part_shape, shape) -> PartitionSpec:
    """Returns the parameter's sharding, without axes along which a part is broadcast.

    Args:
      spec: sharding of the parameter.
      part_shape: shape of the part; it may have the rank as one more axis, which is not
        sharded.
      shape: shape of the parameter.
    """
    names = [*spec, *[None] * (len(part_shape) - len(spec))]
    sizes = [*shape, *[0] * (len(part_shape) - len(shape))]
    pairs = zip(names, part_shape, sizes, strict=True)
    return PartitionSpec(*(name if a == b else None for name, a, b in pairs))
