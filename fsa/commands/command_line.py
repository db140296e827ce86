"""Runs a command: bad input ends in one readable line, a bug in a traceback.

Exit codes: 0 success, 2 bad input or bad flags, 75 stopped by SIGTERM and to be started
again, 130 interrupted, 1 a bug.
"""

import contextlib
import dataclasses
import inspect
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging
from etils import epath

from fsa import bars, exits, folders
from fsa.commands import command_help
from fsa.errors import InputError, did_you_mean
from fsa.parallel import processes
from fsa.parallel.preemption import Interrupted, Preempted

# Flags that functions of this module define count as those of the calling program, so
# that its --help lists them.
flags.disclaim_key_flags()

BAD_INPUT = exits.BAD_INPUT


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
    doc = inspect.getmodule(main).__doc__ or ""
    exits.unwind_on_ctrl_c()
    try:
        with contextlib.ExitStack() as at_end:
            # So that messages, and the traceback of a bug, stand below the bars.
            at_end.callback(bars.close_all)
            app.run(main, argv, flags_parser=lambda argv: _parse(argv, doc))
    except _Missing as error:
        example = command_help.example_of(doc)
        shown = f", as in: {example}" if example else ""
        _exit(f"error: {error}{shown}", BAD_INPUT)
    except InputError as error:
        _exit(f"error: {name_flags(str(error))}", BAD_INPUT)
    except (Preempted, Interrupted) as stop:
        _leave(str(stop), stop.code, stop.together)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or exits.was_interrupted():
            _leave("interrupted; no file was left half written", exits.INTERRUPTED)
        if reason := folders.refusal(error):
            what = "make room there, or choose another place"
            _exit(f"error: the disk refuses it: {reason}; {what}", BAD_INPUT)
        raise


def name_flags(message: str) -> str:
    """Replaces arguments that a message of the library names by the flags of that name.

    "`batch_size` is 0" becomes "--batch_size is 0" if there is such a flag; other
    names in backticks stay.
    """

    def as_flag(found: re.Match) -> str:
        return f"--{found[1]}" if found[1] in flags.FLAGS else found[0]

    return re.sub(r"`(\w+)`", as_flag, message)


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises InputError if the command line has anything but flags."""
    if len(argv) > 1:
        raise InputError(
            f"unexpected argument {argv[1]!r}; arguments are written --name=value, "
            f"lists with commas and no spaces; {argv[0]} --help lists them"
        )


def require(*holders: flags.FlagHolder) -> None:
    """Raises InputError, which shows an example, if any of these flags is not given."""
    names = [holder.name for holder in holders if holder.value is None]
    if names:
        raise _Missing(names)


def read_flag_files(arguments: Sequence[str]) -> list[str]:
    """Returns arguments with each `--flagfile=FILE` replaced by the flags in it.

    Raises:
      InputError: if a file cannot be read.
    """
    try:
        return flags.FLAGS.read_flags_from_files(arguments, force_gnu=False)
    except (flags.Error, OSError, UnicodeDecodeError) as error:
        why = str(error).removeprefix("ERROR:: ")
        raise InputError(f"--flagfile: {why}; write a flag a line") from error


class _Missing(InputError):
    """Flags that a command needs and that were not given."""

    def __init__(self, names: Sequence[str]):
        super().__init__(f"give {' and '.join(f'--{name}' for name in names)}")


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


@dataclasses.dataclass(frozen=True)
class DeviceFlags:
    """The flags by which a command divides its work over devices and processes.

    Attributes:
      join: joins the processes, see `process_flags`.
      fsdp: the flag `--fsdp`.
      tensor: the flag `--tensor`.
    """

    join: Callable[[], None]
    fsdp: flags.FlagHolder[int | None]
    tensor: flags.FlagHolder[int | None]

    def sizes(self) -> dict[str, int | None]:
        """Joins the processes, and returns the sizes of the mesh that are given.

        To be called before any array is made. All processes but the first are silent
        from then on.
        """
        self.join()
        if not processes.is_first():
            say_less()
        return {"fsdp": self.fsdp.value, "tensor": self.tensor.value}


def device_flags(default: str) -> DeviceFlags:
    """Defines the flags of a command that uses all devices of all processes.

    Args:
      default: the sizes of the mesh without the flags, in words.
    """
    fsdp = flags.DEFINE_integer(
        "fsdp", None, f"Devices that store a model in parts; by default {default}.", 1
    )
    tensor = flags.DEFINE_integer(
        "tensor", None, f"Devices that compute a text together; likewise {default}.", 1
    )
    return DeviceFlags(process_flags(), fsdp, tensor)


@contextlib.contextmanager
def resumable(has_checkpoint: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Ends the program on SIGTERM or Ctrl-C as a run that can be resumed.

    Training replaces the handlers of these signals by one that saves first.

    Args:
      has_checkpoint: whether the run has saved a checkpoint by the time of the call.
    """

    def interrupted():
        if has_checkpoint():
            return "interrupted: what was saved is kept; the same command resumes"
        return "interrupted: nothing was to be saved; the same command starts again"

    def end(signum, frame):
        del signum, frame
        what = "preempted outside training, nothing is lost; start it again"
        raise Preempted(what, together=False)

    signal.signal(signal.SIGTERM, end)
    exits.unwind_on_ctrl_c(late=interrupted)
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as stop:
        raise Interrupted(interrupted(), together=False) from stop


def say_less() -> None:
    """Silences the output of this process; the first process reports the run."""
    sys.stdout = open(os.devnull, "w")
    bars.hide()
    logging.getLogger("fsa").setLevel(logging.WARNING)


