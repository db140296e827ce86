"""Preemption: on SIGTERM to any process, all processes stop after the same step."""

import signal

import jax

from fsa.parallel.processes import ask

# The exit code by which a run asks its launcher to start it again (EX_TEMPFAIL).
EXIT_CODE = 75


class Preempted(SystemExit):
    """Ends a run that was stopped by SIGTERM and saved; it can be resumed."""

    def __init__(self, message: str):
        """Exits with `EXIT_CODE`, unless it is caught."""
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self):
        return self.message


class Preemption:
    """Notes SIGTERM while it is entered, and lets all processes agree to stop.

    All processes stop after the same step, whichever of them got the signal. After each
    call every process starts a collective of one flag per device, and reads the result
    of the collective after the call before, so no process waits for it. The handler is
    installed last, and replaces those of libraries; libtpu's would print a crash.
    """

    def __init__(self):
        """Creates the object; SIGTERM is not handled yet."""
        self._received = False
        self._answer = None

    def __enter__(self):
        """Installs the handler of SIGTERM."""
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *unused):
        """Restores the handler that was installed before."""
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, signum, frame):
        del signum, frame
        self._received = True

    def stops(self) -> bool:
        """Returns whether to stop after this call, the same in all processes.

        Every process must ask exactly once per call.
        """
        if jax.process_count() == 1:
            return self._received
        before, self._answer = self._answer, ask(self._received)
        return before is not None and before()
