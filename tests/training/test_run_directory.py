"""Run directories: one config each."""

import json

import pytest

from fsa.errors import InputError
from fsa.training import run_directory

CONFIG = {"seed": 3, "task": {"name": "two_types"}, "eval": {"num_context": (0, 1)}}


def changed(**fields):
    """CONFIG with other fields, by dotted name with __ for the dot; None drops one."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in fields.items():
        *parents, last = name.split("__")
        holder = config
        for parent in parents:
            holder = holder[parent]
        holder[last] = value
        if value is None:
            del holder[last]
    return config


def test_a_new_directory_says_what_it_ran_with(tmp_path):
    path = tmp_path / "runs" / "a"
    assert run_directory.claim(path, CONFIG) == path
    assert run_directory.read_config(path) == json.loads(json.dumps(CONFIG))
    run = json.loads((path / "run.json").read_text())
    assert run["seed"] == 3
    assert run["versions"]["jax"] and run["versions"]["fsa"]
    assert run["devices"]
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "run.json"]


def test_the_same_config_returns(tmp_path):
    """Tuples and lists are the same in JSON, and nothing is written again."""
    run_directory.claim(tmp_path, CONFIG)
    before = (tmp_path / "run.json").stat().st_mtime_ns
    assert run_directory.claim(tmp_path, changed(eval__num_context=[0, 1])) == tmp_path
    assert (tmp_path / "run.json").stat().st_mtime_ns == before


def test_another_config_is_refused(tmp_path):
    """Every field that differs is named with both values, and no other."""
    run_directory.claim(tmp_path, CONFIG)
    other = changed(
        seed=4, task__slope=2.5, task__name=None, eval__num_context=[0, 1, 3]
    )
    with pytest.raises(InputError) as refused:
        run_directory.claim(tmp_path, other)
    assert str(refused.value) == (
        f"{tmp_path}: this run has another config (eval.num_context: [0, 1] -> "
        "[0, 1, 3]; seed: 3 -> 4; task.name: two_types -> absent; task.slope: absent "
        "-> 2.5); use its values or another --workdir"
    )
    assert run_directory.read_config(tmp_path)["seed"] == 3


def test_a_start_that_was_cut_off_is_no_claim(tmp_path):
    """Killed before config.json stands, the directory is anybody's."""
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.json.draft").write_text('{"seed":')
    run_directory.claim(tmp_path, CONFIG)
    assert run_directory.read_config(tmp_path)["seed"] == 3
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 3


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "run"
    with pytest.raises(InputError, match=f"^--workdir={path} cannot be written .*Not"):
        run_directory.claim(path, CONFIG)


@pytest.mark.parametrize("content", [b'{"seed": 3', b"\xff\xfe", b""])
def test_a_damaged_config(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=f"^{tmp_path}/config.json: not "):
        run_directory.claim(tmp_path, CONFIG)


def test_no_run_there(tmp_path):
    with pytest.raises(InputError, match=f"^{tmp_path}/none: no config.json there"):
        run_directory.read_config(tmp_path / "none")


def test_a_workdir_is_absolute_or_a_buckets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_directory.locate("runs/a") == tmp_path / "runs" / "a"
    assert str(run_directory.locate("gs://bucket/runs/a")) == "gs://bucket/runs/a"


def test_where_a_run_is_computed_may_change(tmp_path):
    """And how many checkpoints it keeps; not what it skips."""
    old = {"train": {"keep_last": 2, "skip_bad_steps": 0}, "mesh": {"fsdp": 1}}
    run_directory.claim(tmp_path, old)
    moved = {"train": {"keep_last": 5, "skip_bad_steps": 0}, "mesh": {"fsdp": 4}}
    assert run_directory.claim(tmp_path, moved) == tmp_path
    moved["train"]["skip_bad_steps"] = 1
    with pytest.raises(InputError, match="train.skip_bad_steps: 0 -> 1"):
        run_directory.claim(tmp_path, moved)
