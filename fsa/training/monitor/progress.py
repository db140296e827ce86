"""Progress reports of a run: metrics, and a bar with rate and time left.

Shapes: S steps of one call.
"""

import math
from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from fsa.training.monitor.finite import is_finite
from fsa.training.monitor.metrics import MetricsWriter
from fsa.training.monitor.throughput import COUNTS, Throughput


class Reporter:
    """Writes the metrics of each call while the next one runs, and shows the bar."""

    def __init__(
        self,
        writer: MetricsWriter,
        start: int,
        steps: int,
        progress: bool,
        check: Callable[[int, dict[str, np.ndarray]], None],
        throughput: Throughput,
    ):
        """Starts the bar.

        Args:
          writer: writes the metrics.
          start: number of steps made before.
          steps: the last step.
          progress: whether to show the bar.
          check: called with the first step of a call and its metrics `[S]`; raises if
            the run must stop.
          throughput: measures the rates of the run.
        """
        self._writer = writer
        self._check = check
        self._throughput = throughput
        self._bar = tqdm(
            total=steps, initial=start, unit="step", disable=not progress, smoothing=0.1
        )
        self._done = start
        self._pending = None

    def later(self, done: int, values: dict[str, jax.Array], operations: int | None):
        """Reports the call before this one, and keeps this one for the next time.

        Args:
          done: number of updates made when this call ends.
          values: metrics `[S]` of this call.
          operations: operations of this call, if known.
        """
        self.now()
        self._pending = done, values, operations

    def now(self):
        """Waits for the pending call and reports it; raises if the run has diverged."""
        if self._pending is None:
            return
        (done, values, operations), self._pending = self._pending, None
        values = jax.device_get(values)
        num_steps = done - self._done
        self._check(self._done, values)
        counts = {name: values.pop(name) for name in COUNTS if name in values}
        good = is_finite(values)
        means = {}
        if good.any():
            means = {name: float(np.mean(x[good])) for name, x in values.items()}
        if "skipped" in values:
            means["skipped"] = int(values["skipped"][-1])
        rates = self._throughput.of_call(num_steps, counts, operations)
        self._writer.write(done, "train", {**means, **rates})
        loss = means.get("loss", math.nan)
        shown = {"loss": f"{loss:.4f}", **_shown(rates)}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(num_steps)
        self._done = done

    def held_out(self, done: int, values: dict[str, float]):
        """Writes the metrics of validation, whose time does not count as training."""
        self._writer.write(done, "valid", values)
        self._throughput.restart()

    def close(self):
        """Ends the bar and closes the files."""
        self._bar.close()
        self._writer.close()


def _shown(rates: dict[str, float]) -> dict[str, str]:
    """Returns the rates that the bar shows, as text."""
    shown = {
        name: f"{tqdm.format_sizeof(rates[f'{name}_per_second'])}/s"
        for name in COUNTS
        if f"{name}_per_second" in rates
    }
    for name in ("mfu", "host_wait"):
        if name in rates:
            shown[name] = f"{rates[name]:.0%}"
    shown["memory"] = tqdm.format_sizeof(rates["peak_memory_bytes"], "B")
    return shown
