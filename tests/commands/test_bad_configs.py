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
