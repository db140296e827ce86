"""Tables that are none, and tables whose cells or rows cannot be used."""

import gzip
import io
import json
import math
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from benchmarks import refusal_base as base
from benchmarks.malformed.case import (
    SIMULATED,
    Case,
    both,
    flipped,
    half,
    line,
    put,
    read,
    write_config,
)

Rows = list[dict[str, Any]]
# Writes a spoilt table beside a stem, and returns its name.
TableFault = Callable[[pathlib.Path, str, Rows], str]


def _as_jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _as_csv(rows: Rows) -> str:
    head = list(rows[0])
    body = [",".join(f'"{row[name]}"' for name in head) for row in rows]
    return "\n".join([",".join(head), *body, ""])


def _as_parquet(rows: Rows) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def _directory(folder, stem, rows):
    (folder / f"{stem}.jsonl").mkdir()
    return f"{stem}.jsonl"


def _without_a_column(folder, stem, rows):
    return put(folder, f"{stem}.jsonl", _as_jsonl([{"nothing": 1} for _ in rows]))


TABLE_FAULTS: dict[str, TableFault] = {
    "missing": lambda f, s, r: f"{s}.jsonl",
    "missing csv": lambda f, s, r: f"{s}.csv",
    "missing parquet": lambda f, s, r: f"{s}.parquet",
    "empty": lambda f, s, r: put(f, f"{s}.jsonl", b""),
    "blank lines": lambda f, s, r: put(f, f"{s}.jsonl", b"\n \n\n"),
    "empty csv": lambda f, s, r: put(f, f"{s}.csv", b""),
    "header alone": lambda f, s, r: put(f, f"{s}.csv", ",".join(r[0]) + "\n"),
    "empty parquet": lambda f, s, r: put(f, f"{s}.parquet", b""),
    "parquet of no rows": lambda f, s, r: put(
        f, f"{s}.parquet", _parquet_of_no_rows(r)
    ),
    "empty gz": lambda f, s, r: put(f, f"{s}.jsonl.gz", b""),
    "directory": _directory,
    "unknown extension": lambda f, s, r: put(f, f"{s}.txt", _as_jsonl(r)),
    "no extension": lambda f, s, r: put(f, s, _as_jsonl(r)),
    "binary": lambda f, s, r: put(f, f"{s}.jsonl", bytes(range(256)) * 8),
    "NUL bytes in csv": lambda f, s, r: put(f, f"{s}.csv", b"a,b\n\0,\0\n"),
    "UTF-16": lambda f, s, r: put(
        f, f"{s}.jsonl", _as_jsonl(r).decode().encode("utf-16")
    ),
    "Latin-1": lambda f, s, r: put(
        f, f"{s}.jsonl", '{"user": "J\xf6rg"}\n'.encode("latin-1") + _as_jsonl(r)
    ),
    "cut in a line": lambda f, s, r: put(f, f"{s}.jsonl", _as_jsonl(r)[:-9]),
    "one array": lambda f, s, r: put(f, f"{s}.jsonl", json.dumps(r)),
    "numbers in place of rows": lambda f, s, r: put(f, f"{s}.jsonl", "1\n2\n3\n"),
    "deep JSON": lambda f, s, r: put(f, f"{s}.jsonl", "[" * 200_000),
    "no such column": _without_a_column,
    "csv with a ragged row": lambda f, s, r: put(
        f, f"{s}.csv", _as_csv(r) + "a,b,c,d,e,f,g,h,i\n"
    ),
    "csv with a column twice": lambda f, s, r: put(
        f, f"{s}.csv", "prompt,prompt\n1,2\n"
    ),
    "csv with an open quote": lambda f, s, r: put(f, f"{s}.csv", _as_csv(r) + '"'),
    "cut gz": lambda f, s, r: put(
        f, f"{s}.jsonl.gz", half(gzip.compress(_as_jsonl(r)))
    ),
    "damaged gz": lambda f, s, r: put(
        f, f"{s}.jsonl.gz", flipped(gzip.compress(_as_jsonl(r)))
    ),
    "plain text called gz": lambda f, s, r: put(f, f"{s}.jsonl.gz", _as_jsonl(r)),
    "jsonl called parquet": lambda f, s, r: put(f, f"{s}.parquet", _as_jsonl(r)),
    "cut parquet": lambda f, s, r: put(f, f"{s}.parquet", half(_as_parquet(r))),
    "parquet with a damaged page": lambda f, s, r: put(
        f, f"{s}.parquet", _damaged_page(r)
    ),
    "parquet called csv": lambda f, s, r: put(f, f"{s}.csv", _as_parquet(r)),
}


