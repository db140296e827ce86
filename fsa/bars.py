"""Bars that say what a command is doing and how long it will take, on stderr.

On a terminal a bar is drawn by tqdm, and its clock runs while a long call is made.
Elsewhere, as in a pipe or in a log file of SLURM, there are lines in its place: none
for what takes less than 3 seconds, then one every 30 seconds, and a last one.
"""

import atexit
import logging
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

# Seconds until the first line, and from one line to the next.
_FIRST, _EVERY = 3.0, 30.0
_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

_Item = TypeVar("_Item")

_open: "weakref.WeakSet[Bar]" = weakref.WeakSet()
# Whether bars are shown at all, see `hide`.
_shown = True


class Bar:
    """The progress of something that consists of a known number of things."""

    def __init__(
        self, total: int, what: str, unit: str, *, done: int = 0, shown: bool = True
    ):
        """Starts the bar.

        Args:
          total: the number of things.
          what: what is done, such as "Training".
          unit: what one thing is called, such as "step".
          done: the number of things that were done before.
          shown: whether to show anything.
        """
        self._meter = dict(total=total, unit=unit, initial=done)
        self._what, self._done = what, done
        self._doing, self._values = "", {}
        self._begin = self._said = time.monotonic()
        self._num_lines = 0
        self._drawn = None
        self._closed = threading.Event()
        if not (shown and _shown):
            self._closed.set()
            return
        if _is_drawn():
            self._drawn = tqdm(
                desc=what, file=sys.stderr, smoothing=0.1, leave=False, **self._meter
            )
        _open.add(self)
        threading.Thread(
            target=_show_often, args=(weakref.ref(self), self._closed), daemon=True
        ).start()

    def advance(self, count: int = 1, **values: str) -> None:
        """Counts things that were done; values are shown beside the bar from now on."""
        self._done += count
        self._values |= values
        if self._closed.is_set():
            return
        if self._drawn is None:
            self.show()
        else:
            self._drawn.set_postfix_str(self._postfix, refresh=False)
            self._drawn.update(count)

    def say(self, doing: str) -> None:
        """Says what is being done now, such as "compiling"; "" ends it."""
        self._doing = doing
        if self._drawn is not None:
            self._drawn.set_postfix_str(self._postfix)

    def show(self) -> None:
        """Draws the bar again, or writes a line if it is time for one."""
        if self._closed.is_set():
            return
        if self._drawn is not None:
            self._drawn.refresh()
        elif time.monotonic() - self._said >= (_EVERY if self._num_lines else _FIRST):
            self._write_line()

    def close(self) -> None:
        """Ends the bar, so that what follows stands on a line of its own."""
        if self._closed.is_set():
            return
        self.say("")
        self._closed.set()
        _open.discard(self)
        if self._drawn is not None:
            # What took less than a moment is not worth a line of the screen.
            self._drawn.leave = time.monotonic() - self._begin >= _FIRST
            self._drawn.close()
        elif self._num_lines:
            self._write_line()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    @property
    def _postfix(self) -> str:
        values = [f"{name}={text}" for name, text in self._values.items()]
        return ", ".join([self._doing, *values] if self._doing else values)

    def _write_line(self) -> None:
        self._said = time.monotonic()
        self._num_lines += 1
        line = tqdm.format_meter(
            self._done,
            elapsed=self._said - self._begin,
            prefix=self._what,
            postfix=self._postfix,
            bar_format=_LINE,
            **self._meter,
        )
        write(line)


def over(
    items: Sequence[_Item], what: str, unit: str, *, shown: bool = True
) -> Iterator[_Item]:
    """Yields items, with a `Bar` that counts them."""
    with Bar(len(items), what, unit, shown=shown) as bar:
        for item in items:
            yield item
            bar.advance()


def hide() -> None:
    """Shows no bar from now on, in a process that leaves reporting to another one."""
    global _shown
    _shown = False


def write(line: str) -> None:
    """Writes a line to stderr, above the bars."""
    tqdm.write(line, file=sys.stderr)


def print_line(line: str) -> None:
    """Prints a line to stdout, above the bars."""
    tqdm.write(line, file=sys.stdout)


def close_all() -> None:
    """Ends all bars, before the message of an error is written."""
    for bar in list(_open):
        bar.close()


class LogHandler(logging.Handler):
    """Writes log records to stderr, each on a line of its own above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        try:
            write(self.format(record))
        except Exception:
            self.handleError(record)


def _is_drawn() -> bool:
    # A notebook shows bars, though it is no terminal.
    notebook = type(sys.stderr).__module__.startswith("ipykernel")
    return notebook or sys.stderr.isatty()


def _show_often(bar: "weakref.ref[Bar]", closed: threading.Event) -> None:
    """Shows a bar every second until it is closed or forgotten."""
    while not closed.wait(1.0):
        if (one := bar()) is None:
            return
        one.show()
        del one


# A thread that still wrote when the interpreter ends could break its end.
atexit.register(close_all)