def make_place(
    path: str,
    flag: str,
    overwrite: bool = False,
    *,
    endings: tuple[str, ...] = (".jsonl", ".jsonl.gz"),
) -> None:
    """Checks, before any work is done, that a file can be written.

    Args:
      path: the file.
      flag: the flag that names it.
      overwrite: whether the file may replace one that exists, by `--overwrite`.
      endings: how the name may end; any name if empty.

    Raises:
      InputError: naming the flag and the reason.
    """
    if endings and not path.endswith(endings):
        raise InputError(f"--{flag}={path}: name a {' or '.join(endings)}")
    place = epath.Path(path)
    if place.is_dir():
        raise InputError(f"--{flag}={path}: is a folder; name a file")
    if folders.is_special(path):
        return
    if place.exists() and not overwrite:
        raise InputError(
            f"--{flag}={path}: exists; name another file, or replace it by --overwrite"
        )
    what, fix = f"--{flag}={path}", "name another place"
    folders.check_writable(place.parent, fix, what=what, name=place.name)


def _log_own_messages() -> None:
    """Shows all messages of fsa, and only errors of its libraries."""
    handler = bars.LogHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("fsa")
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    own.propagate = False
    absl_logging.set_verbosity(absl_logging.ERROR)


def _parse(argv: Sequence[str], doc: str) -> list[str]:
    """Parses the flags; every fault is an InputError that names the flag.

    Args:
      argv: name and arguments of the program.
      doc: its docstring, whose first line shows the flags that it needs.
    """
    try:
        rest = flags.FLAGS(_join_lists(argv))
    except flags.UnrecognizedFlagError as error:
        raise InputError(_unknown(error.flagname, argv[0])) from error
    except flags.Error as error:
        if isinstance(error.__context__, InputError):
            raise error.__context__ from None
        if "must have a value other than None" in str(error):
            found = map(flags.FLAGS.__getitem__, flags.FLAGS)
            needed = [flag for flag in found if command_help.is_needed(flag, doc)]
            missing = [flag.name for flag in needed if flag.value is None]
            raise _Missing(missing) from error
        raise InputError(_wrong(str(error))) from error
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if isinstance(flag.parser, flags.ListParser):
            is_empty = flag.value == []
        else:
            is_empty = flag.value == "" and flag.default is None
        if flag.present and is_empty:
            raise InputError(f"--{name} is empty; give a value, or leave it out")
        if isinstance(flag.value, float) and not math.isfinite(flag.value):
            raise InputError(f"--{name}={flag.value}: must be a finite number")
    return rest


def _join_lists(argv: Sequence[str]) -> list[str]:
    """Joins the values of a list flag that is given several times."""
    joined, places = [], {}
    for argument in argv:
        name, equals, value = argument.partition("=")
        known = name.lstrip("-") if name.startswith("-") and equals else ""
        flag = flags.FLAGS[known] if known in flags.FLAGS else None
        if flag is None or not isinstance(flag.parser, flags.ListParser):
            joined.append(argument)
        elif flag.name in places:
            joined[places[flag.name]] += f",{value}"
        else:
            places[flag.name] = len(joined)
            joined.append(argument)
    return joined


def _unknown(name: str, command: str) -> str:
    """Returns what is wrong with a flag that does not exist."""
    if "config" in flags.FLAGS and name.startswith("config."):
        return f"--{name}: give the experiment file first, `config`=FILE"
    if "config" in flags.FLAGS and "." in name:
        field = name.partition(".")[2] if name.startswith("conf") else name
        return f"--{name}: no such flag; fields are set by --config.{field}=VALUE"
    own = [each for each in flags.FLAGS if not _is_of_absl(each)]
    hint = did_you_mean(f"--{name}", [f"--{each}" for each in own])
    return f"--{name}: no such flag; {hint}{command} --help lists them"


def _is_of_absl(name: str) -> bool:
    return flags.FLAGS.find_module_defining_flag(name, "").startswith("absl.")


def _wrong(message: str) -> str:
    """Returns what is wrong with the value of a flag, by the message of absl."""
    found = re.match(r"flag --([\w.]+)=(.*?): (.*)", message, re.DOTALL)
    if "before a value for --config" in message:
        return "--config=FILE must come before the fields that it has"
    if message.startswith("Missing value for flag "):
        return f"{message.split()[-1]}: give a value"
    if not found or found[1] not in flags.FLAGS:
        return f"{message}; --help lists the flags"
    name, value, why = found.groups()
    flag = flags.FLAGS[name]
    if name.startswith("config."):
        # Imported here since only some commands have configs, and it imports JAX.
        from fsa.commands.experiment_file import range_of

        allowed = range_of(name.removeprefix("config."))
        why = f"must be {allowed}" if allowed else why
        if "as a ConfigDict" in why:
            why = f"a section; set its fields, as in --{name}.FIELD=VALUE"
    elif isinstance(flag.parser, flags.EnumParser):
        values = flag.parser.enum_values
        why = f"{did_you_mean(value, values)}it must be one of {', '.join(values)}"
    elif flag.boolean:
        why = f"write --{name} or --no{name}"
    elif flag.parser.syntactic_help:
        why = f"must be {flag.parser.syntactic_help}"
    return f"--{name}={value}: {why}"


def _leave(message: str, code: int, together: bool = False) -> NoReturn:
    """Ends the process after a signal."""
    if together:
        # Otherwise the others would take this process for one that died.
        jax.distributed.shutdown()
    exits.at_once(" ".join(message.split()), code)


def _exit(message: str, code: int) -> NoReturn:
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(code)