def _parquet_of_no_rows(rows: Rows) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows).slice(0, 0), file)
    return file.getvalue()


def _damaged_page(rows: Rows) -> bytes:
    content = bytearray(_as_parquet(rows))
    content[4:60] = bytes(56)
    return bytes(content)


_NO_VECTORS = {"vectors": None, "vector_ids": None}
# (command, flag that names a table) -> (its sound rows, what else is given)
TABLE_FLAGS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("prepare", "choices"): ("choices", {"ratings": None}),
    ("prepare", "ratings"): ("ratings", {}),
    ("prepare", "vector_ids"): ("ids", {}),
    ("prepare", "samples"): ("samples", SIMULATED | _NO_VECTORS | {"ratings": None}),
    ("prepare", "ultrafeedback"): ("prompts", _NO_VECTORS | {"ratings": None}),
    ("predict", "context"): ("context", {}),
    ("predict", "options"): ("options", {}),
    ("sample", "prompts"): ("asked", {}),
    ("steer", "context"): ("person", {}),
    ("steer", "prompts"): ("prompts", {}),
    ("steer", "interpolate"): ("person", {"context": None}),
}


def tables(sound: pathlib.Path) -> Iterator[Case]:
    """Yields files that hold no table, for every flag that takes one."""
    for (command, flag), (stem, others) in TABLE_FLAGS.items():
        rows = read(sound, stem)
        for what, fault in TABLE_FAULTS.items():
            # The name that the fault gives its file is the same wherever it is.
            name = _name_of_file(fault, rows)
            value = f"person.jsonl,{name}" if flag == "interpolate" else name
            yield Case(
                f"{command} --{flag}: {what}",
                line(command, **others | {flag: value}),
                lambda folder, fault=fault, rows=rows: fault(folder, "spoilt", rows),
            )


def _name_of_file(fault: TableFault, rows: Rows) -> str:
    with tempfile.TemporaryDirectory() as name:
        return fault(pathlib.Path(name), "spoilt", rows)


