"""Which rows are read, which are left out and why."""

import csv
import decimal
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from fsa.data import tables
from fsa.data.tables import Choice, Rating, Reader
from fsa.errors import InputError
from fsa.language.tokenization import messages_of

CHOICE = {"user": "ann", "prompt": "drink?", "chosen": "tea", "rejected": "milk"}
RATING = {"user": "ann", "prompt": "drink?", "item": "tea", "value": 4}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def distinct(row, count):
    """Rows of different users, so that none repeats another."""
    return [row | {"user": f"user {i}"} for i in range(count)]


def test_choices_are_read_unchanged(tmp_path):
    row = CHOICE | {
        "split": "test",
        "group": "g",
        "chosen_id": "t/1",
        "rejected_id": 7,
        "margin": 3,
    }
    path = write(tmp_path / "a.jsonl", [row, {**CHOICE, "user": 12, "prompt": None}])
    rows, report = Reader().choices(path)
    assert rows == [
        Choice("ann", "drink?", "tea", "milk", "test", "g", "t/1", "7"),
        Choice("12", "", "tea", "milk"),
    ]
    assert (report.rows, report.bad) == (2, {})


def test_rows_in_memory_are_read_as_those_of_a_file(tmp_path):
    rows = [*distinct(CHOICE, 3), {**CHOICE, "user": ""}]
    found = Reader(max_bad_share=0.5).choices(rows)
    from_file = Reader(max_bad_share=0.5).choices(write(tmp_path / "a.jsonl", rows))
    assert found[0] == from_file[0] and len(found[0]) == 3
    assert found[1].bad == from_file[1].bad == {"empty user": (1, 4)}
    with pytest.raises(InputError, match="`choices`, row 4"):
        Reader().choices(rows)


@pytest.mark.parametrize("rows", [[], ["text"], [{"user": "ann", "chosen": "tea"}]])
def test_rows_in_memory_that_are_no_table(rows):
    with pytest.raises(InputError, match="`choices`"):
        Reader().choices(rows)


def test_options_given_as_numbers(tmp_path):
    """Lists, tuples and arrays are the same option; a text of numbers is a text."""
    rows = [
        {**CHOICE, "user": "a", "chosen": [1, 0.5], "rejected": (2, 3)},
        {**CHOICE, "user": "b", "chosen": np.array([1, 0.5]), "rejected": [2.0, 3.0]},
        {**CHOICE, "user": "c", "chosen": "[1, 0.5]", "rejected": "tea"},
    ]
    (a, b, c), _ = Reader().choices(rows)
    assert a.options() == b.options()
    found = tables.features_of(option.features for option in a.options())
    np.testing.assert_array_equal(found, [[1.0, 0.5], [2.0, 3.0]])
    assert [option.features for option in c.options()] == [b"", b""]
    (rated,), _ = Reader().ratings([{**RATING, "item": [7]}])
    assert rated.item_features == np.float32([7.0]).tobytes()
    for name, row in (("choices", a), ("ratings", rated)):
        tables.write(tmp_path / "again.jsonl", [row])
        read = getattr(Reader(), name)(tmp_path / "again.jsonl")[0]
        assert read == [row]


@pytest.mark.parametrize(
    "option",
    [[], [1, None], [[1, 2]], [float("nan")], ["a"], [1j, 2], [1e39], [10**400, 1]],
)
def test_lists_that_are_not_finite_numbers(option):
    with pytest.raises(InputError, match="row 1.*number"):
        Reader().choices([{**CHOICE, "chosen": option}])


MESSAGES = [
    {"role": "system", "content": "Be brief; “so”."},
    {"role": "user", "content": "drink?"},
]


