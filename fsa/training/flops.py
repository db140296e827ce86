"""How many operations a function's matrix products take, from its shapes alone."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(fn: Callable, *arguments: Any) -> int:
    """Operations in the matrix products of a function, each layer of a scan counted.

    XLA's own analysis counts the body of a loop once. A branch of a conditional counts
    if it is the largest; there may be no loops but scans.
    """
    return _flops(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _flops(jaxpr: Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
            continue
        inside = [_flops(x) for x in map(_plain, jax.tree.leaves(params)) if x]
        if name == "while" and any(inside):
            raise ValueError("a while loop has no known number of turns")
        if name == "cond":
            inside = [max(inside)]
        total += sum(inside) * (params["length"] if name == "scan" else 1)
    return total


def _plain(value: Any) -> Jaxpr | None:
    """The jaxpr in a parameter of a primitive, if it is one."""
    value = value.jaxpr if isinstance(value, ClosedJaxpr) else value
    return value if isinstance(value, Jaxpr) else None
