"""Progress reports of a run: metrics, validations, and a bar with rate and time left.

Shapes: S steps of one call.
"""

import math
from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from fsa import bars
from fsa.training.monitor.finite import is_finite
from fsa.training.monitor.metrics import MetricsWriter
from fsa.training.monitor.throughput import COUNTS, Throughput


class Reporter:
    """Writes the metrics of each call while the next one runs, and shows the bar.

    The bar says "compiling" until the first call has ended.
    """

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
        self._progress = progress
        self._bar = bars.Bar(steps, "Training", "step", done=start, shown=progress)
        self._bar.say("compiling")
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
        self._bar.say("")
        self._bar.advance(num_steps, loss=f"{loss:.4f}", **_shown(rates))
        self._done = done

    def say(self, doing: str):
        """Says what is done between two calls, such as "validating"."""
        self._bar.say(doing)

    def held_out(self, done: int, values: dict[str, float]):
        """Writes the metrics of validation, whose time does not count as training."""
        self._writer.write(done, "valid", values)
        self._throughput.restart()
        nll = _mean_nll(values)
        self._bar.advance(0, valid=f"{nll:.4f}")
        if self._progress:
            found = "".join(f", {text}" for text in _accuracies(values))
            bars.write(f"Step {done}: validation NLL {nll:.4f}{found}")

    def close(self):
        """Ends the bar and closes the files."""
        self._bar.close()
        self._writer.close()


def _mean_nll(values: dict[str, float]) -> float:
    """Returns the mean NLL of a validation, which is its score if it has no other.

    The score of a policy that is not trained yet is raised, and would say nothing.
    """
    found = [value for name, value in values.items() if name.startswith("nll_at_")]
    return float(np.mean(found)) if found else values["score"]


def _accuracies(values: dict[str, float]) -> list[str]:
    """Returns the accuracies without and with the most choices known, as text."""
    known = [name for name in values if name.startswith("accuracy_at_")]
    ends = dict.fromkeys([*known[:1], *known[-1:]])
    return [
        f"{100 * values[n]:.0f}% right with {n.split('_')[-1]} choices known"
        for n in ends
    ]


def _shown(rates: dict[str, float]) -> dict[str, str]:
    """Returns the rates that the bar shows, as text."""
    shown = {
        name: f"{tqdm.format_sizeof(rates[f'{name}_per_second'])}/s"
        for name in COUNTS
        if f"{name}_per_second" in rates
    }
    if "mfu" in rates:
        shown["mfu"] = f"{rates['mfu']:.0%}"
    shown["memory"] = tqdm.format_sizeof(rates["peak_memory_bytes"], "B")
    return shown
