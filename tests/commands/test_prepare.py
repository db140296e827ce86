"""`fsa prepare` as a user runs it, from tables to datasets."""

import collections
import re

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from fsa.data import dataset, files, tables
from fsa.data.collect import collect
from fsa.data.sources import polis
from fsa.data.splits import SPLITS

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


def fails(finished, *named):
    assert (finished.code, finished.err.count("\n")) == (2, 1)
    assert finished.err.startswith("error: ")
    for name in named:
        assert name in finished.err


@pytest.fixture
def prepare(launch, tmp_path):
    """Runs the command line on a new folder `tmp_path / name`; returns the dataset."""

    def run(name, *arguments, need_features=False):
        finished = launch("prepare", f"--out={tmp_path / name}", *arguments)
        assert (finished.code, finished.err) == (0, "")
        data = dataset.load(tmp_path / name, need_features=need_features)
        return data, finished.out

    return run


def test_formats_agree_and_the_saved_tables_make_the_same_dataset(
    prepare, launch, tmp_path, assert_same
):
    choices = write(tmp_path / "a.jsonl.gz", ROWS)
    ratings = write(tmp_path / "b.csv", RATINGS)
    given = f"--choices={choices}", f"--ratings={ratings}"
    data, out = prepare("first", *given, f"--tables_out={tmp_path}")
    assert f"{choices}: 36 rows, 0 left out" in out
    assert "8 items of 1 prompt\n" in out
    assert ["choices", "12", "12", "12"] in [line.split() for line in out.splitlines()]
    choices = write(tmp_path / "a.csv", ROWS)
    ratings = write(tmp_path / "b.parquet", RATINGS)
    # The name that the flag had before.
    given = f"--choices={choices}", f"--judgements={ratings}"
    assert_same(data, prepare("second", *given)[0])
    saved = tmp_path / "choices.jsonl.gz", tmp_path / "ratings.jsonl.gz"
    given = f"--choices={saved[0]}", f"--ratings={saved[1]}"
    assert_same(data, prepare("third", *given)[0])
    assert len(data.texts) == 8
    places = f"--out={tmp_path / 'fourth'}", f"--tables_out={tmp_path}"
    fails(launch("prepare", *given, *places), str(saved[0]), "tables_out", "overwrite")
    for row in ROWS:
        assert row["user"] in data.users[row["split"]].names
    # Users without a split of their own, 9 to 11, are drawn.
    assert sum(len(table.names) for table in data.users.values()) == 12


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(command, launch, tmp_path):
    """The other tests share this process."""
    data, _ = tables.Reader().choices(ROWS)
    ids = collect(data, []).item_ids
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(len(ids), 3)))
    given = [
        f"--choices={write(tmp_path / 'a.jsonl', ROWS)}",
        f"--ratings={write(tmp_path / 'b.csv', RATINGS)}",
        f"--vectors={tmp_path / 'v.npy'}",
        f"--vector_ids={write(tmp_path / 'ids.jsonl', [{'id': i} for i in ids])}",
    ]
    made = command("-m", "fsa", "prepare", *given, f"--out={tmp_path / 'a'}")
    assert (made.returncode, made.stderr) == (0, "")
    assert launch("prepare", *given, f"--out={tmp_path / 'b'}").code == 0

    def content(folder):
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder): path.read_bytes() for path in files}

    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(content(tmp_path / "a")) > 10


def test_saved_tables_spare_what_is_read_and_the_dataset(launch, tmp_path):
    table = write(tmp_path / "choices.jsonl.gz", ROWS)
    before = table.read_bytes()
    given = f"--choices={table}", f"--out={tmp_path / 'a'}", "--overwrite"
    fails(launch("prepare", *given, f"--tables_out={tmp_path}"), str(table))
    for inside in (tmp_path / "a", tmp_path / "a" / "b"):
        fails(launch("prepare", *given, f"--tables_out={inside}"), "--tables_out")
    assert table.read_bytes() == before and not (tmp_path / "a").exists()


