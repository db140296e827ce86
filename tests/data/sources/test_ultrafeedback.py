"""UltraFeedback: a few rows, worked out by hand."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from fsa.data.sources import ultrafeedback
from fsa.data.tables import Choice, Reader
from fsa.errors import InputError


def completion(response, *ratings):
    names = ("helpfulness", "honesty", "truthfulness", "instruction_following")
    return {
        "model": "any",
        "response": response,
        "annotations": {
            name: {"Rating": rating}
            for name, rating in zip(names, ratings, strict=True)
        },
    }


# Helpfulness prefers A to B, honesty B to A: the only pair of HH. Truthfulness rates
# those equally but prefers B to C, which the others do not: the only pair of HHT.
ROWS = [
    {
        "instruction": "Say something.",
        "models": ["any"],
        "completions": [
            completion("A", "5", "1", "3", "3"),
            completion("B", "3", "4", "3", "3"),
            completion("C", "5", "5", "1", "3"),
            completion("D", "4", "N/A", "2", "3"),
            completion("E", "1", "1", "1", None),
            {"model": "any", "response": "F", "annotations": {}},
        ],
    },
    {"instruction": "Say more.", "completions": [completion("A", "1", "5", "1", "1")]},
]


def write(path, rows):
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def choices(objective, chosen, rejected):
    return Choice(objective, "Say something.", chosen, rejected, group=objective)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_hh(tmp_path, name):
    rows, report = ultrafeedback.read(
        write(tmp_path / name, ROWS), ultrafeedback.HH, Reader()
    )
    assert rows == [choices("helpfulness", "A", "B"), choices("honesty", "B", "A")]
    assert report.rows == 2
    assert report.notes == {
        "completions left out: a rating is missing or no number": 3,
        "conflicting pairs": 1,
        "pairs left out: rated equally by an objective": 1,
        "pairs left out: all objectives agree": 1,
    }


def test_hht(tmp_path):
    rows, report = ultrafeedback.read(
        write(tmp_path / "rows.jsonl", ROWS), ultrafeedback.HHT, Reader()
    )
    assert rows == [
        choices("helpfulness", "C", "B"),
        choices("honesty", "C", "B"),
        choices("truthfulness", "B", "C"),
    ]
    assert report.notes["pairs left out: rated equally by an objective"] == 2


def test_responses_of_rows_with_the_same_prompt_are_compared(tmp_path):
    apart = [
        {
            "instruction": "Say something.",
            "completions": ROWS[0]["completions"][i : i + 1],
        }
        for i in (0, 1, 0)
    ]
    rows, report = ultrafeedback.read(
        write(tmp_path / "rows.jsonl", apart), ultrafeedback.HH, Reader()
    )
    assert rows == [choices("helpfulness", "A", "B"), choices("honesty", "B", "A")]
    assert report.notes["completions left out: same response to the same prompt"] == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "", "completions": []}, "missing or empty instruction"),
        ({"instruction": "x", "completions": None}, "completions is not a list"),
        ({"instruction": "x", "completions": ["y"]}, "a completion is not an object"),
    ],
)
def test_bad_rows(tmp_path, row, reason):
    path = write(tmp_path / "rows.jsonl", [*ROWS, row])
    _, report = ultrafeedback.read(path, ultrafeedback.HH, Reader(max_bad_share=0.5))
    assert report.bad == {reason: (1, 3)}
    with pytest.raises(InputError, match=f"row 3: {reason}"):
        ultrafeedback.read(path, ultrafeedback.HH, Reader())


@pytest.mark.parametrize("objectives", [["honesty"], ["honesty", "kindness"], []])
def test_objectives(tmp_path, objectives):
    with pytest.raises(InputError, match="objectives"):
        ultrafeedback.read(write(tmp_path / "rows.jsonl", ROWS), objectives, Reader())


def test_published_rows_parse_and_have_no_conflict(shared_data):
    path = shared_data / "ultrafeedback_sample" / "rows.jsonl"
    with pytest.raises(
        InputError,
        match=r"missing or no number: 3; .*all objectives agree: 5; .*equally.*: 1",
    ):
        ultrafeedback.read(path, ultrafeedback.HH, Reader())
