"""Floating-point operations and bytes of a program, counted from its shapes.

Products, convolutions and look-ups move memory; what is computed element by element is
taken as fused into them, so it counts operations and no bytes. A loop counts as often
as it runs if that is known, and once if it is not (`lax.while_loop`); of branches the
most expensive counts.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jax.extend import core

from . import compat, rows_dot

# What moves data about or makes it, and computes nothing.
_FREE = {
    *("broadcast_in_dim", "reshape", "transpose", "squeeze", "slice", "concatenate"),
    *("convert_element_type", "copy", "copy_p", "iota", "pad", "rev", "split", "stack"),
    *("stop_gradient", "name", "optimization_barrier", "tile", "reduce_precision"),
    *("dynamic_slice", "dynamic_update_slice", "gather", "scatter", "expand_dims"),
    *(
        "random_bits",
        "random_wrap",
        "random_unwrap",
        "random_seed",
        "sharding_constraint",
    ),
    *("pvary", "pcast", "pbroadcast", "reshard", "all_gather", "psum"),
}
_MOVING = {
    *("dot_general", "conv_general_dilated", "ragged_dot_general", "gather"),
    rows_dot.NAME,
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a program costs.

    Attributes:
      flops: floating-point operations; a product of `[m, k]` and `[k, n]` has 2 m k n.
      bytes: bytes that products and look-ups read and write.
    """

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Cost of both programs."""
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: int) -> "Cost":
        """Cost of a program that runs `count` times."""
        return Cost(self.flops * count, self.bytes * count)


def program_cost(jaxpr: core.ClosedJaxpr) -> Cost:
    """Counts what a program costs, see the module docstring."""
    return sum(map(_equation_cost, jaxpr.jaxpr.eqns), Cost())


def _equation_cost(eqn: core.JaxprEqn) -> Cost:
    inner = [program_cost(jaxpr) for jaxpr in inner_jaxprs(eqn)]
    if eqn.primitive.name == "scan":
        return inner[0].times(compat.scan_parts(eqn)[3]["length"])
    if eqn.primitive.name == "cond":
        return max(inner, key=lambda cost: cost.flops)
    if inner:
        return sum(inner, Cost())
    moved = [*eqn.invars, *eqn.outvars] if eqn.primitive.name in _MOVING else []
    return Cost(_flops(eqn), sum(_bytes(atom.aval) for atom in moved))


def inner_jaxprs(eqn: core.JaxprEqn) -> Iterator[core.ClosedJaxpr]:
    """Yields the jaxprs among an equation's parameters, such as branches or a body."""
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr | core.Jaxpr):
                yield compat.closed(one)


def _bytes(aval) -> int:
    if not hasattr(aval, "shape") or not isinstance(aval.dtype, np.dtype):
        return 0  # Such as a random key.
    return math.prod(aval.shape) * aval.dtype.itemsize


def contracted(eqn: core.JaxprEqn) -> int | None:
    """Returns how many numbers a product sums for each of its outputs.

    None if the equation is no product, by `lax.dot_general` or `rows_dot`.
    """
    if eqn.primitive.name == "dot_general":
        (axes, _), _ = eqn.params["dimension_numbers"]
        return math.prod(eqn.invars[0].aval.shape[axis] for axis in axes)
    if eqn.primitive.name == rows_dot.NAME:
        return eqn.invars[0].aval.shape[-1]
    return None


def _flops(eqn: core.JaxprEqn) -> int:
    name, params = eqn.primitive.name, eqn.params
    shapes = [getattr(atom.aval, "shape", ()) for atom in eqn.invars]
    out = sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)
    if (inner := contracted(eqn)) is not None:
        return 2 * out * inner
    if name == "ragged_dot_general":
        return 2 * out * shapes[0][-1]
    if name == "conv_general_dilated":
        features = params["dimension_numbers"].rhs_spec[0]
        return 2 * out * math.prod(shapes[1]) // shapes[1][features]
    if name in _FREE:
        return 0
    if name.startswith(("reduce_", "arg", "cum")):
        return math.prod(shapes[0])
    return out