def test_a_converted_model_replaces_nothing(launch, tmp_path):
    (tmp_path / "notes.txt").write_text("dear")
    given = "--gguf=none.gguf", f"--out={tmp_path}"
    for more in ([], ["--overwrite"]):
        fails(launch("prepare", *given, *more), str(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "dear"


def test_an_empty_split_is_a_warning_with_a_seed_that_helps(prepare, tmp_path):
    rows = [row | {"split": ""} for row in ROWS if row["user"] < "user 6"]
    table = f"--choices={write(tmp_path / 'a.jsonl', rows)}"
    warned = 0
    for seed in range(8):
        data, out = prepare(f"{seed}", table, f"--split_seed={seed}")
        warnings = [line for line in out.splitlines() if line.startswith("warning: ")]
        empty = [split for split, users in data.users.items() if not users.names]
        assert len(warnings) == bool(empty)
        if empty:
            warned += 1
            (other,) = re.findall(r"--split_seed=\d+", warnings[0])
            data, _ = prepare(f"{seed} mended", table, other)
            assert all(users.names for users in data.users.values())
    assert warned


def test_bad_rows_are_reported_and_too_many_refused(prepare, launch, tmp_path):
    path = write(tmp_path / "a.jsonl", [*ROWS, {**ROWS[0], "user": ""}])
    arguments = f"--choices={path}", f"--out={tmp_path / 'a'}"
    fails(launch("prepare", *arguments), f"{path}, row 37", "max_bad_share")
    assert not (tmp_path / "a").exists()
    _, out = prepare("a", f"--choices={path}", "--max_bad_share=0.1")
    assert "37 rows, 1 left out\n          1 empty user (first in row 37)" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "ratings"),
        (["--choices=none.csv"], "none.csv"),
        (["--chioces=a.csv"], "did you mean --choices"),
        (["--choices=a.csv", "--where=town"], "--where=town"),
        (["--ultrafeedback=a.jsonl", "--split_by=user"], "split_by"),
        (["--samples=a.jsonl"], "attributes"),
        (["--samples=a.jsonl", "--attributes=charm"], "'charm'"),
        (
            ["--samples=a.jsonl", "--attributes=mood", "--users=dev:3"],
            "--users=dev:3",
        ),
        (["--polis=a,b", "--polis_name=town"], "polis_name"),
        (["--gguf=a.gguf", "--ratings=b.csv"], "--ratings"),
    ],
)
def test_bad_flags(launch, tmp_path, arguments, named):
    fails(launch("prepare", f"--out={tmp_path / 'a'}", *arguments), named)


def test_samples_join_the_choices_of_people(prepare, launch, tmp_path):
    """Those of training alone, and nobody has chosen between them."""
    choices = write(tmp_path / "a.jsonl", ROWS)
    samples = [
        {"prompt": f"{split}?", "answer": f"rum {i}", "split": split}
        for split in SPLITS
        for i in range(2)
    ]
    path = write(tmp_path / "samples.jsonl", samples)
    plain, _ = prepare("plain", f"--choices={choices}")
    arguments = f"--choices={choices}", f"--samples={path}"
    data, out = prepare("both", *arguments)
    assert {*data.texts} - {*plain.texts} == {"rum 0", "rum 1"}
    assert {*data.prompts} - {*plain.prompts} == {"train?"}
    assert "2 answers that nobody chose between" in " ".join(out.split())
    users = launch("prepare", *arguments, f"--out={tmp_path / 'd'}", "--users=train:3")
    fails(users, "--users")
    for split, table in data.users.items():
        texts = [data.texts[i] for i in table.chosen.flat]
        assert texts == [plain.texts[i] for i in plain.users[split].chosen.flat]
    fails(launch("prepare", f"--out={tmp_path / 'c'}", f"--samples={path}"), "attribut")


def test_a_column_of_groups_that_is_not_there(launch, prepare, tmp_path):
    without = write(tmp_path / "a.jsonl", [{**ROWS[0], "user": "new"}])
    given = write(tmp_path / "b.jsonl", [row | {"party": "green"} for row in ROWS])
    choices = f"--choices={without},{given}"
    found = launch("prepare", choices, f"--out={tmp_path / 'a'}", "--group_column=nope")
    fails(found, "--group_column=nope")
    # It is enough that one table has it.
    data, _ = prepare("b", choices, "--group_column=party")
    assert "green" in data.groups


