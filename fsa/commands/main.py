"""The console script: `fsa COMMAND --flag=value ...`, also `python -m fsa COMMAND ...`.

A command is a public module of this folder, other than this one and `command_line`: the
docstring is its help, it defines flags, and `main(argv)` runs it. The list of commands
is read from the files, so that it is instant; only the chosen command is imported.
"""

import ast
import importlib
import os
import pathlib
import re
import sys

import fsa
from fsa import exits
from fsa.errors import InputError, did_you_mean

_FOLDER = pathlib.Path(__file__).parent
_NO_COMMANDS = (
    "ask_page",
    "asked_options",
    "command_help",
    "command_line",
    "experiment_file",
    "interview",
    "key_presses",
    "main",
    "told_table",
)
# How help is asked for, by the programs of absl too.
_HELP = re.compile(r"(--?(h|help|helpshort|helpfull|helpxml|\?)(=.*)?)|help")


def commands() -> dict[str, str]:
    """Returns the first line of each command's docstring, by the command's name."""
    files = sorted(_FOLDER.glob("[!_]*.py"))
    return {
        file.stem: ast.get_docstring(ast.parse(file.read_bytes())).splitlines()[0]
        for file in files
        if file.stem not in _NO_COMMANDS
    }


def main() -> int:
    """Runs the program `fsa`, see `run`; Ctrl-C ends its process from then on."""
    exits.watch_ctrl_c()
    return run()


def run() -> int:
    """Runs the command that the command line names, or lists the commands.

    Returns:
      The exit code, if no command was run; `command_line.run` exits by itself.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if _HELP.fullmatch(name) and arguments:
        name, arguments = arguments[0], ["--help"]
    if _HELP.fullmatch(name):
        print(_overview())
        return 0
    if name in ("--version", "-V", "version"):
        print(fsa.__version__)
        return 0
    if name not in commands():
        hint = did_you_mean(name, [*commands(), "help"])
        if name.startswith("-"):
            hint = "the command comes first, then its flags; "
        error = f"error: no command {name!r}; {hint}fsa --help lists them"
        print(error, file=sys.stderr)
        return exits.BAD_INPUT
    # Experiment files import each other from the folder in which the command is run, as
    # they can under `python -m fsa`; installed packages go first.
    sys.path.append(os.getcwd())
    # Imported here because it imports JAX.
    from fsa.commands import command_help, command_line

    try:
        arguments = command_line.read_flag_files(arguments)
    except InputError as error:
        print(f"error: {command_line.name_flags(str(error))}", file=sys.stderr)
        return exits.BAD_INPUT
    # ml_collections reads the fields of a config there.
    sys.argv[1:] = [name, *arguments]
    command = importlib.import_module(f"fsa.commands.{name}")
    if arguments == ["help"] or any(map(_HELP.fullmatch, _flags_of(arguments))):
        print(command_help.help_of(command))
        return 0
    command_line.run(command.main, [f"fsa {name}", *arguments])


def _flags_of(arguments: list[str]) -> list[str]:
    """Returns the arguments that are flags; those after -- are none."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [argument for argument in arguments[:end] if argument.startswith("-")]


def _overview() -> str:
    found = commands()
    width = max(map(len, found))
    lines = [f"  {name.ljust(width)}  {line}" for name, line in found.items()]
    return "\n".join(
        [
            "Few-shot steerable alignment: fsa COMMAND --flag=value ...",
            "",
            *lines,
            "",
            "The usual order: prepare, embed, probe, train, evaluate, ask, predict.",
            "fsa COMMAND --help explains a command and its flags.",
        ]
    )
