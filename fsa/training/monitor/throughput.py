"""Throughput of a run: steps, choices and tokens a second, MFU, waiting and memory.

Shapes: S steps of one call, B examples of a global batch.
"""

import collections
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from fsa.cost_model.flops import flops, peak_flops

# Metrics of a loss that count something per example; rates are given for each.
COUNTS = ("choices", "tokens")

_Item = TypeVar("_Item")


class Throughput:
    """Measures the rates of calls, each from the end of the call before it."""

    def __init__(self, batch_size: int, window: int = 100):
        """Starts the clock.

        Args:
          batch_size: B.
          window: number of latest calls whose step times give the percentiles.
        """
        self._batch_size = batch_size
        self._steps: collections.deque[float] = collections.deque(maxlen=window)
        self._peak = peak_flops(jax.devices()[0].device_kind)
        self._flops: dict[Any, int | None] = {}
        self._compiled = False
        self.restart()

    def restart(self):
        """Restarts the clock, so that the time since the last call does not count."""
        self._since, self._waited = time.perf_counter(), 0.0

    def waiting_for(self, items: Iterator[_Item]) -> Iterator[_Item]:
        """Yields items, and measures the time spent waiting for them."""
        while True:
            begin = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            self._waited += time.perf_counter() - begin
            yield item

    def flops(
        self, call: Callable, state: Any, constants: Any, examples: Any, key
    ) -> Any:
        """Counts the operations of a call; it is traced once per shape of examples.

        Returns:
          The number of operations; None if they cannot be counted, or if the device's
          peak is unknown.
        """
        if self._peak is None:
            return None
        shapes = tuple(x.shape for x in jax.tree.leaves(examples))
        if shapes not in self._flops:
            try:
                self._flops[shapes] = flops(call, state, constants, examples, key)
            except ValueError:
                self._flops[shapes] = None
        return self._flops[shapes]

    def of_call(
        self, num_steps: int, counts: dict[str, np.ndarray], operations: int | None
    ) -> dict[str, float]:
        """Returns the rates of a call that has just ended.

        Args:
          num_steps: S.
          counts: those of `COUNTS` that the loss has, `[S]` per example.
          operations: see `flops`.

        Returns:
          `steps_per_second`; for each count `..._per_second`; `mfu`, as a share of the
          peak of all devices; `step_seconds_p50`, `_p90` and `_max` of the calls in the
          window, without the first, which compiles; `host_wait`, the share of time in
          which the loop waited for examples; `peak_memory_bytes` of a device, or of
          this process if devices do not report it.
        """
        elapsed = time.perf_counter() - self._since
        found = {"steps_per_second": num_steps / elapsed}
        for name, per_example in counts.items():
            total = self._batch_size * float(np.sum(per_example))
            found[f"{name}_per_second"] = total / elapsed
        if operations is not None:
            found["mfu"] = operations / elapsed / (self._peak * jax.device_count())
        if self._compiled:
            self._steps.append(elapsed / num_steps)
        self._compiled = True
        if self._steps:
            p50, p90 = np.percentile(self._steps, (50, 90))
            found["step_seconds_p50"], found["step_seconds_p90"] = p50, p90
            found["step_seconds_max"] = max(self._steps)
        found["host_wait"] = min(self._waited / elapsed, 1.0)
        found["peak_memory_bytes"] = _peak_memory()
        self.restart()
        return found


def _peak_memory() -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