def test_chat_messages_as_a_list_or_as_json(tmp_path):
    """Each kind of file gives the same prompt, which still has its messages."""
    rows = [{**CHOICE, "prompt": MESSAGES}]
    as_text = json.dumps(MESSAGES, ensure_ascii=False)
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with open(tmp_path / "a.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([CHOICE, {**CHOICE, "prompt": as_text}.values()])
    paths = [
        write(tmp_path / "a.jsonl", rows),
        write(tmp_path / "b.jsonl", [{**CHOICE, "prompt": as_text}]),
        tmp_path / "a.parquet",
        tmp_path / "a.csv",
    ]
    ((first,), *others) = (Reader().choices(path)[0] for path in paths)
    assert all(other == [first] for other in others)
    assert messages_of(first.prompt) == MESSAGES


def test_ratings_are_read_unchanged(tmp_path):
    (tmp_path / "a.csv").write_text("user,item,value,item_id\nann,tea,-0.5,t/1\n")
    rows, _ = Reader().ratings(tmp_path / "a.csv")
    assert rows == [Rating("ann", "", "tea", -0.5, item_id="t/1")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user": ""}, "empty user"),
        ({"user": "  "}, "empty user"),
        ({"user": None}, "empty user"),
        ({"user": ["ann"]}, "user is not a text"),
        ({"chosen": ""}, "missing or empty chosen"),
        ({"chosen": None}, "missing or empty chosen"),
        ({"rejected": " \n"}, "missing or empty rejected"),
        ({"rejected": None, "rejected_id": "t/1"}, "missing or empty rejected"),
        ({"rejected": "tea"}, "chosen equal to rejected"),
        ({"chosen_id": "t", "rejected_id": "t"}, "chosen equal to rejected"),
        ({"rejected": "cut \ud83d"}, "rejected is not valid Unicode"),
        ({"prompt": {"role": "user", "content": "drink?"}}, "prompt is not a text"),
        *(
            (
                {"prompt": p},
                "prompt: a list, but not of messages with role and content",
            )
            for p in ([], ["drink?"], [{"role": "user", "text": "drink?"}])
        ),
        (
            {"prompt": [{"role": "user", "content": "\ud83d"}]},
            "prompt is not valid Unicode",
        ),
        ({"split": "dev"}, "unknown split (train, valid and test are known)"),
    ],
)
def test_bad_choices(tmp_path, changes, reason):
    rows = distinct(CHOICE, 4)
    rows[2] |= changes
    path = write(tmp_path / "a.jsonl", rows)
    kept, report = Reader(max_bad_share=0.25).choices(path)
    assert [row.user for row in kept] == ["user 0", "user 1", "user 3"]
    assert report.bad == {reason: (1, 3)}
    with pytest.raises(InputError) as error:
        Reader().choices(path)
    assert str(error.value).startswith(f"{path}, row 3: {reason}")
    assert "max_bad_share" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"item": ""}, "missing or empty item"),
        ({"value": "often"}, "value is not a finite number"),
        ({"value": None}, "value is not a finite number"),
        ({"value": float("nan")}, "value is not a finite number"),
        ({"value": float("inf")}, "value is not a finite number"),
        ({"value": True}, "value is not a finite number"),
        ({"value": 10**400}, "value is not a finite number"),
    ],
)
def test_bad_ratings(tmp_path, changes, reason):
    rows = distinct(RATING, 4)
    rows[1] |= changes
    kept, report = Reader(max_bad_share=0.25).ratings(write(tmp_path / "a.jsonl", rows))
    assert len(kept) == 3
    assert report.bad == {reason: (1, 2)}


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (
            {"split": "test", "rejected": "rum"},
            "user has earlier rows in another split",
        ),
        ({"group": "h", "rejected": "rum"}, "user has earlier rows in another group"),
        ({"chosen": "Tea"}, "item id has another text in an earlier row"),
        ({}, "copy of an earlier row of the user"),
        (
            {"chosen": "milk", "rejected": "tea"}
            | {"chosen_id": "", "rejected_id": "t/1"},
            "contradicts an earlier row of the user",
        ),
    ],
)
def test_rows_that_contradict_or_repeat_an_earlier_one(tmp_path, second, reason):
    row = CHOICE | {"split": "train", "group": "g", "chosen_id": "t/1"}
    path = write(tmp_path / "a.jsonl", [row, row | second])
    kept, report = Reader(max_bad_share=0.5).choices(path)
    assert len(kept) == 1
    assert report.bad == {reason: (1, 2)}


def test_a_pair_decided_both_ways_keeps_the_first(tmp_path):
    reverse = CHOICE | {"chosen": "milk", "rejected": "tea"}
    path = write(tmp_path / "a.jsonl", [CHOICE, reverse])
    kept, report = Reader(max_bad_share=0.5).choices(path)
    assert [row.chosen for row in kept] == ["tea"]
    assert report.bad == {"contradicts an earlier row of the user": (1, 2)}


