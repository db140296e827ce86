"""Runs a command: bad input ends in one readable line, a bug in a traceback.

Exit codes: 0 success, 2 bad input or bad flags, 75 stopped by SIGTERM and to be started
again, 130 interrupted, 1 a bug.
"""

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from etils import epath
from ml_collections import ConfigDict

from fsa.errors import InputError
from fsa.parallel import processes
from fsa.parallel.preemption import Preempted

# Flags that functions of this module define count as those of the calling program, so
# that its --help lists them.
flags.disclaim_key_flags()

BAD_INPUT = 2
INTERRUPTED = 130


def run(
    main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None
) -> NoReturn:
    """Parses the flags, runs `main` with what is left of the command line and exits.

    Args:
      main: the program; it gets its name and the arguments that are no flags, and
        returns an exit code or None.
      argv: the program's name and its command line, by default `sys.argv`.
    """
    _log_own_messages()
    try:
        app.run(main, argv, flags_parser=_parse)
    except InputError as error:
        _exit(f"error: {name_flags(str(error))}", BAD_INPUT)
    except Preempted as stop:
        _exit(str(stop), stop.code)
    except KeyboardInterrupt:
        _exit("interrupted", INTERRUPTED)


def help_of(command: ModuleType) -> str:
    """Returns the docstring of a command and the list of its flags."""
    # absl's own --help names the file, and exits with 1.
    _, _, listed = flags.FLAGS.module_help(command).partition(":\n")
    return f"{command.__doc__}\nFlags:\n{listed}"


def name_flags(message: str) -> str:
    """Replaces arguments that a message of the library names by the flags of that name.

    "`batch_size` is 0" becomes "--batch_size is 0" if there is such a flag; other
    names in backticks stay.
    """

    def as_flag(found: re.Match) -> str:
        return f"--{found[1]}" if found[1] in flags.FLAGS else found[0]

    return re.sub(r"`(\w+)`", as_flag, message)


def config_of(flag: flags.FlagHolder) -> ConfigDict:
    """Returns the config of an experiment file that a flag names.

    Raises:
      InputError: if the file is missing or not given, or gives no ConfigDict.
    """
    if flag.value is None:
        raise InputError("`config`: give an experiment file")
    path = flags.FLAGS[flag.name].config_filename.partition(":")[0]
    if not os.path.isfile(path):
        raise InputError(f"`config`={path}: no such file; check the path")
    if not isinstance(flag.value, ConfigDict):
        raise InputError(f"`config`={path}: get_config() must return a ConfigDict")
    return flag.value


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises InputError if the command line has anything but flags."""
    if len(argv) > 1:
        raise InputError(
            f"unexpected argument {argv[1]!r}; flags are written --name=value, lists "
            "with commas and no spaces"
        )


def process_flags() -> Callable[[], None]:
    """Defines the flags by which the processes of a run find each other.

    Returns:
      A function that joins the processes, to be called when flags are parsed; see
      `fsa.parallel.processes.initialize`.
    """
    coordinator = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
    num_processes = flags.DEFINE_integer(
        "num_processes", None, "Number of processes of the run."
    )
    process_id = flags.DEFINE_integer(
        "process_id", None, "Number of this process, from 0."
    )
    heartbeat = flags.DEFINE_integer(
        "heartbeat_seconds",
        100,
        "Seconds after which a silent process counts as dead, and the others end.",
        lower_bound=1,
    )
    connect = flags.DEFINE_integer(
        "connect_seconds",
        300,
        "Seconds to wait for the other processes to start.",
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
    """Makes SIGTERM end the program with the exit code of a run that can be resumed.

    Training replaces this handler by one that saves first.
    """

    def end(signum, frame):
        del signum, frame
        raise Preempted("preempted outside training, nothing is lost; start it again")

    signal.signal(signal.SIGTERM, end)


def say_less() -> None:
    """Silences the output of this process; the first process reports the run."""
    sys.stdout = open(os.devnull, "w")
    logging.getLogger("fsa").setLevel(logging.WARNING)


def make_folder_of(path: str, flag: str) -> None:
    """Makes the folder of a file that is to be written, before any work is done.

    Raises:
      InputError: naming the flag, if the folder cannot be made.
    """
    try:
        epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--{flag}={path} cannot be written ({error.strerror}); choose another"
        ) from error


def make_place(path: str, flag: str) -> None:
    """Makes the folder of a .jsonl file, see `make_folder_of`.

    Raises:
      InputError: naming the flag, if the extension differs or the folder cannot be
        made.
    """
    if not path.endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"--{flag}={path}: name a .jsonl or .jsonl.gz")
    make_folder_of(path, flag)


def _log_own_messages() -> None:
    """Shows all messages of fsa, and only errors of its libraries."""
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
        # An experiment file that raises comes with its traceback, which ends in why.
        flag, trace, lines = str(error).partition("Traceback (most recent call last)")
        why = f"{flag.split(': ')[0]}: {lines.splitlines()[-1]}" if trace else flag
        _exit(f"error: {why}; --help lists the flags", BAD_INPUT)
    except (OSError, SyntaxError) as error:
        _exit(f"error: --config cannot be read: {error}", BAD_INPUT)
    except (AttributeError, KeyError) as error:
        # ml_collections raises this for --config.FIELD=value if there is no such FIELD.
        field = (re.search(r"\w+", str(error)) or [""])[0]
        names = [arg.partition("=")[0] for arg in argv]
        misspelt = [name for name in names if field in name.split(".")[1:]]
        if "get_config" in str(error):
            _exit("error: --config: the file has no get_config()", BAD_INPUT)
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
