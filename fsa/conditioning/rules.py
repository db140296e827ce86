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

from . import compat, leaf, products
from .leaf import Conditioned, NotSeparable, is_conditioned


class Value(Protocol):
    """An input of an equation.

    Attributes:
      data: the array or the `Conditioned`.
      per_example: whether it, or the w of a `Conditioned`, depends on the example.
    """

    data: Any
    per_example: bool


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
    params = dict(eqn.params)
    return products.gather(_only_first(eqn, inputs), inputs[1].data, **params)


@_rule("concatenate")
def _concatenate(eqn, *inputs: Value):
    leaves = [v.data if is_conditioned(v.data) else Conditioned(v.data) for v in inputs]
    if any(v.per_example and not is_conditioned(v.data) for v in inputs):
        raise NotSeparable("it is concatenated with data of an example")
    return leaf.concatenate(leaves, eqn.params["dimension"])


@_rule("convert_element_type")
def _convert(eqn, value: Value):
    if not jnp.issubdtype(eqn.params["new_dtype"], jnp.floating):
        raise NotSeparable("it is cast to a dtype that is not floating")
    return value.data.astype(eqn.params["new_dtype"])


@_rule("neg")
def _neg(eqn, value: Value):
    return leaf.scale_by(value.data, lambda part: -part)


@_rule("mul")
def _mul(eqn, left: Value, right: Value):
    value, other = (left, right) if is_conditioned(left.data) else (right, left)
    _check_array(other)
    if other.data.size == 1:
        return _by_scalar(lax.mul, value, other)
    if other.per_example or value.data.terms:
        raise NotSeparable("it is multiplied by an array")
    return dataclasses.replace(value.data, base=value.data.base * other.data)


@_rule("div")
def _div(eqn, value: Value, other: Value):
    if not is_conditioned(value.data):
        raise NotSeparable("it is a divisor")
    _check_array(other)
    if other.data.size == 1:
        return _by_scalar(lax.div, value, other)
    if other.per_example or value.data.terms:
        raise NotSeparable("it is divided by an array")
    return dataclasses.replace(value.data, base=value.data.base / other.data)


def _check_array(other: Value):
    if is_conditioned(other.data):
        raise NotSeparable("two conditioned parameters meet")


def _by_scalar(op, value: Value, other: Value) -> Conditioned:
    scalar = jnp.reshape(other.data, ())
    if not other.per_example:
        return leaf.scale_by(
            value.data, lambda part: op(part, scalar.astype(part.dtype))
        )
    # A number that depends on the example must not reach w, which all examples share.
    factor = op(jnp.ones((), jnp.float32), scalar.astype(jnp.float32))
    scaled = leaf.scale_by(value.data, lambda part: part * factor)
    gain = jnp.reshape(factor - 1, (1,) * value.data.ndim)
    return Conditioned(value.data.base, (*value.data.scales, gain), scaled.terms)


@_rule("add", "add_any")
def _add(eqn, left: Value, right: Value):
    value, other = (left, right) if is_conditioned(left.data) else (right, left)
    _check_array(other)
    if other.per_example and other.data.size > 1:
        raise NotSeparable("data of an example are added to it")
    return leaf.add(value.data, other.data, shared=not other.per_example)


@_rule("sub")
def _sub(eqn, left: Value, right: Value):
    data = right.data
    negative = _neg(eqn, right) if is_conditioned(data) else -data
    return _add(eqn, left, dataclasses.replace(right, data=negative))


@_rule("dot_general")
def _dot_general(eqn, left: Value, right: Value):
    if is_conditioned(left.data) and is_conditioned(right.data):
        raise NotSeparable("two conditioned parameters meet")
    return products.dot_general(left.data, right.data, **eqn.params)


@_rule("conv_general_dilated")
def _conv(eqn, left: Value, right: Value):
    if is_conditioned(left.data):
        raise NotSeparable("it is the input of a convolution, not its kernel")
    return products.conv_general_dilated(left.data, right.data, **eqn.params)


@_rule("sharding_constraint")
def _sharding_constraint(eqn, value: Value):
    sharding = eqn.params["sharding"]
    if not isinstance(sharding, NamedSharding):
        raise NotSeparable("its sharding constraint has no mesh axes")

    def part(x):
        spec = part_spec(sharding.spec, x.shape, value.data.shape)
        return lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, spec))

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