def test_vectors_are_found_by_ids_in_the_table(launch, tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        [{"user": "a", "chosen": "tea", "rejected": "milk"}],
    )
    np.save(tmp_path / "v.npy", np.zeros((1, 2)))
    ids = write(tmp_path / "ids.jsonl", [{"id": "tea"}])
    given = f"--choices={path}", f"--out={tmp_path / 'a'}"
    vectors = f"--vectors={tmp_path / 'v.npy'}", f"--vector_ids={ids}"
    fails(launch("prepare", *given, *vectors), "chosen_id")


def test_vectors_need_their_ids(launch, tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    given = f"--choices={path}", f"--out={tmp_path / 'a'}", "--vectors=v.npy"
    fails(launch("prepare", *given), "vector_ids")


def test_ultrafeedback_is_split_by_prompt(prepare, tmp_path):
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
        for i in range(40)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    data, _ = prepare("a", f"--ultrafeedback={path}")
    assert data.groups == ("helpfulness", "honesty")
    splits = collections.defaultdict(set)
    for split, table in data.users.items():
        assert table.names == ("helpfulness", "honesty")
        np.testing.assert_array_equal(table.chosen[0], table.rejected[1])
        for prompt in data.item_prompt[table.chosen[0]]:
            splits[int(prompt)].add(split)
    assert sorted(splits) == list(range(40))
    assert {s for (s,) in splits.values()} == {"train", "valid", "test"}


@pytest.mark.parametrize(
    "name", ["nz-taxes", pytest.param("bowling-green", marks=pytest.mark.slow)]
)
def test_votes_of_everybody_beside_a_ready_made_table(prepare, shared_data, name):
    folder = shared_data / "polis"
    votes = folder / "votes" / f"{name}.npz"
    table = folder / "contested_en.jsonl.gz"
    data, _ = prepare(
        "a",
        f"--polis={votes}",
        f"--choices={table}",
        f"--where=conversation={name}",
        f"--vectors={folder / 'statements_minilm.npy'}",
        f"--vector_ids={folder / 'statements.jsonl.gz'}",
        need_features=True,
    )
    counts = dataset.counts(data)
    choices = [row for _, row in files.read_rows(table) if row["conversation"] == name]
    assert sum(c["choices"] for c in counts.values()) == len(choices) > 0
    with np.load(votes) as arrays:
        given = (arrays["votes"] != polis.UNSEEN).sum()
    assert sum(c["ratings"] for c in counts.values()) == given
    if name == "bowling-green":  # The counts in docs/data.md.
        assert [c["users_with_choices"] for c in counts.values()] == [281, 36, 89]
        assert [c["users_with_ratings"] for c in counts.values()] == [1407, 201, 402]
        assert len(data.texts) == 607
    assert (data.embedder, data.groups) == ("statements_minilm", (name,))
    vectors = np.load(folder / "statements_minilm.npy")
    for i, (_, row) in enumerate(files.read_rows(folder / "statements.jsonl.gz")):
        if row["id"] in data.item_ids[::50]:
            item = data.item_ids.index(row["id"])
            np.testing.assert_array_equal(data.features[item], vectors[i])
            assert data.texts[item] == row["text"]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        pytest.param(
            "fivethirtyeight/food_choices.jsonl.gz",
            [456, 66, 117],
            marks=pytest.mark.slow,
        ),
        ("llmfao/choices.jsonl.gz", [87, 12, 25]),
    ],
)
def test_other_published_tables(prepare, shared_data, name, counts):
    data, _ = prepare("a", f"--choices={shared_data / name}")
    assert [len(table.names) for table in data.users.values()] == counts
    rows = [row for _, row in files.read_rows(shared_data / name)]
    made = sum(count["choices"] for count in dataset.counts(data).values())
    assert made == len(rows)
