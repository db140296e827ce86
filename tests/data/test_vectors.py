"""Ready-made vectors."""

import numpy as np
import pytest

from fsa.data import files, vectors
from fsa.errors import InputError


@pytest.fixture
def given(tmp_path):
    """Three vectors, and the ids of their items."""
    np.save(tmp_path / "v.npy", np.arange(6, dtype=np.float16).reshape(3, 2))
    files.write_jsonl(tmp_path / "ids.jsonl", [{"id": i, "text": ""} for i in "bac"])
    return tmp_path


def test_vectors_are_matched_by_id(given):
    found = vectors.read(given / "v.npy", given / "ids.jsonl", ["a", "b"])
    np.testing.assert_array_equal(found, [[2, 3], [0, 1]])
    assert found.dtype == np.float32


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_of_one_array(given, save):
    path = given / "v.npz"
    save(path, np.load(given / "v.npy"))
    found = vectors.read(path, given / "ids.jsonl", ["a", "b"])
    np.testing.assert_array_equal(found, [[2, 3], [0, 1]])


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({}, "0 arrays"),
        ({"left": np.zeros((3, 2)), "right": np.zeros((3, 2))}, "left, right"),
        ({"words": np.array([["a", "b"]])}, "v.npz"),
        ({"things": np.array([[None]])}, "v.npz"),
    ],
)
def test_archives_that_are_no_vectors(given, arrays, named):
    np.savez(given / "v.npz", **arrays)
    with pytest.raises(InputError, match=named) as error:
        vectors.read(given / "v.npz", given / "ids.jsonl", ["a"])
    assert "\n" not in str(error.value)


def test_a_damaged_archive(given):
    path = given / "v.npz"
    np.savez_compressed(path, np.load(given / "v.npy"))
    whole = path.read_bytes()
    for damaged in (whole[:20], whole[:-9], whole[:60] + b"?" * 9 + whole[69:], b"PK"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="v.npz: damaged"):
            vectors.read(path, given / "ids.jsonl", ["a"])


def test_numbers_are_ids_as_in_tables(given):
    files.write_jsonl(given / "ids.jsonl", [{"id": i} for i in (0, 1.0, "2.0")])
    found = vectors.read(given / "v.npy", given / "ids.jsonl", ["2", "0", "1"])
    np.testing.assert_array_equal(found, [[4, 5], [0, 1], [2, 3]])


def test_an_item_without_a_vector(given):
    with pytest.raises(InputError, match=r"ids.jsonl: .*'d'"):
        vectors.read(given / "v.npy", given / "ids.jsonl", ["a", "d", "e"])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("ba", r"v.npy: 3 .* 2 .*ids.jsonl"),
        ("bab", r"ids.jsonl, row 3: .*'b'"),
        (["b", "", "c"], "ids.jsonl, row 2: "),
    ],
)
def test_ids_that_do_not_fit(given, ids, message):
    files.write_jsonl(given / "ids.jsonl", [{"id": i} for i in ids])
    with pytest.raises(InputError, match=message):
        vectors.read(given / "v.npy", given / "ids.jsonl", ["a"])


def test_arrays_that_are_no_vectors(given):
    path = given / "v.npy"
    for array in (np.zeros(3), np.zeros((3, 2), int)):
        np.save(path, array)
        with pytest.raises(InputError, match=r"v.npy"):
            vectors.read(path, given / "ids.jsonl", ["a"])
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="v.npy: damaged"):
        vectors.read(path, given / "ids.jsonl", ["a"])
    path.unlink()
    with pytest.raises(InputError, match="v.npy: no such"):
        vectors.read(path, given / "ids.jsonl", ["a"])
