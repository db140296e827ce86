"""A profile of some steps of a run, on request."""

from collections.abc import Callable
from typing import Any

import jax
from etils import epath


class Profile:
    """Traces the calls that make certain steps.

    What it writes opens in TensorBoard with its profile plugin (`--logdir` the folder),
    and in ui.perfetto.dev (`perfetto_trace.json.gz` in the folder).
    """

    def __init__(self, folder: epath.PathLike, first: int, last: int):
        """Traces nothing yet.

        Args:
          folder: where the profile goes.
          first: number of a step from 0; the run's very first one also compiles.
          last: of a step, `first` or later.
        """
        self._folder = str(folder)
        self._first, self._last = first, last
        self._running = self._written = False

    def __call__(self, first: int, count: int, call: Callable, *arguments: Any) -> Any:
        """What a call returns that makes `count` steps from `first` on."""
        begins = first + count > self._first and not self._running
        if begins and first <= self._last:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True
        result = call(*arguments)
        if self._running and first + count > self._last:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._running, self._written = False, True
        return result

    def __str__(self) -> str:
        """Where it is, or why there is none."""
        if self._written:
            return f"Profile: tensorboard --logdir={self._folder}"
        return (
            f"No profile: steps {self._first} to {self._last} were made before; take "
            "later ones"
        )
