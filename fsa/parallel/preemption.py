"""Ending well when the machine is taken away: SIGTERM, agreed on by all processes."""

import signal

import jax

from fsa.parallel.processes import ask

# The exit code that asks launchers to start the same command again (EX_TEMPFAIL).
EXIT_CODE = 75


class Preempted(SystemExit):
    """The run stopped on SIGTERM; what it had done is saved, and it can go on."""

    def __init__(self, message: str):
        """Ends the program, unless caught, with the code for it."""
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self):
        return self.message


class Preemption:
    """Notes SIGTERM while it is entered, and lets all processes agree to stop.

    Whoever is told, all stop at the same step: with every call each process casts a
    vote, a collective of one flag a device that follows the call, and counts the votes
    of the call before, so that nobody waits for one. The handler is set last, and
    replaces those of libraries, of which libtpu's prints a crash.
    """

    def __init__(self):
        """Notes nothing yet."""
        self._told = False
        self._cast = None

    def __enter__(self):
        """Takes over SIGTERM."""
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *unused):
        """Gives SIGTERM back."""
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, signum, frame):
        del signum, frame
        self._told = True

    def stops(self) -> bool:
        """Whether to stop after this call; the same in all processes at the same call.

        To be asked once a call, by all.
        """
        if jax.process_count() == 1:
            return self._told
        before, self._cast = self._cast, ask(self._told)
        return before is not None and before()
