"""What is written is what is read, or nothing is."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fsa.data import dataset, manifest, records
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
        data, features=vectors.astype(np.float32), embedding=dataset.Embedding("random")
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
    dataset.write_features(path, data.features.astype(np.float64), data.embedding)
    assert_same(data, dataset.load(path))
    short = dataset.Embedding("short", "{prompt}: {option}", digest="0" * 64)
    dataset.write_features(path, data.features[:, :2], short)
    found = dataset.load(path)
    assert (found.features.shape[1], found.embedding) == (2, short)
    manifest = json.loads((path / "store.json").read_text())
    assert manifest["sources"] == {"table.csv": "0" * 64}


@pytest.mark.parametrize(
    ("recorded", "wanted"),
    [
        ("", None),
        ("MiniLM", dataset.Embedding("MiniLM")),
        (
            "bag of words of '{prompt}\\n{option} of \"it\"'",
            dataset.Embedding("bag of words", '{prompt}\n{option} of "it"'),
        ),
    ],
)
def test_an_older_dataset_has_the_embedder_as_a_text(tmp_path, recorded, wanted):
    path = tmp_path / "a"
    dataset.write(path, example(features=wanted is not None))
    manifest = json.loads((path / "store.json").read_text())
    del manifest["embedding"]
    (path / "store.json").write_text(json.dumps(manifest | {"embedder": recorded}))
    found = dataset.load(path, need_features=False)
    assert found.embedding == wanted
    assert found.embedder == (wanted.name if wanted else "")


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
        dataset.write_features(tmp_path / "a", change(data.features), data.embedding)
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


@pytest.mark.parametrize(
    "foreign", ["notes.txt", "items/notes.txt", "run/checkpoints/10/state"]
)
def test_overwriting_spares_what_is_no_part_of_the_dataset(
    tmp_path, foreign, assert_same
):
    path = tmp_path / "a"
    dataset.write(path, example(3))
    added = path / foreign
    added.parent.mkdir(parents=True, exist_ok=True)
    added.write_text("dear")
    with pytest.raises(InputError, match=str(added)):
        dataset.write(path, example(4), overwrite=True)
    assert added.read_text() == "dear"
    assert_same(dataset.load(path), example(3))
    added.unlink()
    dataset.write(path, example(4), overwrite=True)


@pytest.mark.parametrize("name", [".DS_Store", "items/._x", "Thumbs.db", "desktop.ini"])
def test_files_of_desktops_do_not_count(tmp_path, name, assert_same):
    path = tmp_path / "a"
    dataset.write(path, example(3))
    (path / name).write_text("made by a desktop")
    dataset.write(path, example(4), overwrite=True)
    assert_same(dataset.load(path), example(4))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".DS_Store").write_text("made by a desktop")
    dataset.write(tmp_path / "new", example(4))


def test_a_dataset_within_another_is_refused(tmp_path, assert_same):
    """Its files would be foreign ones of the outer dataset."""
    dataset.write(tmp_path / "a", example(3))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for outer in ("a", "link"):
        for inside in ("sub", "items", "sub/sub"):
            with pytest.raises(InputError, match=str(tmp_path / "a")):
                dataset.write(tmp_path / outer / inside, example(4), overwrite=True)
    dataset.write(tmp_path / "a", example(4), overwrite=True)
    assert_same(dataset.load(tmp_path / "a"), example(4))


def test_a_link_to_a_dataset_stays_one(tmp_path, assert_same):
    dataset.write(tmp_path / "disk" / "a", example(3))
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "a")
    dataset.write(tmp_path / "link", example(4), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert_same(dataset.load(tmp_path / "disk" / "a"), example(4))


def test_how_users_were_split_is_recorded_and_survives_embedding(tmp_path):
    split = {"by": "user", "seed": 3}
    dataset.write(tmp_path / "a", example(3, features=False), split=split)
    data = example(3)
    dataset.write_features(tmp_path / "a", data.features, data.embedding)
    assert manifest.read(tmp_path / "a")["split"] == split


def test_a_file_that_is_added_while_writing_is_spared(tmp_path, monkeypatch):
    path = tmp_path / "a"
    dataset.write(path, example(3))
    write_records = records.write

    def slowly(folder, name, *rest):
        (path / "notes.txt").write_text("dear")
        write_records(folder, name, *rest)

    monkeypatch.setattr(records, "write", slowly)
    with pytest.raises(InputError, match="notes.txt"):
        dataset.write(path, example(4), overwrite=True)
    assert (path / "notes.txt").read_text() == "dear"


def test_what_was_computed_from_a_dataset_goes_with_it(tmp_path):
    path = tmp_path / "a"
    dataset.write(path, example(3))
    results = path / f"{manifest.RESULTS}0123"
    results.mkdir()
    (results / "log_prob.npy").write_bytes(b"12")
    manifest.write(results, {})
    (results / "notes.txt").write_text("dear")
    with pytest.raises(InputError, match="notes.txt"):
        dataset.write(path, example(4), overwrite=True)
    (results / "notes.txt").unlink()
    dataset.write(path, example(4), overwrite=True)
    assert not results.exists()


def test_a_damaged_list_of_files_is_no_leave_to_delete(tmp_path):
    dataset.write(tmp_path / "a", example(3))
    for content in ("", "[]", '{"files": 3}', '{"files": [[]]}'):
        (tmp_path / "a" / "store.json").write_text(content)
        with pytest.raises(InputError, match="store.json"):
            dataset.write(tmp_path / "a", example(4), overwrite=True)
        assert (tmp_path / "a" / "users").exists()


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


@pytest.mark.parametrize(
    "change",
    [
        {"files": {}},
        {"groups": None},
        {"embedding": {"dimension": 3}},
        {"embedding": "bert"},
    ],
)
def test_a_manifest_that_makes_no_sense(tmp_path, change):
    """It has the right syntax and the wrong entries; `None` takes one away."""
    dataset.write(tmp_path / "a", example())
    path = tmp_path / "a" / "store.json"
    content = json.loads(path.read_text()) | change
    content = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="store.json"):
        dataset.load(tmp_path / "a")
    path.write_text('{"schema": 1, "files": {}}')
    with pytest.raises(InputError, match="store.json"):
        dataset.load(tmp_path / "a")


def test_another_schema(tmp_path):
    dataset.write(tmp_path / "a", example())
    content = json.loads((tmp_path / "a" / "store.json").read_text())
    (tmp_path / "a" / "store.json").write_text(json.dumps(content | {"schema": 99}))
    with pytest.raises(InputError, match="schema 99"):
        dataset.load(tmp_path / "a")
