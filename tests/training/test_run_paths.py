"""Paths in saved configs: found from anywhere, and after the run has moved."""

import contextlib
import json
import pathlib

import pytest

from fsa.recipes.fields import FIELDS
from fsa.recipes.ranges import PATH, PATH_OR_NONE
from fsa.training import run_paths


def config(data, model="gs://bucket/model"):
    return {"seed": 1, "task": {"path": str(data)}, "language_model": {"path": model}}


def data_of(config):
    return config["task"]["path"]


def test_every_field_that_is_a_path_is_known():
    ranges = PATH, PATH_OR_NONE
    paths = {tuple(f.name.split(".")) for f in FIELDS if f.range in ranges}
    assert paths == set(run_paths.FIELDS)


@pytest.mark.parametrize("place", ["other/mine", "run/data"])
def test_a_saved_path_is_found_from_any_folder(tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    with contextlib.chdir(tmp_path):
        saved = run_paths.to_saved(config(place), "run")
    (tmp_path / "else").mkdir()
    with contextlib.chdir(tmp_path / "else"):
        found = run_paths.from_saved(saved, "../run")
    assert pathlib.Path(data_of(found)).samefile(tmp_path / place)


def test_what_is_in_the_run_moves_with_it(tmp_path):
    (tmp_path / "a" / "data").mkdir(parents=True)
    saved = run_paths.to_saved(config(tmp_path / "a" / "data"), tmp_path / "a")
    assert data_of(saved) == "data"
    (tmp_path / "a").rename(tmp_path / "b")
    found = run_paths.from_saved(saved, tmp_path / "b")
    assert data_of(found) == str(tmp_path / "b" / "data")


def test_addresses_stay_and_nothing_else_changes(tmp_path):
    given = config("gs://bucket/data")
    assert run_paths.to_saved(given, tmp_path) == given
    assert run_paths.from_saved(given, tmp_path) == given
    simulated = {"task": {"slope": 2.0}}
    assert run_paths.to_saved(simulated, tmp_path) == simulated
    # In object storage, data on a disk are never in the run.
    saved = run_paths.to_saved(config(tmp_path / "data"), "gs://bucket/run")
    assert data_of(saved) == str(tmp_path / "data")


def test_older_runs(tmp_path):
    """Their relative paths are those of a current folder, and others may have moved."""
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "data").mkdir(parents=True)
    with contextlib.chdir(tmp_path):
        found = run_paths.from_saved(config("data/mine"), "runs/a")
        assert data_of(found) == str(tmp_path / "data" / "mine")
        missing = run_paths.from_saved(config("data/none"), "runs/a")
        assert data_of(missing) == str(tmp_path / "data" / "none")
    inside = run_paths.from_saved(config("/gone/a/data"), tmp_path / "runs" / "a")
    assert data_of(inside) == str(tmp_path / "runs" / "a" / "data")


def test_moving(tmp_path):
    """Only paths are written, and only where they differ."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config("/old"), "task.kept": [1]}))
    before = path.read_bytes()
    run_paths.move({"task": {"path": "/old"}, "seed": 9}, tmp_path)
    assert path.read_bytes() == before
    run_paths.move({"task": {"path": "/new"}, "seed": 9}, tmp_path)
    assert json.loads(path.read_text()) == {**config("/new"), "task.kept": [1]}
