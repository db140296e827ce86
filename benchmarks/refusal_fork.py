"""Runs command lines of fsa in forked processes.

A command imports JAX and more for some seconds. The parent imports all of that once,
computes nothing with it, and forks a child for each command line; a child imports the
command, whose flags are defined then, and ends as `python -m fsa` does.
"""

import atexit
import dataclasses
import importlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence

# What commands import, without the commands themselves, whose flags are one another's.
_IMPORTED = (
    "fsa.commands.main",
    "fsa.commands.command_line",
    "fsa.data.preparation",
    "fsa.data.sources.prompts",
    "fsa.evaluation.comparison",
    "fsa.evaluation.probe_report",
    "fsa.inference.ranker",
    "fsa.inference.steerer",
    "fsa.recipes.dry_run",
    "fsa.recipes.evaluate",
    "fsa.recipes.probe",
    "fsa.recipes.train",
    "fsa.sweeps.sweep",
    "ml_collections.config_flags",
    "transformers.models.auto.tokenization_auto",
)
# The user who may write nothing but what is given to everybody.
_NOBODY = 65534


@dataclasses.dataclass
class Finished:
    """How a command line ended: exit code (negative for a signal), and its output."""

    code: int
    out: str
    err: str
    seconds: float


def load() -> None:
    """Imports in this process what all commands need.

    Raises:
      RuntimeError: if that started JAX's devices, whose threads a fork would lose.
    """
    for name in _IMPORTED:
        importlib.import_module(name)
    from jax._src import xla_bridge

    if xla_bridge.backends_are_initialized():
        raise RuntimeError("an import made arrays; forks of this process would hang")
    # JAX warns of any fork; nothing runs here that one could break.
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)


def run(
    folder: pathlib.Path,
    line: Sequence[str],
    *,
    as_nobody: bool = False,
    limit: float = 40.0,
    shown: pathlib.Path | None = None,
) -> Finished:
    """Runs `fsa LINE` in a folder, by a child of this process.

    Args:
      folder: the current folder of the command.
      line: the command and its flags.
      as_nobody: run as a user who owns nothing, so that permissions count for a root.
      limit: seconds after which the child is killed.
      shown: folder for the files that its output goes to; beside `folder` if None.
    """
    shown = shown or folder.parent / f"{folder.name}.shown"
    shown.mkdir(exist_ok=True)
    paths = [shown / name for name in ("out", "err")]
    begin = time.monotonic()
    with paths[0].open("wb") as out, paths[1].open("wb") as err:
        child = os.fork()
        if not child:
            _become(folder, line, out.fileno(), err.fileno(), as_nobody)
    code = _wait(child, begin + limit)
    out, err = (path.read_text(errors="replace") for path in paths)
    return Finished(code, out, err, time.monotonic() - begin)


def run_process(folder: pathlib.Path, line: Sequence[str]) -> Finished:
    """Runs `python -m fsa LINE` in a folder, in a new process."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "fsa", *line],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        env=environment(),
        check=False,
    )
    seconds = time.monotonic() - begin
    return Finished(done.returncode, done.stdout, done.stderr, seconds)


def environment() -> dict[str, str]:
    """Returns the environment of commands: this checkout, CPUs, no byte code files."""
    repository = str(pathlib.Path(__file__).resolve().parents[1])
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": repository,
        "PYTHONDONTWRITEBYTECODE": "1",
        "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
    }


def in_child(compute: Callable[[], bytes]) -> bytes:
    """Returns what a function returns in a forked process, which may change globals."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        try:
            with os.fdopen(write, "wb") as file:
                file.write(compute())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        found = file.read()
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the forked process failed")
    return found


def _wait(child: int, deadline: float) -> int:
    pause = 0.005
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(pause)


def _become(folder, line, out, err, as_nobody) -> None:
    """Turns this process into `fsa LINE`; never returns."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
        os.chdir(folder)
        if as_nobody:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
        sys.argv = ["fsa", *line]
        sys.dont_write_bytecode = True
        code = _exit_code(_call_main)
        # As the interpreter ends: threads are waited for first.
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _call_main() -> None:
    from fsa.commands.main import main

    sys.exit(main())


def _exit_code(program: Callable[[], None]) -> int:
    """Returns the exit code of a program, as the interpreter finds it."""
    try:
        program()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
