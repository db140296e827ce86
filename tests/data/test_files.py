"""Reading of rows, and the errors of damaged files."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from fsa.data import files
from fsa.errors import InputError

ROWS = [
    {"user": "ann", "text": 'two\nlines, "quoted"'},
    {"user": "bob", "text": "Übung 茶"},
]
CSV = 'user,text\nann,"two\nlines, ""quoted"""\nbob,Übung 茶\n'.encode()
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def write_parquet(path, rows):
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture(params=files.EXTENSIONS)
def path(request, tmp_path):
    """A file of ROWS in each format."""
    path = tmp_path / f"table{request.param}"
    content = CSV if ".csv" in request.param else JSONL
    if request.param == ".parquet":
        write_parquet(path, ROWS)
    else:
        gzipped = request.param.endswith(".gz")
        path.write_bytes(gzip.compress(content) if gzipped else content)
    return path


def test_formats_agree(path):
    assert [row for _, row in files.read_rows(path)] == ROWS


def test_rows_are_numbered_as_an_editor_numbers_lines(tmp_path):
    (tmp_path / "a.csv").write_bytes(CSV)
    (tmp_path / "a.jsonl").write_bytes(b"\n" + JSONL)
    write_parquet(tmp_path / "a.parquet", ROWS)
    assert [n for n, _ in files.read_rows(tmp_path / "a.csv")] == [2, 4]
    assert [n for n, _ in files.read_rows(tmp_path / "a.jsonl")] == [2, 3]
    assert [n for n, _ in files.read_rows(tmp_path / "a.parquet")] == [1, 2]


def test_a_text_may_be_long(tmp_path):
    """Longer than the limit of Python's csv module, 131,072 characters."""
    text = "long, " * 50_000
    (tmp_path / "a.csv").write_text(f'user,text\nann,"{text}"\n')
    ((_, row),) = files.read_rows(tmp_path / "a.csv")
    assert row == {"user": "ann", "text": text}


def test_byte_order_mark_of_spreadsheets_is_dropped(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + CSV)
    assert [row for _, row in files.read_rows(tmp_path / "a.csv")] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: .*.jsonl.gz"),
        ("a.jsonl", JSONL + b'{"user": \n', "a.jsonl, row 3, column "),
        ("a.jsonl", JSONL + b"[1, 2]\n", "a.jsonl, row 3: "),
        ("a.jsonl", '{"user": "ü"}'.encode("latin-1"), "a.jsonl, row 1: not UTF-8"),
        ("b.jsonl", JSONL + "ü".encode("latin-1"), "b.jsonl, row 3: not UTF-8"),
        ("c.jsonl", JSONL + b'{"a": 1,}\n', r"c.jsonl, row 3, column 9: "),
        (
            "a.jsonl.gz",
            gzip.compress(JSONL, mtime=0)[:-12],
            "a.jsonl.gz: damaged",
        ),
        ("a.csv.gz", CSV, "a.csv.gz: damaged"),
        ("a.csv", CSV + b"eve,1,2\n", "a.csv, row 5: 3 fields"),
        ("a.csv", CSV + b'eve,"open\n', "a.csv, row 5: "),
        ("a.csv", b"user,user\n", "a.csv, row 1: "),
        ("b.csv", b"user;chosen\nann;tea\n", "b.csv, row 1: .*';'"),
        # Line ends in quotes count, as in an editor.
        ("c.csv", CSV + b'eve,"a\nb\nc"\neve,1,2\n', "c.csv, row 8: 3 fields"),
        ("d.csv", CSV + b"eve,\xff\n", "d.csv, row 5: not UTF-8"),
        ("a.parquet", b"PAR1 and no more", "a.parquet: damaged"),
        # Python reads no number of more than 4,300 digits.
        ("d.jsonl", JSONL + b'{"a": %s}' % (b"1" * 5000), "d.jsonl, row 3: .*digits"),
        ("e.jsonl", JSONL + b"[" * 100_000, "e.jsonl, row 3: .*deep"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 12 else "",
)
def test_faults_of_a_file_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        list(files.read_rows(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_folder_is_said_to_be_one(tmp_path):
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(InputError, match="dir.csv: .*folder"):
        list(files.read_rows(tmp_path / "dir.csv"))


def test_spaces_around_the_names_of_columns_are_dropped(tmp_path):
    """Those in texts stay."""
    (tmp_path / "a.csv").write_text("user, chosen ,\trejected\nann, tea,milk \n")
    ((_, row),) = files.read_rows(tmp_path / "a.csv")
    assert row == {"user": "ann", "chosen": " tea", "rejected": "milk "}
    (tmp_path / "a.csv").write_text("user, user\n")
    with pytest.raises(InputError, match="a.csv, row 1"):
        list(files.read_rows(tmp_path / "a.csv"))


def test_truncated_parquet(tmp_path):
    write_parquet(tmp_path / "a.parquet", ROWS)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="a.parquet: damaged"):
        list(files.read_rows(tmp_path / "a.parquet"))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="none.csv"):
        list(files.read_rows(tmp_path / "none.csv"))
    (tmp_path / "choices.csv").write_text("user\n")
    with pytest.raises(InputError, match=r"choice.csv: .*did you mean choices.csv"):
        list(files.read_rows(tmp_path / "choice.csv"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_what_is_written_is_read_and_does_not_depend_on_the_clock(tmp_path, name):
    files.write_jsonl(tmp_path / name, ROWS)
    first = (tmp_path / name).read_bytes()
    files.write_jsonl(tmp_path / name, iter(ROWS))
    assert (tmp_path / name).read_bytes() == first
    assert [row for _, row in files.read_rows(tmp_path / name)] == ROWS
