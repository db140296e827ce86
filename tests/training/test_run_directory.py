"""Run directories: each belongs to one config."""

import json

import pytest

from fsa.errors import InputError
from fsa.training import run_directory

CONFIG = {"seed": 3, "task": {"name": "two_types"}, "eval": {"num_context": (0, 1)}}


def changed(**fields):
    """CONFIG with other fields, named with __ in place of dots; None removes one."""
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


def test_a_new_directory_records_versions_and_devices(tmp_path):
    path = tmp_path / "runs" / "a"
    assert run_directory.claim(path, CONFIG) == path
    assert run_directory.read_config(path) == json.loads(json.dumps(CONFIG))
    run = json.loads((path / "run.json").read_text())
    assert run["seed"] == 3
    assert run["versions"]["jax"] and run["versions"]["fsa"]
    assert run["devices"]
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "run.json"]


def test_the_same_config_returns(tmp_path):
    """Tuples and lists are equal, and no file is written again."""
    run_directory.claim(tmp_path, CONFIG)
    before = (tmp_path / "run.json").stat().st_mtime_ns
    assert run_directory.claim(tmp_path, changed(eval__num_context=[0, 1])) == tmp_path
    assert (tmp_path / "run.json").stat().st_mtime_ns == before


def test_another_config_is_refused(tmp_path):
    """The message names the fields that differ, with both values, and no other."""
    run_directory.claim(tmp_path, CONFIG)
    other = changed(
        seed=4, task__slope=2.5, task__name=None, eval__num_context=[0, 1, 3]
    )
    with pytest.raises(InputError) as refused:
        run_directory.claim(tmp_path, other)
    assert (
        "(eval.num_context: [0, 1] -> [0, 1, 3]; seed: 3 -> 4; task.name: two_types -> "
        "absent; task.slope: absent -> 2.5)"
    ) in str(refused.value)
    assert run_directory.read_config(tmp_path)["seed"] == 3


def test_a_start_that_was_cut_off_is_no_claim(tmp_path):
    """Until config.json is written, the directory belongs to no config."""
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.json.draft").write_text('{"seed":')
    run_directory.claim(tmp_path, CONFIG)
    assert run_directory.read_config(tmp_path)["seed"] == 3
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 3


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "run"
    with pytest.raises(InputError, match=f"`workdir`={path}"):
        run_directory.claim(path, CONFIG)


@pytest.mark.parametrize("content", [b'{"seed": 3', b"\xff\xfe", b""])
def test_a_damaged_config(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=f"{tmp_path}/config.json"):
        run_directory.claim(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("content", "section"),
    [
        ({"task": None}, "task"),
        ({"task": 3}, "task"),
        ({"task": {"path": 3}}, "task.path"),
        ({"language_model": 3}, "language_model"),
        ({"mesh": None}, "mesh"),
    ],
)
def test_a_section_that_is_none(tmp_path, content, section):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"config.json: .*{section}"):
        run_directory.read_config(tmp_path)


def test_no_run_there(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/none.*config.json"):
        run_directory.read_config(tmp_path / "none")


def test_a_workdir_is_absolute_or_in_object_storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_directory.locate("runs/a") == tmp_path / "runs" / "a"
    assert str(run_directory.locate("gs://bucket/runs/a")) == "gs://bucket/runs/a"


def test_where_a_run_is_computed_may_change(tmp_path):
    """And the number of checkpoints that it keeps, but not what it skips."""
    old = {"train": {"keep_last": 2, "skip_bad_steps": 0}, "mesh": {"fsdp": 1}}
    run_directory.claim(tmp_path, old)
    moved = {"train": {"keep_last": 5, "skip_bad_steps": 0}, "mesh": {"fsdp": 4}}
    assert run_directory.claim(tmp_path, moved) == tmp_path
    moved["train"]["skip_bad_steps"] = 1
    with pytest.raises(InputError, match="train.skip_bad_steps"):
        run_directory.claim(tmp_path, moved)


def test_a_run_of_an_older_version_is_recognised(tmp_path):
    """By a config that `upgrade` makes of its own."""
    run_directory.claim(tmp_path, changed(task__slope=2.5))

    def upgrade(config):
        return config | {"task": {"name": config["task"]["name"], "new": 0}}

    new = changed(task__new=0)
    assert run_directory.claim(tmp_path, new, upgrade=upgrade) == tmp_path
    with pytest.raises(InputError, match="seed"):
        run_directory.claim(tmp_path, {**new, "seed": 4}, upgrade=upgrade)


def test_a_run_that_has_not_begun_takes_another_config(tmp_path):
    run_directory.claim(tmp_path, CONFIG)
    run_directory.claim(tmp_path, changed(seed=4), replace=True)
    assert run_directory.read_config(tmp_path)["seed"] == 4
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 4


@pytest.mark.parametrize(
    ("folder", "begun"),
    [("250", True), ("250.orbax-checkpoint-tmp-0", False), ("", False)],
)
def test_a_run_has_begun_when_it_has_a_checkpoint(tmp_path, folder, begun):
    assert not run_directory.has_begun(tmp_path)
    (tmp_path / "checkpoints" / folder).mkdir(parents=True)
    assert run_directory.has_begun(tmp_path) == begun
