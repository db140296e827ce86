"""JSON files that are damaged in any way."""

import pytest

from fsa import json_files


def test_what_a_file_holds(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{"é": [1, null]}'.encode())
    assert json_files.read(path) == {"é": [1, None]}


DAMAGED = {
    "empty": b"",
    "cut": b'{"a": [1',
    "not UTF-8": b'{"a": "\xff"}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_a_wrong_value(tmp_path, what):
    path = tmp_path / "a.json"
    path.write_bytes(DAMAGED[what])
    with pytest.raises(ValueError):
        json_files.read(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError):
        json_files.read(tmp_path)


def test_a_missing_file_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError):
        json_files.read(tmp_path / "a.json")
