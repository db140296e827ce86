"""Floating-point operations of programs, and what chips can do of them.

Operations are those of matrix products as they are carried out, so that what
rematerialisation does twice counts twice. Kernels (cuDNN, Pallas) are not seen into.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from fsa.cost_model.chips import CHIPS

# Dense bfloat16 products accumulated in float32, per second and JAX device. NVIDIA's
# data sheets often state twice as much, for weights half of which are zero.
_PEAK_FLOPS = {
    # A device is a chip at run time, whatever a topology for compilation says of v4.
    "TPU v4": CHIPS["v4"].peak,
    "TPU v5 lite": CHIPS["v5e"].peak,
    "TPU v5e": CHIPS["v5e"].peak,
    "TPU v5": CHIPS["v5p"].peak,
    "TPU v5p": CHIPS["v5p"].peak,
    "TPU v6 lite": CHIPS["v6e"].peak,
    "TPU v6e": CHIPS["v6e"].peak,
    "TPU7x": CHIPS["tpu7x"].peak / CHIPS["tpu7x"].devices,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Operations a second that a device can do at most; None where that is unknown.

    Args:
      device_kind: `jax.devices()[0].device_kind`.
    """
    return _PEAK_FLOPS.get(device_kind)


def flops(fn: Callable, *arguments: Any) -> int:
    """Operations in the matrix products of a function, each turn of a scan counted.

    XLA's own analysis counts the body of a loop once. A branch of a conditional counts
    if it is the largest. What runs on every device of a mesh counts for each.

    Args:
      fn: to be traced, not run.
      *arguments: of it; arrays, or shapes of arrays.

    Raises:
      ValueError: for products in a while loop, which has no known number of turns.
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
        turns = {"scan": params.get("length"), "shard_map": _size(params.get("mesh"))}
        total += sum(inside) * (turns.get(name) or 1)
    return total


def _size(mesh: Any) -> int | None:
    return getattr(mesh, "size", None)


def _plain(value: Any) -> Jaxpr | None:
    """The jaxpr in a parameter of a primitive, if it is one."""
    value = value.jaxpr if isinstance(value, ClosedJaxpr) else value
    return value if isinstance(value, Jaxpr) else None
