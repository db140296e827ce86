"""How commands end: their exit codes, and what Ctrl-C does to them.

Ctrl-C ends a command with 130: at once while it starts, and later after the files that
it writes are complete or removed. Training saves first. A second Ctrl-C always ends it
at once. This module imports nothing that takes time, as it is needed from the first
second on.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

BAD_INPUT = 2
# By this code a run asks its launcher to start it again (EX_TEMPFAIL).
PREEMPTED = 75
INTERRUPTED = 130

# Seconds that a command has after Ctrl-C to remove files that it has not completed.
_PATIENCE = 10.0

# Seconds after which a command that has not ended yet says that it will. Most end
# sooner; one that compiles, or loads a model, ends when that is done.
_NOTICE = 0.5
_ENDS = (
    "interrupted: ends when what it computes is done, in {:.0f} s at the latest; "
    "Ctrl-C again ends at once"
)


class _CtrlC:
    """What Ctrl-C does to this process.

    Attributes:
      watched: whether `watch_ctrl_c` was called.
      patience: seconds until a command that unwinds is ended; None to wait for it.
      late: returns what to say when such a command is ended.
      came: whether a command was told to unwind.
      unraisable: reports an exception that cannot be raised, as Python did before.
    """

    watched = False
    patience: float | None = _PATIENCE
    late: Callable[[], str] = staticmethod(lambda: "interrupted")
    came = False
    unraisable: Callable[..., None] | None = None


def at_once(message: str, code: int) -> NoReturn:
    """Ends the process after a line on stderr, without the interpreter's own end.

    At the interpreter's end JAX destroys its client. XLA's threads, which may still be
    compiling a program for that client, would end in a segmentation fault.
    """
    # In another thread, the main one may be writing, and wait for a pipe meanwhile.
    if threading.current_thread() is threading.main_thread():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    with contextlib.suppress(OSError):
        _say(message)
    os._exit(code)


def watch_ctrl_c() -> None:
    """Makes Ctrl-C end this process, whatever its main thread is doing.

    Python runs handlers of signals between two steps of the main thread, which may be
    in a library for minutes; so a thread of its own watches for them. Nothing is done
    if Ctrl-C is ignored, as by a job in the background of a script. Must be called in
    the main thread.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    _CtrlC.watched = True
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _starting)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()


def unwind_on_ctrl_c(
    patience: float | None = _PATIENCE, late: Callable[[], str] = _CtrlC.late
) -> None:
    """Makes Ctrl-C raise KeyboardInterrupt in the main thread from now on.

    Nothing is done if `watch_ctrl_c` was not called, as Python does the same by itself.

    Args:
      patience: seconds after which the command is ended if it has not ended by itself;
        None if it has something to save.
      late: returns what to say then, such as what is kept.
    """
    if _CtrlC.watched:
        _CtrlC.patience = patience
        _CtrlC.late = staticmethod(late)
        signal.signal(signal.SIGINT, _unwind)
        if _CtrlC.unraisable is None:
            _CtrlC.unraisable = staticmethod(sys.unraisablehook)
            sys.unraisablehook = _raise_again


def was_interrupted() -> bool:
    """Whether Ctrl-C has told the command to unwind, which a library may conceal."""
    return _CtrlC.came


def _starting(signum, frame):
    """Does nothing; `_watch` ends the process."""


def _unwind(signum, frame):
    # A second one must not cut off what removes half-written files; `_watch` ends it.
    if not _CtrlC.came:
        _CtrlC.came = True
        raise KeyboardInterrupt


def _raise_again(unraisable) -> None:
    """Raises KeyboardInterrupt again if Python had to drop it, as in a finalizer.

    JAX runs a function at every garbage collection, in which Ctrl-C can come.
    """
    if unraisable.exc_type is not KeyboardInterrupt or not _CtrlC.came:
        _CtrlC.unraisable(unraisable)
        return
    main = ctypes.c_ulong(threading.main_thread().ident)
    again = ctypes.py_object(KeyboardInterrupt)
    # Not here, where it would be dropped as well.
    _after(0.05, ctypes.pythonapi.PyThreadState_SetAsyncExc, main, again)


def _watch(read: int) -> None:
    """Reads the signals that come, and ends the process if its main thread does not."""
    count = 0
    while number := os.read(read, 1):
        if number[0] != signal.SIGINT:
            continue
        count += 1
        handler = signal.getsignal(signal.SIGINT)
        if handler is _starting:
            at_once("interrupted while starting; nothing is lost", INTERRUPTED)
        if count > 1:
            at_once("interrupted again; ended at once", INTERRUPTED)
        if handler is _unwind and _CtrlC.patience is not None:
            _after(_NOTICE, _say, _ENDS.format(_CtrlC.patience))
            _after(_CtrlC.patience, _end_late)
        else:
            _say("interrupted: saving first; Ctrl-C again ends at once")


def _after(seconds: float, do: Callable[..., Any], *arguments: Any) -> None:
    """Does something later, unless the process has ended by then."""
    timer = threading.Timer(seconds, do, arguments)
    timer.daemon = True
    timer.start()


def _end_late() -> None:
    at_once(_CtrlC.late(), INTERRUPTED)


def _say(message: str) -> None:
    """Writes a line to stderr, whatever the main thread is writing there."""
    # A terminal shows ^C, and perhaps a bar, in front of it.
    begin = "\n" if os.isatty(2) else ""
    os.write(2, f"{begin}{message}\n".encode())
