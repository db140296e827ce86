"""Floating-point operations of functions, and the peak rates of devices.

Only matrix products count, each as often as it is carried out, so a product that
rematerialisation repeats counts twice. Products inside kernels (cuDNN, Pallas) are not
seen and do not count.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from fsa.conditioning.program_cost import contracted
from fsa.cost_model.chips import CHIPS

# Operations a second of one JAX device, in dense bfloat16 products accumulated in
# float32. NVIDIA's data sheets often state twice as much, for weights half of which are
# zero.
_PEAK_FLOPS = {
    # At run time a v4 chip is one device, although topologies for compilation have two.
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
    """Returns the peak operations a second of a device, or None if it is unknown.

    Args:
      device_kind: `jax.devices()[0].device_kind`.
    """
    return _PEAK_FLOPS.get(device_kind)


def flops(fn: Callable, *arguments: Any, while_trips: int | None = None) -> int:
    """Counts the operations in the matrix products of a function.

    Every iteration of a scan counts, whereas XLA's own analysis counts the body of a
    loop once. Of a conditional, the largest branch counts. What runs on every device of
    a mesh counts for each device.

    Args:
      fn: a function, which is traced but not run.
      *arguments: its arguments; arrays, or shapes of arrays.
      while_trips: how often the body of a while loop is taken to run, for loops that
        cost little beside the rest, such as the search for the mode of a posterior.

    Raises:
      ValueError: for products in a while loop, whose number of iterations is unknown,
        unless `while_trips` is given.
    """
    return _flops(jax.make_jaxpr(fn)(*arguments).jaxpr, while_trips)


def _flops(jaxpr: Jaxpr, while_trips: int | None) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        inner = contracted(eqn)
        if inner is not None:
            total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
            continue
        parts = filter(None, map(_plain, jax.tree.leaves(params)))
        inside = [_flops(part, while_trips) for part in parts]
        if name == "while" and any(inside) and while_trips is None:
            raise ValueError("a while loop has no known number of iterations")
        if name == "cond":
            inside = [max(inside)]
        times = {
            "scan": params.get("length"),
            "shard_map": _size(params.get("mesh")),
            "while": while_trips,
        }
        total += sum(inside) * (times.get(name) or 1)
    return total


def _size(mesh: Any) -> int | None:
    return getattr(mesh, "size", None)


def _plain(value: Any) -> Jaxpr | None:
    """Returns a primitive's parameter as a jaxpr, or None if it is not one."""
    value = value.jaxpr if isinstance(value, ClosedJaxpr) else value
    return value if isinstance(value, Jaxpr) else None