_NO_TEXT = (None, "", "  ", {"a": 1}, [], ["a"], True, math.nan)
_NO_NAME = (None, "", " ", {"a": 1}, [1], False, 2.0**60, "1.23457E+18")
_NO_MESSAGES = (
    [{"role": "user"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": [{"type": "image", "url": "a.png"}]}],
    [{"role": "user", "content": {"text": "a"}}],
    ["text"],
    [],
    {"text": "a"},
)
_NO_FEATURES = (
    [1.0, "a"],
    [[1.0], [2.0, 3.0]],
    [math.nan, 1.0, 2.0],
    [math.inf, 1.0, 2.0],
    [[1.0, 2.0, 3.0]],
    [10**400, 1, 2],
    {"x": 1.0},
)
# (command, flag, column) -> values that no cell of it may have
CELLS: dict[tuple[str, str, str], Sequence[Any]] = {
    ("prepare", "choices", "user"): _NO_NAME,
    ("prepare", "choices", "chosen"): _NO_TEXT + _NO_FEATURES,
    ("prepare", "choices", "rejected"): _NO_TEXT + _NO_FEATURES,
    ("prepare", "choices", "prompt"): (*_NO_MESSAGES, True),
    ("prepare", "choices", "split"): ("dev", {"a": 1}, [1]),
    ("prepare", "ratings", "user"): _NO_NAME,
    # A rated item may be empty, as it has an id.
    ("prepare", "ratings", "item"): _NO_TEXT[3:],
    ("prepare", "ratings", "item_id"): ({"a": 1}, [1], True, 2.0**60),
    ("prepare", "ratings", "value"): (
        *(None, "", "much", True, math.nan, math.inf, 10**400, [1], {"a": 1}),
    ),
    ("prepare", "vector_ids", "id"): ({"a": 1}, [1], None, "", "item-0"),
    ("predict", "options", "option"): (
        *(None, "", " ", [], {"a": 1}, True, math.nan, [1.0, 2.0], *_NO_FEATURES),
    ),
    ("predict", "context", "chosen"): (
        *(None, "", {"a": 1}, True, [1.0], "nobody knows", *_NO_FEATURES),
    ),
    ("predict", "context", "rejected"): (None, "", {"a": 1}, [1.0], "nobody knows"),
    ("sample", "prompts", "prompt"): (None, "", " ", 5, True, "hello", *_NO_MESSAGES),
    ("sample", "prompts", "split"): ("dev", 5, [1]),
    ("steer", "prompts", "prompt"): (
        *(None, "", " ", 5, "hello", "review " * 30, *_NO_MESSAGES),
    ),
    ("steer", "context", "chosen"): (None, "", " ", 5, {"a": 1}, [1.0], "hello"),
    ("steer", "context", "rejected"): (None, "", ["a"], "hello"),
    ("steer", "context", "prompt"): (None, "hello", "review " * 30, *_NO_MESSAGES),
}


def cells(sound: pathlib.Path) -> Iterator[Case]:
    """Yields tables with a value that its column may not hold, in every row."""
    for (command, flag, column), values in CELLS.items():
        stem, others = TABLE_FLAGS[command, flag]
        rows = read(sound, stem)
        for value in values:
            spoilt = [{**row, column: value} for row in rows]
            yield Case(
                f"{command} --{flag}: {column} = {repr(value)[:40]}",
                line(command, **others | {flag: "spoilt.jsonl"}),
                lambda folder, rows=spoilt: base.write_table(
                    folder / "spoilt.jsonl", rows
                ),
            )


def whole_tables(sound: pathlib.Path) -> Iterator[Case]:
    """Yields tables whose rows are sound one by one, but not together."""
    choices, ratings = read(sound, "choices"), read(sound, "ratings")
    ids, asked, samples = (read(sound, n) for n in ("ids", "asked", "samples"))
    spoilt = {
        "every row twice": ("choices", choices * 2),
        "a user in two splits": (
            "choices",
            [{**row, "user": "ann"} for row in choices],
        ),
        "a user in two groups": (
            "ratings",
            [{**row, "user": row["split"]} for row in ratings],
        ),
        "an id of two texts": ("ratings", [{**r, "item_id": "a"} for r in ratings]),
        "chosen equal to rejected": (
            "choices",
            [{**row, "rejected": row["chosen"]} for row in choices],
        ),
        "ids without features": ("vector_ids", ids[1:]),
        "an id twice": ("vector_ids", ids[:-1] + ids[:1]),
        "more ids than vectors": ("vector_ids", [*ids, {"id": "more"}]),
    }
    for what, (flag, rows) in spoilt.items():
        others = {"ratings": None} if flag == "choices" else {}
        yield Case(
            f"prepare --{flag}: {what}",
            line("prepare", **others | {flag: "spoilt.jsonl"}),
            lambda folder, rows=rows: base.write_table(folder / "spoilt.jsonl", rows),
        )
    yield Case(
        "prepare: tables that disagree about splits",
        line("prepare", choices="spoilt.jsonl"),
        lambda folder: base.write_table(
            folder / "spoilt.jsonl",
            [
                {**r, "split": "test" if r["split"] == "train" else "train"}
                for r in choices
            ],
        ),
    )
    yield Case(
        "sample --prompts: a prompt twice",
        line("sample", prompts="spoilt.jsonl"),
        lambda folder: base.write_table(folder / "spoilt.jsonl", asked * 2),
    )
    yield Case(
        "prepare --samples: one answer to each prompt",
        line("prepare", SIMULATED | {"samples": "spoilt.jsonl"}),
        lambda folder: base.write_table(folder / "spoilt.jsonl", samples[::6]),
    )
    yield from _few_people(choices)


def _few_people(choices: Rows) -> Iterator[Case]:
    """Yields training on datasets that leave a split empty."""
    few = {
        "one user": choices[:12],
        "no valid user": [r for r in choices if r["split"] != "valid"],
        "no train user": [r for r in choices if r["split"] != "train"],
    }
    prepare = {
        "choices": "few.jsonl",
        "vectors": "vectors.npy",
        "vector_ids": "ids.jsonl",
        "out": "data/few",
    }
    change = '    config.task.path = "data/few"\n    config.task.train_on = "choices"'
    for what, rows in few.items():
        with_ids = [
            {**r, "chosen_id": r["chosen"], "rejected_id": r["rejected"]} for r in rows
        ]
        yield Case(
            f"train on a dataset with {what}",
            line("train", config="spoilt.py"),
            both(
                lambda folder, rows=with_ids: base.write_table(
                    folder / "few.jsonl", rows
                ),
                lambda folder: write_config(folder, "mine.py", change),
            ),
            before=(line("prepare", prepare),),
        )
