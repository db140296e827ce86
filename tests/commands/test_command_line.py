"""How command lines end, with a program that ends in every way."""

import pytest

PROGRAM = """
from absl import flags
from ml_collections import config_flags

from fsa.errors import InputError
from launch import cli

WAY = flags.DEFINE_string("way", "", "How to end.")
CONFIG = config_flags.DEFINE_config_file("config")


def main(argv):
    cli.refuse_arguments(argv)
    if WAY.value:
        raise {
            "input": InputError("a.csv, row 3:\\nempty user"),
            "interrupt": KeyboardInterrupt(),
            "bug": ValueError("a bug"),
        }[WAY.value]
    print("done", CONFIG.value.model.width)


cli.run(main)
"""
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({"model": {"width": 64}})
"""


@pytest.fixture
def program(command, tmp_path):
    """Runs PROGRAM with arguments."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "config.py").write_text(CONFIG)

    def run(*arguments):
        code = f"import runpy; runpy.run_path({str(tmp_path / 'program.py')!r})"
        return command("-c", code, f"--config={tmp_path / 'config.py'}", *arguments)

    return run


def test_success(program):
    finished = program("--config.model.width=32")
    assert (finished.returncode, finished.stdout) == (0, "done 32\n")


@pytest.mark.parametrize(
    ("argument", "code", "message"),
    [
        ("--way=input", 2, "error: a.csv, row 3: empty user\n"),
        ("--way=interrupt", 130, "interrupted\n"),
        ("extra", 2, "error: unexpected argument 'extra'; "),
        ("--wya=input", 2, "error: Unknown command line flag 'wya'. Did you mean: way"),
        (
            "--config.model.widht=3",
            2,
            "error: --config.model.widht: the config has no ",
        ),
        (
            "--config.modle.width=3",
            2,
            "error: --config.modle.width: the config has no ",
        ),
        ("--config.model.width=wide", 2, "error: flag --config.model.width=wide: "),
    ],
)
def test_one_line(program, argument, code, message):
    finished = program(argument)
    assert finished.returncode == code
    assert finished.stderr.startswith(message)
    assert finished.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback(program):
    finished = program("--way=bug")
    assert finished.returncode == 1
    assert "Traceback" in finished.stderr
    assert finished.stderr.endswith("ValueError: a bug\n")
