"""Measures seconds of programs that run in turns, and memory of this process."""

import ctypes
import gc
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


def in_turns(programs: dict[str, tuple], rounds: int) -> dict[str, list[float]]:
    """Times each program, a (function, its arguments), once in each round."""
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (program, arguments) in programs.items():
            # One run is not timed: after another program returned memory to the
            # system, the next that allocates pays for it.
            jax.block_until_ready(program(*arguments))
            begin = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def paired_ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Returns the median over rounds of one program's time divided by another's."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def memory(name: str) -> int:
    """Reads VmRSS or VmHWM of this process, in bytes; Linux only."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", status)[1])


def peak_memory(program: Callable[[], Any]) -> int:
    """Returns the most resident bytes while a program runs; Linux and glibc only."""
    # Returns memory that compilation has freed to the system.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Resets VmHWM.
    jax.block_until_ready(program())
    return memory("VmHWM")
