"""A watchdog, which logs when a call takes far longer than usual."""

import contextlib
import logging
import statistics
import threading
import time

_LOG = logging.getLogger(__name__)

# The median is of the last `_RECENT` calls; with fewer than `_LEAST` there is none.
_RECENT, _LEAST = 101, 5


class Watchdog:
    """Watches the time between calls of `beat`, from a thread of its own.

    It logs a line at `factor` times the median, and again each time that this time has
    doubled. So a hang shows in the log while it lasts, without filling it.
    """

    def __init__(self, *, factor: float = 10.0, least_seconds: float = 10.0):
        """Creates the watchdog; entering it starts the thread.

        Args:
          factor: a call is too long if it takes this many times the median.
          least_seconds: a call that takes less is never too long.
        """
        self._factor, self._least_seconds = factor, least_seconds
        self._durations: list[float] = []
        self._step = 0
        self._since: float | None = None
        self._warned = 0.0
        self._changed = threading.Condition()
        self._stop = False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        """Starts the thread."""
        self._thread.start()
        return self

    def __exit__(self, *unused):
        """Ends the thread."""
        with self._changed:
            self._stop = True
            self._changed.notify()
        self._thread.join()

    def beat(self, step: int):
        """Notes that a call begins at `step`, and that the one before it has ended."""
        with self._changed:
            now = time.monotonic()
            if self._since is not None:
                took = now - self._since
                if self._warned:
                    _LOG.warning("Step %d: continued after %.1f s", self._step, took)
                self._durations = [*self._durations, took][-_RECENT:]
            self._step, self._since, self._warned = step, now, 0.0
            self._changed.notify()

    @contextlib.contextmanager
    def paused(self):
        """Leaves out the time of its body, such as validation."""
        with self._changed:
            self._since = None
        yield

    def _watch(self):
        with self._changed:
            while not self._stop:
                self._changed.wait(self._left())
                if not self._stop and self._left() == 0:
                    self._warn()

    def _left(self) -> float | None:
        """Returns the seconds until the call is too long; None if that is not known."""
        if self._since is None or len(self._durations) < _LEAST:
            return None
        usual = statistics.median(self._durations)
        limit = max(self._factor * usual, self._least_seconds, 2 * self._warned)
        return max(0.0, self._since + limit - time.monotonic())

    def _warn(self):
        self._warned = time.monotonic() - self._since
        _LOG.warning(
            "Step %d: not finished after %.1f s, the median of a call is %.2f s; it "
            "compiles, waits for data or for another process, or hangs",
            self._step,
            self._warned,
            statistics.median(self._durations),
        )
