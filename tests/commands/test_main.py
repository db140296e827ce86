"""The console script: which commands it has, and how it ends without one."""

import re
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
    """Its docstring, an example, and its own flags, those that it needs first."""
    finished = launch(name, "--help")
    assert (finished.code, finished.err) == (0, "")
    assert finished.out.startswith(commands()[name])
    assert f"\n    fsa {name} --" in finished.out
    assert max(map(len, finished.out.splitlines())) <= 80
    head, _, flags = finished.out.partition("Required flags:\n")
    assert "  --" in flags and "/commands/" not in finished.out
    # Those of absl and of other commands are left out.
    assert "--pdb" not in flags
    assert ("  --topology:" in flags) == (name == "compile")
    required, _, others = flags.partition("Other flags:")
    usage = finished.out.splitlines()[0]
    for flag in re.findall(r"--(\w+)=", usage):
        assert f"  --{flag}:" in required
    assert ("  --config:" in required) == (name in ("train", "compile", "sweep"))


@pytest.mark.parametrize(
    "asked",
    ["help", "-h", "-help", "--helpshort", "--helpfull", "--help=config", "-?"],
)
def test_other_ways_to_ask_for_help(launch, asked):
    shown = launch("embed", "--help").out
    assert launch("embed", asked).out == shown
    assert launch("help", "embed").out == shown
    assert launch(asked).out.startswith("Few-shot steerable alignment")


def test_help_of_train_lists_experiments_and_says_where_fields_are(launch, tmp_path):
    here = launch("train", "--help").out
    assert "experiments/synthetic/two_types.py" in here
    elsewhere = launch("train", "--help", folder=tmp_path).out
    assert "experiments/" not in elsewhere
    for shown in (here, elsewhere):
        assert "--help_fields" in shown and "def get_config()" in shown


def test_flags_from_a_file(launch, tmp_path):
    (tmp_path / "flags.txt").write_text(f"# A comment.\n--workdir={tmp_path}/none\n")
    finished = launch("evaluate", f"--flagfile={tmp_path / 'flags.txt'}")
    assert f"{tmp_path}/none: " in finished.err
    for wrong in (tmp_path / "none", tmp_path):
        finished = launch("train", f"--flagfile={wrong}")
        assert finished.code == 2 and finished.err.count("\n") == 1
        assert "--flagfile" in finished.err


def test_what_is_missing_is_named_with_an_example(launch):
    finished = launch("predict")
    assert finished.code == 2 and finished.err.count("\n") == 1
    assert "--workdir and --options" in finished.err
    assert "fsa predict --workdir=" in finished.err


@pytest.mark.parametrize(
    ("name", "flag"),
    [("train", "workdir"), ("evaluate", "workdir"), ("predict", "context")],
)
def test_an_empty_flag_is_refused(launch, name, flag):
    """As a variable of a shell that is not set gives it."""
    more = {
        "train": ["--config=experiments/synthetic/two_types.py"],
        "predict": ["--workdir=none", "--options=none.jsonl"],
    }
    finished = launch(name, *more.get(name, []), f"--{flag}=")
    assert finished.code == 2 and finished.err.count("\n") == 1
    assert f"--{flag} is empty" in finished.err


@pytest.mark.parametrize("name", commands())
def test_extra_arguments_are_refused(launch, name):
    needed = re.findall(r"--(\w+):", launch(name, "--help").out.split("Other flags")[0])
    values = {"config": "experiments/synthetic/two_types.py"}
    flags = [f"--{flag}={values.get(flag, 'none')}" for flag in needed]
    finished = launch(name, *flags, "stray")
    assert finished.code == 2 and finished.err.count("\n") == 1
    assert "'stray'" in finished.err


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
    for asked in ("--version", "version"):
        finished = launch(asked)
        assert finished.code == 0 and finished.out[0].isdigit()
