"""How every command line ends: one readable line for bad input, a traceback for a bug.

Exit codes: 0 success, 2 bad input or bad flags, 75 stopped by SIGTERM and to be started
again, 130 interrupted, 1 a bug.
"""

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from etils import epath

from fsa.errors import InputError
from fsa.parallel import processes
from fsa.parallel.preemption import Preempted

# What is defined here belongs to the program that asks for it, and to its --help.
flags.disclaim_key_flags()

BAD_INPUT = 2
INTERRUPTED = 130


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Parses the flags, runs `main` with what is left of the command line and exits."""
    _log_own_messages()
    try:
        app.run(main, flags_parser=_parse)
    except InputError as error:
        _exit(f"error: {name_flags(str(error))}", BAD_INPUT)
    except Preempted as stop:
        _exit(str(stop), stop.code)
    except KeyboardInterrupt:
        _exit("interrupted", INTERRUPTED)


def name_flags(message: str) -> str:
    """Turns the names of arguments in a message of the library into those of flags.

    "`batch_size` is 0" becomes "--batch_size is 0" where there is such a flag; the
    other marks stay.
    """

    def as_flag(found: re.Match) -> str:
        return f"--{found[1]}" if found[1] in flags.FLAGS else found[0]

    return re.sub(r"`(\w+)`", as_flag, message)


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises InputError where something besides flags is on the command line."""
    if len(argv) > 1:
        raise InputError(
            f"unexpected argument {argv[1]!r}; flags are written --name=value, lists "
            "with commas and no spaces"
        )


def process_flags() -> Callable[[], None]:
    """Defines the flags by which the processes of a run find each other.

    Returns:
      What joins them once flags are parsed, see `fsa.parallel.processes.initialize`.
    """
    coordinator = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
    num_processes = flags.DEFINE_integer("num_processes", None, "Of the run.")
    process_id = flags.DEFINE_integer("process_id", None, "Of this one, from 0.")
    heartbeat = flags.DEFINE_integer(
        "heartbeat_seconds",
        100,
        "A process that is silent for so long is dead, and the others end.",
        lower_bound=1,
    )
    connect = flags.DEFINE_integer(
        "connect_seconds",
        300,
        "To wait for the other processes to start.",
        lower_bound=1,
    )

    def join():
        processes.initialize(
            coordinator.value,
            num_processes.value,
            process_id.value,
            heartbeat_seconds=heartbeat.value,
            connect_seconds=connect.value,
        )

    return join


def end_on_sigterm() -> None:
    """Lets SIGTERM end the program with the exit code of a run that can go on.

    For the time before and after training, which has a better answer.
    """

    def end(signum, frame):
        del signum, frame
        raise Preempted("preempted outside training, nothing is lost; start it again")

    signal.signal(signal.SIGTERM, end)


def say_less() -> None:
    """Leaves it to the first of several processes to say how a run goes."""
    sys.stdout = open(os.devnull, "w")
    logging.getLogger("fsa").setLevel(logging.WARNING)


def make_place(path: str, flag: str) -> None:
    """Makes the folder of a .jsonl that is to be written, before any work is done.

    Raises:
      InputError: naming the flag, for another extension or an impossible place.
    """
    if not path.endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"--{flag}={path}: name a .jsonl or .jsonl.gz")
    try:
        epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--{flag}={path} cannot be written ({error.strerror}); choose another"
        ) from error


def _log_own_messages() -> None:
    """Shows what fsa has to say, and of its libraries only errors."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("fsa")
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    own.propagate = False
    absl_logging.set_verbosity(absl_logging.ERROR)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _exit(f"error: {error}; --help lists the flags", BAD_INPUT)
    except (AttributeError, KeyError) as error:
        # ml_collections says so of --config.FIELD=value where the config lacks FIELD.
        field = (re.search(r"\w+", str(error)) or [""])[0]
        names = [arg.partition("=")[0] for arg in argv]
        misspelt = [name for name in names if field in name.split(".")[1:]]
        if not misspelt:
            raise
        _exit(
            f"error: {misspelt[0]}: the config has no field {field!r}; check its "
            "spelling in the experiment file",
            BAD_INPUT,
        )


def _exit(message: str, code: int) -> NoReturn:
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(code)
