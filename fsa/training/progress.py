"""What a run says while it trains: metrics, and a bar with rate and time left.

Shapes: S steps of one call.
"""

import math
import time
from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from fsa.training.finite import is_finite
from fsa.training.metrics import MetricsWriter


class Reporter:
    """Metrics of calls, read while the next one runs, and the progress bar."""

    def __init__(
        self,
        writer: MetricsWriter,
        start: int,
        steps: int,
        progress: bool,
        check: Callable[[int, dict[str, np.ndarray]], None],
    ):
        """Starts the bar.

        Args:
          writer: where metrics go.
          start: steps made before.
          steps: to end at.
          progress: show the bar.
          check: of the steps of a call, given the first and their metrics `[S]`; raises
            where the run must stop.
        """
        self._writer = writer
        self._check = check
        self._bar = tqdm(
            total=steps, initial=start, unit="step", disable=not progress, smoothing=0.1
        )
        self._done = start
        self._pending = None
        self._since = time.perf_counter()

    def later(self, done: int, values: dict[str, jax.Array]):
        """Reports the call before this one, which ended at step `done`."""
        self.now()
        self._pending = done, values

    def now(self):
        """Waits for the pending call; stops a run that has diverged."""
        if self._pending is None:
            return
        (done, values), self._pending = self._pending, None
        values = jax.device_get(values)
        num_steps = done - self._done
        self._check(self._done, values)
        good = is_finite(values)
        means = {}
        if good.any():
            means = {name: float(np.mean(x[good])) for name, x in values.items()}
        if "skipped" in values:
            means["skipped"] = int(values["skipped"][-1])
        elapsed = time.perf_counter() - self._since
        self._since = time.perf_counter()
        means["steps_per_second"] = num_steps / elapsed
        self._writer.write(done, "train", means)
        loss = means.get("loss", math.nan)
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._bar.update(num_steps)
        self._done = done

    def held_out(self, done: int, values: dict[str, float]):
        """Writes what validation said; its time is not training's."""
        self._writer.write(done, "valid", values)
        self._since = time.perf_counter()

    def close(self):
        """Ends the bar and closes the files."""
        self._bar.close()
        self._writer.close()
