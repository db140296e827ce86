"""Preemption: on SIGTERM or Ctrl-C, all processes of a run stop after the same step."""

import signal
import threading

import jax

from fsa import exits
from fsa.parallel.processes import ask_largest

EXIT_CODE = exits.PREEMPTED


class Preempted(SystemExit):
    """Ends a run that was stopped by SIGTERM; it can be resumed.

    Attributes:
      together: whether all processes of the run end at this point.
    """

    def __init__(self, message: str, *, together: bool = True):
        """Exits with `EXIT_CODE`, unless it is caught."""
        super().__init__(EXIT_CODE)
        self.message = message
        self.together = together

    def __str__(self):
        return self.message


class Interrupted(KeyboardInterrupt):
    """Ends a run that was stopped by Ctrl-C; it can be resumed.

    Attributes:
      code: the exit code of a command.
      together: whether all processes of the run end at this point.
    """

    code = exits.INTERRUPTED

    def __init__(self, message: str, *, together: bool = True):
        """Takes the message, which says what is kept."""
        super().__init__(message)
        self.together = together


class Preemption:
    """Notes SIGTERM and Ctrl-C while it is entered, and lets all processes stop.

    All processes stop after the same step, whichever of them got the signal. After each
    call every process starts a collective of one number per device, and reads the
    result of the collective after the call before, so no process waits for it. The
    handlers are installed last, and replace those of libraries; libtpu's would print a
    crash. In a thread other than the main one, which cannot handle signals, nothing is
    noted.
    """

    def __init__(self):
        """Creates the object; signals are not handled yet."""
        # The exit code of what was received, 0 before. Ctrl-C, whose code is the larger
        # one, prevails: a launcher must not start the run again.
        self._received = 0
        self._agreed = 0
        self._answer = None
        self._before = {}

    def __enter__(self):
        """Installs the handler of SIGTERM."""
        self._handle(signal.SIGTERM)
        return self

    def __exit__(self, *unused):
        """Restores the handlers that were installed before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: signal.Signals):
        if threading.current_thread() is threading.main_thread():
            self._before[number] = signal.getsignal(number) or signal.SIG_DFL
            signal.signal(number, self._note)

    def _note(self, signum, frame):
        del frame
        if signum == signal.SIGINT and self._received == exits.INTERRUPTED:
            raise KeyboardInterrupt  # For the second time.
        code = exits.INTERRUPTED if signum == signal.SIGINT else exits.PREEMPTED
        self._received = max(self._received, code)

    def stops(self) -> bool:
        """Returns whether to stop after this call, the same in all processes.

        Every process must ask exactly once per call. Ctrl-C is noted from the end of
        the first call on: before, there is nothing to save, and it need not wait for a
        compilation.
        """
        # Jobs in the background of a script ignore Ctrl-C.
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        if signal.SIGINT not in self._before and not ignored:
            self._handle(signal.SIGINT)
        if jax.process_count() == 1:
            self._agreed = self._received
        else:
            before, self._answer = self._answer, ask_largest(self._received)
            self._agreed = before() if before else 0
        return self._agreed > 0

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was among the signals by which `stops` became true."""
        return self._agreed == exits.INTERRUPTED

    def error(self, message: str) -> Preempted | Interrupted:
        """Returns what to raise after `stops` was true.

        Args:
          message: what is kept, after "preempted" or "interrupted".
        """
        if self.interrupted:
            return Interrupted(f"interrupted: {message}")
        return Preempted(f"preempted: {message}")
