"""`launch/prepare.py` and the way all command lines end, as a user runs them."""

import collections

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from fsa.data import dataset, files

ROWS = [
    {
        "user": f"user {i}",
        "prompt": "What do you drink,\nif anything?",
        "chosen": f"tea {j}",
        "rejected": f"milk {(i + j) % 4}",
        "split": ("train", "valid", "test")[i % 3],
    }
    for i in range(9)
    for j in range(4)
]
RATINGS = [
    {
        "user": f"user {i}",
        "prompt": ROWS[0]["prompt"],
        "item": f"tea {j}",
        "value": i - j,
    }
    for i in range(12)
    for j in range(3)
]


def write(path, rows):
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        pa.csv.write_csv(pa.Table.from_pylist(rows), path)
    else:
        files.write_jsonl(path, rows)
    return path


def fails(finished, message):
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert finished.stderr.startswith("error: ")
    assert message in finished.stderr


def test_formats_agree_and_the_saved_tables_make_the_same_store(
    command, tmp_path, assert_same
):
    def prepare(name, choices, ratings, *arguments):
        finished = command(
            *arguments,
            f"--choices={choices}",
            f"--judgements={ratings}",
            f"--out={tmp_path / name}",
        )
        assert (finished.returncode, finished.stderr) == (0, "")
        assert f"{choices}: 36 rows, 0 left out" in finished.stdout
        return dataset.load(tmp_path / name, need_features=False)

    data = prepare(
        "first",
        write(tmp_path / "a.jsonl.gz", ROWS),
        write(tmp_path / "b.csv", RATINGS),
        "-m",
        "launch.prepare",
        f"--tables_out={tmp_path}",
    )
    others = (
        write(tmp_path / "a.csv", ROWS),
        write(tmp_path / "b.parquet", RATINGS),
    )
    assert_same(data, prepare("second", *others, "launch/prepare.py"))
    saved = tmp_path / "choices.jsonl.gz", tmp_path / "judgements.jsonl.gz"
    assert_same(data, prepare("third", *saved, "launch/prepare.py"))
    assert len(data.texts) == 8
    refused = command(
        "launch/prepare.py",
        f"--choices={saved[0]}",
        f"--out={tmp_path / 'fourth'}",
        f"--tables_out={tmp_path}",
    )
    fails(refused, f"{saved[0]}: is there; choose another --tables_out")
    for row in ROWS:
        assert row["user"] in data.users[row["split"]].names
    # Users without a split of their own, 9 to 11, are drawn.
    assert sum(len(table.names) for table in data.users.values()) == 12


def test_bad_rows_are_reported_and_too_many_refused(command, tmp_path):
    path = write(tmp_path / "a.jsonl", [*ROWS, {**ROWS[0], "user": ""}])
    arguments = ("launch/prepare.py", f"--choices={path}", f"--out={tmp_path / 'a'}")
    finished = command(*arguments)
    fails(finished, f"{path}, row 37: empty user; 1 of 37 rows are bad")
    assert not (tmp_path / "a").exists()
    finished = command(*arguments, "--max_bad_share=0.1")
    assert finished.returncode == 0
    assert "37 rows, 1 left out\n          1 empty user (first in row 37)" in (
        finished.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to read"),
        (["--choices=none.csv"], "none.csv: no such file"),
        (["--chioces=a.csv"], "Unknown command line flag 'chioces'. Did you mean"),
        (["--choices=a.csv", "--where=town"], "--where=town: write --where=COLUMN"),
        (["--ultrafeedback=a.jsonl", "--split_by=user"], "--split_by=prompt"),
    ],
)
def test_bad_flags(command, tmp_path, arguments, message):
    out = f"--out={tmp_path / 'a'}"
    fails(command("launch/prepare.py", out, *arguments), message)


def test_ultrafeedback_is_split_by_prompt(command, tmp_path):
    def completion(response, helpfulness, honesty):
        ratings = {"helpfulness": helpfulness, "honesty": honesty}
        ratings |= {"truthfulness": 1, "instruction_following": 1}
        annotations = {name: {"Rating": str(n)} for name, n in ratings.items()}
        return {"response": response, "annotations": annotations}

    rows = [
        {
            "instruction": f"prompt {i}",
            "completions": [completion("A", 1, 2), completion("B", 2, 1)],
        }
        for i in range(20)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    finished = command(
        "launch/prepare.py", f"--ultrafeedback={path}", f"--out={tmp_path / 'a'}"
    )
    assert finished.returncode == 0, finished.stderr
    data = dataset.load(tmp_path / "a", need_features=False)
    assert data.groups == ("helpfulness", "honesty")
    splits = collections.defaultdict(set)
    for split, table in data.users.items():
        assert table.names == ("helpfulness", "honesty")
        np.testing.assert_array_equal(table.chosen[0], table.rejected[1])
        for prompt in data.item_prompt[table.chosen[0]]:
            splits[int(prompt)].add(split)
    assert sorted(splits) == list(range(20))
    assert collections.Counter(s for (s,) in splits.values()) == {
        "train": 14,
        "valid": 2,
        "test": 4,
    }


def test_votes_of_everybody_beside_a_ready_made_table(command, tmp_path, shared_data):
    folder = shared_data / "polis"
    finished = command(
        "-m",
        "launch.prepare",
        f"--polis={folder / 'votes' / 'bowling-green.npz'}",
        f"--choices={folder / 'contested_en.jsonl.gz'}",
        "--where=conversation=bowling-green",
        f"--vectors={folder / 'statements_minilm.npy'}",
        f"--vector_ids={folder / 'statements.jsonl.gz'}",
        f"--out={tmp_path / 'a'}",
    )
    assert finished.returncode == 0, finished.stderr
    data = dataset.load(tmp_path / "a")
    counts = dataset.counts(data)
    assert [c["users_with_choices"] for c in counts.values()] == [281, 36, 89]
    assert [c["users_with_ratings"] for c in counts.values()] == [1407, 201, 402]
    assert sum(c["choices"] for c in counts.values()) == 11_223
    assert sum(c["judgements"] for c in counts.values()) == 225_040
    assert data.features.shape == (607, 384)
    assert (data.embedder, data.groups) == ("statements_minilm", ("bowling-green",))
    vectors = np.load(folder / "statements_minilm.npy")
    for i, (_, row) in enumerate(files.read_rows(folder / "statements.jsonl.gz")):
        if row["id"] in ("bowling-green/0", "bowling-green/100"):
            item = data.item_ids.index(row["id"])
            np.testing.assert_array_equal(data.features[item], vectors[i])
            assert data.texts[item] == row["text"]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("fivethirtyeight/food_choices.jsonl.gz", [456, 66, 117]),
        ("llmfao/choices.jsonl.gz", [87, 12, 25]),
    ],
)
def test_other_published_tables(command, tmp_path, shared_data, name, counts):
    finished = command(
        "launch/prepare.py",
        f"--choices={shared_data / name}",
        f"--out={tmp_path / 'a'}",
    )
    assert finished.returncode == 0, finished.stderr
    data = dataset.load(tmp_path / "a", need_features=False)
    assert [len(table.names) for table in data.users.values()] == counts
    rows = [row for _, row in files.read_rows(shared_data / name)]
    made = sum(count["choices"] for count in dataset.counts(data).values())
    assert made == len(rows)