def test_ratings_that_repeat_are_told_from_those_that_contradict(tmp_path):
    rows = [RATING, RATING, RATING | {"value": RATING["value"] + 1}, RATING]
    kept, report = Reader(max_bad_share=1).ratings(write(tmp_path / "a.jsonl", rows))
    assert [row.value for row in kept] == [RATING["value"]]
    assert report.bad == {
        "copy of an earlier row of the user": (2, 2),
        "contradicts an earlier row of the user": (1, 3),
    }


def test_every_reason_of_a_refused_table_is_named_with_its_first_row(tmp_path):
    bad = [CHOICE | {"user": ""}, CHOICE | {"rejected": "tea"}, CHOICE | {"user": " "}]
    path = write(tmp_path / "a.jsonl", [CHOICE, *bad])
    with pytest.raises(InputError) as error:
        Reader().choices(path)
    message = str(error.value)
    assert "row 2: empty user (and 1 more)" in message
    assert "row 3: chosen equal to rejected" in message
    assert "3 of 4 rows" in message and "\n" not in message


def test_a_column_that_is_misspelt(tmp_path):
    row = {"User": "ann", **{k: v for k, v in CHOICE.items() if k != "user"}}
    with pytest.raises(InputError, match="'user'; did you mean User"):
        Reader().choices(write(tmp_path / "a.jsonl", [row]))


