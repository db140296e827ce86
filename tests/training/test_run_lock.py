"""Run directories: one training at a time, and none of another kind."""

import json
import os
import signal
import subprocess
import sys

import pytest
from etils import epath

from fsa.errors import InputError
from fsa.training import run_lock

HOLDER = """
import sys
from etils import epath
from fsa.training import run_lock

with run_lock.hold(epath.Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.read()
"""


def files(folder):
    """The content of each file below a folder, by its path."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_second_training_is_told_of_the_first(tmp_path):
    run = epath.Path(tmp_path / "run")
    with run_lock.hold(run):
        (run / "config.json").write_text("{}")
        with pytest.raises(InputError, match="`workdir`") as refused:
            with run_lock.hold(run):
                pass
        assert f"process {os.getpid()} " in str(refused.value)
    with run_lock.hold(run):
        assert (run / "train.lock").exists()
    assert files(tmp_path) == {"run/config.json": b"{}"}


def test_a_training_that_was_killed_holds_nothing(tmp_path):
    run = epath.Path(tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"holds\n"
    with pytest.raises(InputError, match=f"process {holder.pid} "):
        with run_lock.hold(run):
            pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (run / "train.lock").exists()
    with run_lock.hold(run):
        assert json.loads((run / "train.lock").read_text())["pid"] == os.getpid()


def test_the_command_is_refused_and_evaluation_is_not(launch, tmp_path):
    config = "--config=experiments/synthetic/two_types.py:np-btl"
    run = epath.Path(tmp_path / "run")
    with run_lock.hold(run):
        (run / "config.json").write_text("{}")
        finished = launch("train", config, f"--workdir={run}")
        assert finished.code == 2 and finished.err.count("\n") == 1
        assert "--workdir" in finished.err and str(os.getpid()) in finished.err
        assert str(os.getpid()) not in launch("evaluate", f"--workdir={run}").err
    assert files(tmp_path) == {"run/config.json": b"{}"}


def test_nothing_is_left_of_a_training_that_was_refused(tmp_path):
    run = epath.Path(tmp_path / "new" / "run")
    with pytest.raises(ZeroDivisionError), run_lock.hold(run):
        # Programs are compiled before the data are known to be sound.
        (run / "compiled").mkdir()
        (run / "compiled" / "program").write_text("")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        {"store.json": "{}"},
        {"notes.txt": ""},
        {"model.safetensors": "", "tokenizer.json": ""},
        {".hidden": "with content"},
        {"data/mine.csv": ""},
        {"data.json": '{"mine": 1}'},
        {"a/config.json": "{}"},
        {"slurm-1.out": "", "mine.py": ""},
    ],
)
def test_folders_of_others_are_refused_and_kept(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"`workdir`={tmp_path}"):
        with run_lock.hold(epath.Path(tmp_path)):
            pass
    assert files(tmp_path) == {name: text.encode() for name, text in content.items()}


@pytest.mark.parametrize(
    "name",
    [
        *("train.log", "job.out", "job.err", "slurm-7.out", "nohup.out", ".nfs0001"),
        *(".keep", "lost+found/a", "run.json", "compiled/a", "data/store.json"),
        # What `fsa.fit` leaves that is killed, and what desktops make.
        *(".data.x1y2/new/items/a", ".config.json.17.draft", ".x1.draft"),
        *(".DS_Store", "._data", "Thumbs.db", "desktop.ini"),
    ],
)
def test_what_launchers_and_cut_off_starts_left_is_accepted(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("" if name == ".keep" else "text")
    with run_lock.hold(epath.Path(tmp_path)):
        pass
    assert [*files(tmp_path)] == [name]


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run"):
        with pytest.raises(InputError, match=f"`workdir`={path}"):
            with run_lock.hold(epath.Path(path)):
                pass
