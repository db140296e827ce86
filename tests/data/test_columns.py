"""Columns of tables: prompts are texts or messages of texts, and bad ones are named."""

import pytest

from fsa.data import files
from fsa.data.columns import read_choices, read_texts, read_told
from fsa.data.sources import prompts, sampled
from fsa.data.tables import Reader
from fsa.errors import InputError
from fsa.language.tokenization import messages_of

GOOD = [{"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": None}]
IMAGE = [{"role": "user", "content": [{"type": "image"}]}]
REST = {"chosen": "a", "rejected": "b", "answer": "c", "split": "train"}
READERS = [
    lambda path: read_texts(path, "prompt"),
    lambda path: [prompt for prompt, _, _ in read_choices(path)],
    lambda path: list(prompts.read_prompts(path, seed=0)),
    lambda path: list(sampled.read(path)[0].prompts),
]


@pytest.mark.parametrize("read", READERS)
def test_prompts_of_messages(tmp_path, read):
    path = str(tmp_path / "rows.jsonl")
    files.write_jsonl(path, [{"prompt": GOOD, **REST}])
    assert list(map(messages_of, read(path))) == [[{"role": "user", "content": "Hi"}]]
    files.write_jsonl(path, [{"prompt": GOOD, **REST}, {"prompt": IMAGE, **REST}])
    with pytest.raises(InputError, match="rows.jsonl, row 2: .*prompt") as raised:
        read(path)
    assert "\n" not in str(raised.value)


def test_rows_of_other_messages_are_bad_ones(tmp_path):
    rows = [
        {"user": f"u{i}", "prompt": prompt, "chosen": "a", "rejected": "b"}
        for i, prompt in enumerate([GOOD, IMAGE, [], "text", IMAGE])
    ]
    found, report = Reader(max_bad_share=1).choices(rows)
    assert [row.user for row in found] == ["u0", "u3"]
    assert messages_of(found[0].prompt) == [{"role": "user", "content": "Hi"}]
    assert sorted(report.bad.values()) == [(1, 3), (2, 2)]
    assert all("prompt" in reason for reason in report.bad)


def test_what_a_person_told(tmp_path):
    """A row is a choice, a tie, a like, a dislike or a rating; its gaps are ignored."""
    path = str(tmp_path / "told.csv")
    columns = ("chosen", "rejected", "tie", "liked", "disliked", "item", "value")
    rows = [
        {"chosen": "a", "rejected": "b", "tie": "false"},
        {"chosen": "a", "rejected": "b", "tie": "True", "prompt": "Which?"},
        {"liked": "c"},
        {"disliked": "d", "prompt": "Which?"},
        {"item": "e", "value": "4"},
    ]
    every = dict.fromkeys((*columns, "prompt"), "")
    files.write_csv(path, [{**every, **row} for row in rows])
    assert read_told(path) == [
        (2, {"chosen": "a", "rejected": "b"}),
        (3, {"tied": (("Which?", "a"), ("Which?", "b"))}),
        (4, {"liked": "c"}),
        (5, {"disliked": ("Which?", "d")}),
        (6, {"rated": ("e", 4.0)}),
    ]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"chosen": "a"}, "rejected"),
        ({"chosen": "a", "rejected": ""}, "rejected"),
        ({"user": "ann"}, "chosen"),
        ({"liked": "a", "disliked": "b"}, "liked"),
        ({"item": "a"}, "value"),
        ({"item": "a", "value": "much"}, "value"),
        ({"chosen": "a", "rejected": "b", "tie": "perhaps"}, "tie"),
    ],
)
def test_rows_that_tell_nothing_or_too_much(tmp_path, row, column):
    path = str(tmp_path / "told.jsonl")
    files.write_jsonl(path, [{"liked": "a"}, row])
    with pytest.raises(InputError, match=f"told.jsonl, row 2: .*{column}") as raised:
        read_told(path)
    assert "\n" not in str(raised.value)


def test_ties_are_no_choices_of_a_dataset():
    """They are counted; whatever is neither true nor false is a bad row."""
    rows = [
        {"user": f"u{i}", "chosen": "a", "rejected": "b", "tie": tie}
        for i, tie in enumerate([True, False, None, "1", "maybe"])
    ]
    found, report = Reader(max_bad_share=1).choices(rows)
    assert [row.user for row in found] == ["u1", "u2"]
    assert list(report.notes.values()) == [2]
    assert sorted(report.bad.values()) == [(1, 5)]
