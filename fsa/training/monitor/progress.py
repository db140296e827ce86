"""What a run says while it trains: metrics, and a bar with rate and time left.

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
    """Metrics of calls, read while the next one runs, and the progress bar."""

    def __init__(
        self,
        writer: MetricsWriter,
        start: int,
        steps: int,
        progress: bool,
        check: Callable[[int, dict[str, np.ndarray]], None],
        speed: Throughput,
    ):
        """Starts the bar.

        Args:
          writer: where metrics go.
          start: steps made before.
          steps: to end at.
          progress: show the bar.
          check: of the steps of a call, given the first and their metrics `[S]`; raises
            where the run must stop.
          speed: of the run.
        """
        self._writer = writer
        self._check = check
        self._speed = speed
        self._bar = tqdm(
            total=steps, initial=start, unit="step", disable=not progress, smoothing=0.1
        )
        self._done = start
        self._pending = None

    def later(self, done: int, values: dict[str, jax.Array], operations: int | None):
        """Reports the call before this one, which ends at step `done`.

        Args:
          done: number of updates made by then.
          values: metrics `[S]`.
          operations: of the call, if known.
        """
        self.now()
        self._pending = done, values, operations

    def now(self):
        """Waits for the pending call; stops a run that has diverged."""
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
        speed = self._speed.of_call(num_steps, counts, operations)
        self._writer.write(done, "train", {**means, **speed})
        loss = means.get("loss", math.nan)
        shown = {"loss": f"{loss:.4f}", **_shown(speed)}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(num_steps)
        self._done = done

    def held_out(self, done: int, values: dict[str, float]):
        """Writes what validation said; its time is not training's."""
        self._writer.write(done, "valid", values)
        self._speed.restart()

    def close(self):
        """Ends the bar and closes the files."""
        self._bar.close()
        self._writer.close()


def _shown(speed: dict[str, float]) -> dict[str, str]:
    """What the bar has room for."""
    shown = {
        name: f"{tqdm.format_sizeof(speed[f'{name}_per_second'])}/s"
        for name in COUNTS
        if f"{name}_per_second" in speed
    }
    for name in ("mfu", "host_wait"):
        if name in speed:
            shown[name] = f"{speed[name]:.0%}"
    shown["memory"] = tqdm.format_sizeof(speed["peak_memory_bytes"], "B")
    return shown
