"""Configs that cannot be read end each command in one line, before any work."""

import pytest

COMMANDS = {
    "train": [],
    "compile": ["--topology=local"],
    "sweep": [],
}
FILES = {
    "no get_config": "x = 1\n",
    "a syntax error": "def get_config(:\n",
    "a plain dict": "def get_config():\n    return {'a': 1}\n",
    "an error": "def get_config():\n    raise ValueError('boom')\n",
}
# What else a file may raise, always from its second line.
RAISES = {
    "ModuleNotFoundError: No module named 'nosuch'": "\nimport nosuch\n",
    "ZeroDivisionError": "def get_config():\n    return 1 / 0\n",
    "AttributeError": "import math\nmath.nosuch\n",
    "SystemExit: 3": "import sys\nsys.exit(3)\n",
    "FileNotFoundError": "\nopen('nosuch.json')\n",
    "KeyError: 'a'": "def get_config():\n    return {}['a']\n",
    "SyntaxError": "x = 1\ndef get_config(:\n",
    "gave NoneType": "def get_config():\n    pass\n",
}
TWO_TYPES = "experiments/synthetic/two_types.py"


def refused(finished):
    assert finished.code == 2, finished.err
    assert finished.err.count("\n") == 1 and "Traceback" not in finished.err
    return finished.err


def flags_of(name, tmp_path):
    workdir = [] if name == "compile" else [f"--workdir={tmp_path / 'run'}"]
    return [*COMMANDS[name], *workdir]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("content", [None, *FILES])
def test_a_file_that_gives_no_config(launch, tmp_path, name, content):
    path = tmp_path / "experiment.py"
    if content:
        path.write_text(FILES[content])
    finished = launch(name, f"--config={path}", *flags_of(name, tmp_path))
    assert "--config" in refused(finished)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_no_config(launch, tmp_path, name):
    assert "--config" in refused(launch(name, *flags_of(name, tmp_path)))


@pytest.mark.parametrize("why", RAISES)
def test_a_file_that_raises(launch, tmp_path, why):
    path = tmp_path / "experiment.py"
    path.write_text(RAISES[why])
    shown = refused(launch("train", f"--config={path}", *flags_of("train", tmp_path)))
    line = "" if why.startswith("gave") else ", line 2"
    assert f"--config={path}{line}: " in shown and why in shown


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("experiments/synthetic/two_type.py", TWO_TYPES),
        ("two_types.py", TWO_TYPES),
        ("two_types", TWO_TYPES),
        (f"{TWO_TYPES}:npbtl", "np-btl"),
        ("experiments/policy/corpus.py:langauge", "language"),
        ("experiments/synthetic", "experiments/synthetic/ablation.py"),
        ("README.md", "experiments/choices.py"),
    ],
)
def test_what_was_meant(launch, tmp_path, given, meant):
    shown = refused(launch("train", f"--config={given}", *flags_of("train", tmp_path)))
    assert f"--config={given}" in shown
    assert meant in shown.replace(f"--config={given}", "")


def test_without_experiments(launch, tmp_path):
    """As for those who installed the package: how to write one is shown instead."""
    finished = launch("train", "--config=mine.py", folder=tmp_path)
    assert "fsa train --help" in refused(finished)
    (tmp_path / "mine.py").write_text("def get_config():\n    return 1\n")
    finished = launch("train", "--config=mnie.py", folder=tmp_path)
    assert "did you mean mine.py?" in refused(finished)


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("task.stps=3", "--config.train.steps?"),
        ("model.hiden=3", "--config.model.hidden?"),
        ("optimizer.lr=1", "--help_fields"),
        ("task.path=here", "--help_fields"),
        ("train.steps[0]=3", "--config.train.steps?"),
        ("=3", "--help_fields"),
        ("train.steps=many", "whole number"),
        ("model.item_embeddings=maybe", "true or false"),
    ],
)
def test_fields_that_do_not_exist_or_do_not_fit(launch, field, meant):
    shown = refused(launch("train", f"--config={TWO_TYPES}", f"--config.{field}"))
    assert f"--config.{field.partition('=')[0]}" in shown and meant in shown


def test_fields_before_the_file_or_without_it(launch):
    for more in ([], [f"--config={TWO_TYPES}"]):
        shown = refused(launch("train", "--config.train.steps=3", *more))
        assert "--config=FILE" in shown


def test_a_field_that_a_file_misspells(launch, tmp_path):
    """The fields are listed all the same, and what is wrong comes last."""
    path = tmp_path / "experiment.py"
    path.write_text(
        "from fsa.recipes.presets import people\n"
        "def get_config():\n    config = people()\n    config.task.pth = 'a'\n"
        "    return config\n"
    )
    flags = [f"--config={path}", *flags_of("train", tmp_path)]
    assert "did you mean task.path?" in refused(launch("train", *flags))
    listed = launch("train", *flags, "--help_fields")
    assert "task.pth" in refused(listed) and "\ntask.path = " in listed.out


@pytest.mark.parametrize("kind", ["pol", "policy"])
def test_help_on_a_kind_that_does_not_fit(launch, kind):
    flags = ["--config=experiments/synthetic/two_types.py", f"--config.kind={kind}"]
    assert f"kind={kind}" in refused(launch("train", *flags, "--help_fields")).replace(
        "'", ""
    )


@pytest.mark.parametrize("returned", ["5", "[3]", "[]"])
def test_a_sweep_of_no_runs(launch, tmp_path, returned):
    path = tmp_path / "experiment.py"
    path.write_text(
        "from experiments.synthetic.two_types import get_config\n"
        f"def get_sweep():\n    return {returned}\n"
    )
    finished = launch("sweep", f"--config={path}", *flags_of("sweep", tmp_path))
    assert "get_sweep" in refused(finished)
