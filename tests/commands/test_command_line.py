"""How command lines end, with a program that ends in every way."""

import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest
from slow import slow_but

# Forks once for each command line, since most of a program's start is its imports.
PROGRAM = """
import json, os, sys

from absl import flags

from fsa.commands import command_line, experiment_file
from fsa.errors import InputError

WAY = flags.DEFINE_string("way", "", "How to end.")
PLACES = flags.DEFINE_list("places", [], "Several.")
HEAT = flags.DEFINE_float("heat", 1.0, "A number.", 0.0)
CONFIG = experiment_file.define_flag()


def main(argv):
    command_line.refuse_arguments(argv)
    if WAY.value:
        raise {
            "input": InputError("a.csv, row 3:\\nempty user"),
            # An argument of the library is a flag here, and a column is not.
            "argument": InputError("`way` is wrong in `column`"),
            "interrupt": KeyboardInterrupt(),
            "bug": ValueError("a bug"),
        }[WAY.value]
    print("done", CONFIG.value.model.width, *PLACES.value)


def redirect(stream, path):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())


config, *arguments = sys.argv[1:]
codes = []
for i, argument in enumerate(arguments):
    child = os.fork()
    if not child:
        redirect(sys.stdout, f"{i}.out")
        redirect(sys.stderr, f"{i}.err")
        sys.argv = ["program", f"--config={config}", *argument.split(" ")]
        command_line.run(main)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({"model": {"width": 64}})
"""
SUCCESS, BUG = "--config.model.width=32", "--way=bug"
LISTS = "--places=a,b --places=c"
REFUSED = {
    "--way=input": (2, "a.csv, row 3"),
    "--way=argument": (2, "--way is wrong in `column`"),
    "--way=interrupt": (130, "interrupted"),
    "extra": (2, "'extra'"),
    "--wya=input": (2, "did you mean --way?"),
    "--way": (2, "--way"),
    "--places=": (2, "--places"),
    # No bound of absl's holds it.
    "--heat=nan": (2, "--heat=nan"),
    "--config.model.widht=3": (2, "did you mean --config.model.width?"),
    "--config.modle.width=3": (2, "did you mean --config.model.width?"),
    "--config.model.width=wide": (2, "--config.model.width=wide"),
    "--model.width=3": (2, "--config.model.width=VALUE"),
    "--confg.model.width=3": (2, "--config.model.width=VALUE"),
}


# Each runs in a process, so most are slow.
QUICK = (
    *("--way=input", "--way=interrupt", "extra", "--wya=input"),
    "--config.model.widht=3",
)


class Finished(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str


def run_program(folder, arguments):
    """How the program ended, by its argument."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "config.py").write_text(CONFIG)
    repository = pathlib.Path(__file__).resolve().parents[2]
    shown = subprocess.run(
        [sys.executable, "program.py", "config.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    return {
        argument: Finished(
            code, (folder / f"{i}.out").read_text(), (folder / f"{i}.err").read_text()
        )
        for i, (argument, code) in enumerate(
            zip(arguments, json.loads(shown), strict=True)
        )
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """How the program ended with the quick arguments."""
    arguments = [SUCCESS, BUG, LISTS, *QUICK]
    return run_program(tmp_path_factory.mktemp("program"), arguments)


@pytest.fixture(scope="module")
def finished_slow(tmp_path_factory):
    """How it ended with the slow ones."""
    arguments = [argument for argument in REFUSED if argument not in QUICK]
    return run_program(tmp_path_factory.mktemp("program"), arguments)


def test_success(finished):
    assert finished[SUCCESS] == (0, "done 32\n", "")


@pytest.mark.parametrize("argument", slow_but(QUICK, REFUSED))
def test_one_line(request, argument):
    code, named = REFUSED[argument]
    finished = "finished" if argument in QUICK else "finished_slow"
    ended = request.getfixturevalue(finished)[argument]
    assert (ended.code, ended.err.count("\n")) == (code, 1)
    assert named in ended.err
    assert ended.err.startswith("error: ") == (code == 2)


def test_a_list_may_be_given_in_parts(finished):
    assert finished[LISTS] == (0, "done 64 a b c\n", "")


def test_a_bug_keeps_its_traceback(finished):
    ended = finished[BUG]
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert ended.err.endswith("ValueError: a bug\n")
