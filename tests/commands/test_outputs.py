"""Files that commands write: refused before the work, unless they may be replaced."""

import pytest

CONFIG = "--config=experiments/synthetic/two_types.py:np-btl"
# The flags of each command whose output FILE is refused before anything else is read.
COMMANDS = {
    "sample": ["--model=none", "--prompts=corpus", "--out=FILE"],
    "predict": ["--workdir=none", "--options=none.jsonl", "--out=FILE"],
    "ask": ["--workdir=none", "--out=FILE"],
    "steer": ["--workdir=none", "--prompts=none.jsonl", "--out=FILE"],
    "evaluate": ["--out=FILE", "--compare", "none"],
    "compile": [CONFIG, "--topology=local", "--text=FILE"],
}
# The flags of commands that write a folder.
FOLDERS = {
    "steer": ["--workdir=none", "--export=FOLDER"],
    "train": [CONFIG, "--workdir=FOLDER"],
    "prepare": ["--choices=none.csv", "--out=FOLDER"],
}


def run(launch, command, path, *more):
    line = [flag.replace("FILE", str(path)) for flag in COMMANDS[command]]
    finished = launch(command, *more, *line)
    assert finished.code == 2 and finished.err.count("\n") == 1, finished.err
    return finished.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_is_replaced_only_by_a_flag(launch, tmp_path, command):
    path = tmp_path / "a.jsonl"
    path.write_text("mine")
    assert f"={path}: exists" in run(launch, command, path)
    if command != "compile":  # With the flag it would compile.
        assert "exists" not in run(launch, command, path, "--overwrite")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written_is_told_at_once(launch, tmp_path, command):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", "/proc"):
        told = run(launch, command, f"{folder}/a.jsonl")
        assert str(folder) in told and ("--out" in told or "--text" in told)


def test_a_probe_replaces_its_files_only_by_a_flag(launch, tmp_path):
    (tmp_path / "probe.json").write_text("mine")
    line = "probe", "--data=none", f"--out={tmp_path}"
    finished = launch(*line)
    assert finished.code == 2 and f"{tmp_path}/probe.json: exists" in finished.err
    assert "exists" not in launch(*line, "--overwrite").err
    assert (tmp_path / "probe.json").read_text() == "mine"


@pytest.mark.parametrize("command", FOLDERS)
def test_a_name_that_is_too_long_is_told(launch, tmp_path, command):
    folder = str(tmp_path / ("n" * 300))
    line = [flag.replace("FOLDER", folder) for flag in FOLDERS[command]]
    finished = launch(command, *line)
    assert finished.code == 2 and finished.err.count("\n") == 1, finished.err
    assert not list(tmp_path.iterdir())