def test_what_is_in_one_split_only_is_the_user_or_the_prompt(tmp_path):
    rows = [
        CHOICE | {"split": "train"},
        CHOICE | {"split": "test", "prompt": "drink now?"},
        CHOICE | {"split": "valid", "user": "bob"},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    by_user, _ = Reader(max_bad_share=0.5).choices(path)
    by_prompt, _ = Reader(max_bad_share=0.5, split_by="prompt").choices(path)
    assert [(row.user, row.split) for row in by_user] == [
        ("ann", "train"),
        ("bob", "valid"),
    ]
    assert [(row.user, row.split) for row in by_prompt] == [
        ("ann", "train"),
        ("ann", "test"),
    ]


def test_a_response_may_be_empty_where_an_id_names_it(tmp_path):
    row = CHOICE | {"rejected": "", "rejected_id": "silent model"}
    (kept,), report = Reader().choices(write(tmp_path / "a.jsonl", [row]))
    assert (kept.rejected, kept.rejected_id, report.bad) == ("", "silent model", {})


def test_missing_column_names_those_that_are_there(tmp_path):
    (tmp_path / "a.csv").write_text("user,chosen,loser\nann,tea,milk\n")
    with pytest.raises(InputError, match="'rejected'.*user, chosen, loser"):
        Reader().choices(tmp_path / "a.csv")


def test_where_selects_rows_before_they_are_checked(tmp_path):
    rows = [
        CHOICE | {"place": "a", "year": 3},
        CHOICE | {"place": "b", "user": ""},
        CHOICE | {"place": "a", "user": "bob", "year": 4},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    kept, report = Reader(where={"place": "a"}).choices(path)
    assert ([row.user for row in kept], report.rows) == (["ann", "bob"], 2)
    kept, _ = Reader(where={"place": "a", "year": "4"}).choices(path)
    assert [row.user for row in kept] == ["bob"]
    with pytest.raises(InputError, match="place=c"):
        Reader(where={"place": "c"}).choices(path)
    with pytest.raises(InputError, match="'town'"):
        Reader(where={"town": "a"}).choices(path)


def frame(values):
    """Rows of Parquet, as pandas stores a column of whole numbers with a gap."""
    users = pa.array([*values, None], pa.float64())
    rest = {k: [v] * len(users) for k, v in CHOICE.items() if k != "user"}
    return pa.table({"user": users} | rest)


@pytest.mark.parametrize("number", [7, 0, -12, 2**53 - 1])
def test_a_number_is_one_name_however_a_file_writes_it(tmp_path, number):
    pa.parquet.write_table(frame([number]), tmp_path / "a.parquet")
    names = []
    for value in (number, float(number), np.int64(number), decimal.Decimal(number)):
        names.append(Reader().choices([CHOICE | {"user": value}])[0][0].user)
    for text in (f"{number}", f"{number}.0", f"{number}.00"):
        (tmp_path / "a.csv").write_text(f"user,chosen,rejected\n{text},tea,milk\n")
        names.append(Reader().choices(tmp_path / "a.csv")[0][0].user)
    (row,), report = Reader(max_bad_share=0.5).choices(tmp_path / "a.parquet")
    assert {*names, row.user} == {str(number)}
    assert report.bad == {"empty user": (1, 2)}


@pytest.mark.parametrize("name", ["007", "1.5", "7.0.0", "7.", ".0", "1e5", "v7.0", ""])
def test_names_that_are_no_whole_numbers_stay(name):
    assert tables.name_of({"user": name}, "user") == name


def test_the_names_of_items_and_groups_are_read_likewise():
    row = CHOICE | {"chosen_id": 3.0, "rejected_id": "4.0", "group": "5.0"}
    (found,), _ = Reader().choices([row])
    assert (found.chosen_id, found.rejected_id, found.group) == ("3", "4", "5")
    (found,), _ = Reader().ratings([RATING | {"item_id": np.float64(6)}])
    assert found.item_id == "6"
    # But texts are what people saw.
    (found,), _ = Reader().choices([CHOICE | {"chosen": "2.0", "rejected": "2"}])
    assert (found.chosen, found.rejected) == ("2.0", "2")


@pytest.mark.parametrize("name", [2.0**53, 1.8e18, "1.23457E+18", "1.8e+18"])
def test_a_name_that_was_rounded_is_a_bad_row(name):
    """Names of several users may have become this one."""
    _, report = Reader(max_bad_share=1).choices([CHOICE | {"user": name}])
    assert list(report.bad.values()) == [(1, 1)]
    (kept,), _ = Reader().choices([CHOICE | {"user": 2**60 + 1}])
    assert kept.user == str(2**60 + 1)


NAN = float("nan")


@pytest.mark.parametrize(
    ("asked", "selected", "others"),
    [
        ("1", [1, 1.0, "1", "1.0", np.int32(1)], [1.5, "01", 10, True, None, [1]]),
        ("1.0", [1, 1.0, "1", "1.0"], [1.5, "1.0.0", True]),
        (1, [1, 1.0, "1", "1.0"], [2, True, ""]),
        ("1.5", [1.5, "1.5"], [1, "1", 15]),
        ("01", ["01"], [1, "1"]),
        ("true", [True, "true"], [False, 1, "yes", None]),
        ("True", [True, "True"], [False, 1, None]),
        (False, [False], [True, 0, None]),
        ("", [None, "", NAN], [0, "None", False]),
        ("a", ["a"], ["A", "b", None]),
    ],
)
def test_where_compares_values_as_names(asked, selected, others):
    rows = distinct(CHOICE, len(selected) + len(others))
    for row, cell in zip(rows, [*selected, *others], strict=True):
        row["round"] = cell
    kept, _ = Reader(where={"round": asked}).choices(rows)
    assert [row.user for row in kept] == [row["user"] for row in rows[: len(selected)]]


def test_group_column(tmp_path):
    path = write(tmp_path / "a.jsonl", [CHOICE | {"place": "a"}])
    (row,), _ = Reader(group_column="place").choices(path)
    assert row.group == "a"


def test_empty_file(tmp_path):
    with pytest.raises(InputError, match="a.jsonl"):
        Reader().choices(write(tmp_path / "a.jsonl", []))


def test_tables_that_are_written_are_read_back(tmp_path):
    choices = [
        Choice("ann", "", "tea", "milk", "test"),
        Choice("bob", "drink?", "tea", "", "train", "g", "t/1", "t/2"),
    ]
    ratings = [Rating("ann", "", "tea", 0.0), Rating("ann", "", "rum", -1.5)]
    tables.write(tmp_path / "c.jsonl.gz", choices)
    tables.write(tmp_path / "j.jsonl", ratings)
    assert Reader().choices(tmp_path / "c.jsonl.gz")[0] == choices
    assert Reader().ratings(tmp_path / "j.jsonl")[0] == ratings
