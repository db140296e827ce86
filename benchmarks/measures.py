"""What benchmarks count: seconds in turns, bytes, floating-point operations."""

import ctypes
import gc
import math
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def in_turns(programs: dict[str, tuple], rounds: int) -> dict[str, list[float]]:
    """Seconds of (function, its arguments) in each round."""
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (program, arguments) in programs.items():
            # Once for nothing: memory that another program just gave back to the
            # system costs the next one that asks for it.
            jax.block_until_ready(program(*arguments))
            begin = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def paired_ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """The median over rounds of one program's time over another's."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes; Linux only."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", status)[1])


def peak_memory(program: Callable[[], Any]) -> int:
    """Most resident bytes of this process while a program runs; Linux, glibc."""
    # What compilation left behind goes back to the system.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    jax.block_until_ready(program())
    return memory("VmHWM")


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
