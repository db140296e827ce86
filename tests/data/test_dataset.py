"""What is written is what is read, or nothing is."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fsa.data import dataset, records
from fsa.data.collect import collect
from fsa.data.tables import Choice, Rating
from fsa.errors import InputError

PROMPT = "Was trinkst du?\n茶?"


def example(num_users=7, features=True):
    """People with choices, with ratings and with both; nobody is in "valid"."""
    choices, ratings = [], []
    for i in range(num_users):
        split, group = ("test" if i % 3 == 2 else "train"), f"group {i % 2}"
        if i % 5:
            choices += [
                Choice(f"u{i}", PROMPT, f"tea {j}", f"milk {i}", split, group)
                for j in range(i)
            ]
        if i % 2:
            ratings.append(Rating(f"u{i}", PROMPT, "tea 0", 0.25 * i, split, group))
    data = collect(choices, ratings)
    if not features:
        return data
    vectors = np.random.default_rng(0).normal(size=(len(data.texts), 5))
    return dataclasses.replace(
        data, features=vectors.astype(np.float32), embedder="random"
    )


@pytest.mark.parametrize("features", [True, False])
def test_round_trip(tmp_path, features, assert_same):
    data = example(features=features)
    assert data.users["valid"].names == ()
    dataset.write(tmp_path / "a", data)
    assert_same(data, dataset.load(tmp_path / "a", need_features=features))
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("kind", ["choices", "ratings"])
def test_one_kind_alone(tmp_path, kind, assert_same):
    choice = Choice("ann", "", "tea", "milk", "train")
    rating = Rating("ann", "", "tea", 1.0, "train")
    data = collect(
        [choice] if kind == "choices" else [],
        [rating] if kind == "ratings" else [],
    )
    dataset.write(tmp_path / "a", data)
    assert_same(data, dataset.load(tmp_path / "a", need_features=False))


def test_features_are_added_later(tmp_path, assert_same):
    path, data = tmp_path / "a", example()
    dataset.write(path, example(features=False), sources={"table.csv": "0" * 64})
    with pytest.raises(InputError, match="fsa embed"):
        dataset.load(path)
    found = dataset.write_features(path, data.features.astype(np.float64), "random")
    assert_same(data, found)
    assert_same(data, dataset.load(path))
    dataset.write_features(path, data.features[:, :2], "short")
    assert dataset.load(path).features.shape[1] == 2
    manifest = json.loads((path / "store.json").read_text())
    assert manifest["sources"] == {"table.csv": "0" * 64}
    assert manifest["embedder"] == "short"


@pytest.mark.parametrize("size", [999, 1000, 2001])
def test_records_come_back_in_order(tmp_path, size):
    rows = [{"value": np.arange(i % 3, dtype=np.int32) + i} for i in range(size)]
    feature = tfds.features.Tensor(shape=(None,), dtype=np.int32)
    records.write(tmp_path, "rows", {"value": feature}, {"all_of_them": rows})
    found = records.read(tmp_path, "rows", "all_of_them")
    assert [row["value"].tolist() for row in found] == [
        row["value"].tolist() for row in rows
    ]


def test_counts(tmp_path):
    counts = dataset.counts(example(num_users=4))
    # Users 1 and 3 rated, users 1, 2 and 3 chose; user 0 did nothing.
    assert counts["train"] == {
        "users": 2,
        "users_with_choices": 2,
        "users_with_ratings": 2,
        "choices": 4,
        "ratings": 2,
    }
    assert counts["test"]["choices"] == 2
    assert counts["valid"]["users"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:-1], r"shape \(\d+, 5\)"),
        (lambda x: x[:, :0], r"shape \(\d+, 0\)"),
        (lambda x: x[0], r"shape \(5,\)"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 3, np.nan, x), r"NaN"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 3, np.inf, x), r"infinite"),
    ],
)
def test_bad_features(tmp_path, change, message):
    data = example()
    dataset.write(tmp_path / "a", example(features=False))
    with pytest.raises(InputError, match=message) as error:
        dataset.write_features(tmp_path / "a", change(data.features), "broken")
    if "N" in message:
        assert repr(data.item_ids[3]) in str(error.value)
    assert dataset.load(tmp_path / "a", need_features=False).embedder == ""


def test_what_is_there_is_not_overwritten(tmp_path):
    path = tmp_path / "a"
    path.mkdir()
    dataset.write(path, example(3))
    with pytest.raises(InputError, match="overwrite"):
        dataset.write(path, example(4))
    assert len(dataset.load(path).users["train"].names) == 1
    dataset.write(path, example(4), overwrite=True)
    assert len(dataset.load(path).users["train"].names) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_overwriting_spares_what_is_no_dataset(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("dear")
    for path in (tmp_path / "letters", tmp_path / "letters" / "love.txt"):
        with pytest.raises(InputError, match=str(path)):
            dataset.write(path, example(), overwrite=True)
    assert (tmp_path / "letters" / "love.txt").read_text() == "dear"


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch, assert_same):
    dataset.write(tmp_path / "a", example(3))
    write_records = records.write

    def interrupted(folder, name, *rest):
        write_records(folder, name, *rest)
        if name == "users":
            raise KeyboardInterrupt

    monkeypatch.setattr(records, "write", interrupted)
    for path in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(KeyboardInterrupt):
            dataset.write(path, example(5), overwrite=True)
    assert_same(dataset.load(tmp_path / "a"), example(3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        dataset.write(tmp_path / "file" / "a", example())


def test_every_damage_is_seen(tmp_path, assert_same):
    path = tmp_path / "a"
    dataset.write(path, example())
    files = [file for file in path.rglob("*") if file.is_file()]
    assert sum("array_record" in file.name for file in files) == 4
    for file in files:
        content = bytearray(file.read_bytes())
        middle = len(content) // 2
        flipped = (
            content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
        )
        for damaged in (flipped, content[:middle], None):
            file.write_bytes(damaged) if damaged is not None else file.unlink()
            with pytest.raises(InputError) as error:
                dataset.load(path)
            assert str(path) in str(error.value)
            assert "\n" not in str(error.value)
        file.write_bytes(content)
    assert_same(dataset.load(path), example())


def test_no_dataset(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        dataset.load(tmp_path)


def test_another_schema(tmp_path):
    dataset.write(tmp_path / "a", example())
    content = json.loads((tmp_path / "a" / "store.json").read_text())
    (tmp_path / "a" / "store.json").write_text(json.dumps(content | {"schema": 99}))
    with pytest.raises(InputError, match="schema 99"):
        dataset.load(tmp_path / "a")
