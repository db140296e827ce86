"""The console script: `fsa COMMAND --flag=value ...`, also `python -m fsa COMMAND ...`.

A command is a public module of this folder, other than this one and `command_line`: the
docstring is its help, it defines flags, and `main(argv)` runs it. The list of commands
is read from the files, so that it is instant; only the chosen command is imported.
"""

import ast
import difflib
import importlib
import os
import pathlib
import sys

import fsa

_FOLDER = pathlib.Path(__file__).parent
_NO_COMMANDS = ("command_line", "main")
_BAD_INPUT = 2  # As in `command_line`, whose import takes longer than all of this.


def commands() -> dict[str, str]:
    """Returns the first line of each command's docstring, by the command's name."""
    files = sorted(_FOLDER.glob("[!_]*.py"))
    return {
        file.stem: ast.get_docstring(ast.parse(file.read_bytes())).splitlines()[0]
        for file in files
        if file.stem not in _NO_COMMANDS
    }


def main() -> int:
    """Runs the command that the command line names, or lists the commands.

    Returns:
      The exit code, if no command was run; `command_line.run` exits by itself.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(fsa.__version__)
        return 0
    if name not in commands():
        near = difflib.get_close_matches(name, commands(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        error = f"error: no command {name!r}; {hint}fsa --help lists them"
        print(error, file=sys.stderr)
        return _BAD_INPUT
    # Experiment files import each other from the folder in which the command is run, as
    # they can under `python -m fsa`; installed packages go first.
    sys.path.append(os.getcwd())
    command = importlib.import_module(f"fsa.commands.{name}")
    # Imported here because it imports JAX.
    from fsa.commands import command_line

    arguments = sys.argv[2:]
    if {"-h", "--help"} & {*arguments}:
        print(command_line.help_of(command))
        return 0
    command_line.run(command.main, [f"fsa {name}", *arguments])


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
            "fsa COMMAND --help explains a command and its flags.",
        ]
    )
