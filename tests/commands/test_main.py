"""The console script: which commands it has, and how it ends without one."""

import subprocess
import sys

import pytest

from fsa.commands.main import commands

# Lists the commands in a process of its own, and what was imported for that.
OVERVIEW = """
import sys

from fsa.commands.main import main

sys.argv = ["fsa", *sys.argv[1:]]
assert main() == 0
print("jax" in sys.modules, "numpy" in sys.modules, "absl" in sys.modules)
"""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_list_of_commands_imports_none_of_them(arguments):
    shown = subprocess.run(
        [sys.executable, "-c", OVERVIEW, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    *lines, imported = shown.splitlines()
    listed = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert listed == commands()
    assert imported == "False False False"


def test_commands():
    found = commands()
    assert {"train", "evaluate", "predict", "steer", "sweep"} < found.keys()
    assert not {"main", "command_line", "__init__"} & found.keys()


@pytest.mark.parametrize("name", commands())
def test_help_of_a_command(launch, name):
    """Its docstring and its own flags, without a path of a file."""
    finished = launch(name, "--help")
    assert (finished.code, finished.err) == (0, "")
    assert finished.out.startswith(commands()[name])
    flags = finished.out.partition("\nFlags:\n")[2]
    assert flags.startswith("  --") and "/commands/" not in finished.out
    # Those of absl and of other commands are left out.
    assert "--pdb" not in flags and ("--topology" in flags) == (name == "compile")


def test_an_unknown_command(launch):
    finished = launch("trian")
    assert (finished.code, finished.out) == (2, "")
    assert "'trian'" in finished.err and "train" in finished.err.split("'trian'")[1]
    assert finished.err.count("\n") == 1
    assert launch("--workdir=a").code == 2


def test_a_command_names_itself_in_its_errors(launch):
    finished = launch("embed")
    assert finished.code == 2
    assert "--data" in finished.err and finished.err.count("\n") == 1


def test_version(launch):
    finished = launch("--version")
    assert finished.code == 0 and finished.out[0].isdigit()
