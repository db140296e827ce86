"""Columns of tables: prompts are texts or messages of texts, and bad ones are named."""

import pytest

from fsa.data import files
from fsa.data.columns import read_choices, read_texts
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
