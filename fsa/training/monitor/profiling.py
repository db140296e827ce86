"""A profile of some steps of a run."""

from collections.abc import Callable
from typing import Any

import jax
from etils import epath


class Profile:
    """Traces the calls that run certain steps.

    TensorBoard's profile plugin opens the result (`--logdir` is the folder), and
    ui.perfetto.dev opens `perfetto_trace.json.gz` in it.
    """

    def __init__(self, folder: epath.PathLike, first: int, last: int):
        """Creates the profile; it starts with the call that runs step `first`.

        Args:
          folder: folder for the profile.
          first: number of the first step, from 0; the run's first call also compiles.
          last: number of the last step, `first` or later.
        """
        self._folder = str(folder)
        self._first, self._last = first, last
        self._running = self._written = False

    def __call__(self, first: int, count: int, call: Callable, *arguments: Any) -> Any:
        """Returns `call(*arguments)`, which runs `count` steps from `first` on."""
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
        """Returns the command that shows the profile, or why there is no profile."""
        if self._written:
            return f"Profile: tensorboard --logdir={self._folder}"
        return (
            f"No profile: steps {self._first} to {self._last} were run before; choose "
            "later ones"
        )
