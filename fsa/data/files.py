"""Reads .jsonl, .csv (both also .gz) and .parquet files as dictionaries.

An unreadable file raises an `InputError` that names the file and the row. Which columns
a row must have is checked elsewhere (`fsa.data.tables`).
"""

import contextlib
import csv
import gzip
import io
import json
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TextIO

import pyarrow as pa
import pyarrow.parquet

from fsa.errors import InputError, did_you_mean
from fsa.folders import whole_file

EXTENSIONS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")

# A text may be longer than Python's limit of 131,072 characters in a CSV field.
csv.field_size_limit(2**31 - 1)

# What some spreadsheets write in place of commas.
_SEPARATORS = re.compile(r"[;\t|]")

Row = dict[str, Any]


def read_rows(path: str | pathlib.Path) -> Iterator[tuple[int, Row]]:
    """Yields (number, row), where the number of a row is its line in a text file.

    Lines count from 1, which in a CSV file is the header; in a Parquet file the first
    row is 1.

    Raises:
      InputError: if the file is missing, damaged, cut off, not UTF-8 or of an unknown
        extension, a line is not a JSON object, or a CSV row has another number of
        fields than the header.
    """
    path = pathlib.Path(path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if not path.name.endswith(EXTENSIONS):
        raise InputError(
            f"{path}: unknown extension; use one of {', '.join(EXTENSIONS)}"
        )
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if not path.is_file():
        hint = did_you_mean(path.name, _names_beside(path))
        raise InputError(f"{path}: no such file; {hint or 'check the path'}".strip())
    return {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[kind](path)


def write_jsonl(path: str | pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a .jsonl or .jsonl.gz file; the same rows give the same bytes.

    Raises:
      InputError: if it cannot be written; a file that was there before is kept.
    """
    with contextlib.ExitStack() as stack:
        file: BinaryIO = stack.enter_context(whole_file(path))
        if str(path).endswith(".gz"):
            file = stack.enter_context(
                gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)
            )
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def write_csv(path: str | pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a .csv file with all columns that rows have; what one lacks is empty.

    Raises:
      InputError: if it cannot be written; a file that was there before is kept.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(path) as file:
        file.write(text.getvalue().encode())


@contextlib.contextmanager
def _open_text(path: pathlib.Path) -> Iterator[TextIO]:
    """Opens a plain or gzipped text file; damage raises an InputError."""
    # Files of spreadsheets begin with a byte order mark, which utf-8-sig removes.
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        with opener(path, "rb") as file:
            row = next(n for n, line in enumerate(file, 1) if not _is_utf8(line))
        raise InputError(
            f"{path}, row {row}: not UTF-8 ({error.reason}); convert the file"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged or cut off; fetch it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _names_beside(path: pathlib.Path) -> list[str]:
    try:
        return [file.name for file in path.parent.iterdir() if file.is_file()]
    except OSError:
        return []


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _jsonl(path: pathlib.Path) -> Iterator[tuple[int, Row]]:
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                # Its text counts lines, too, but within this one.
                raise InputError(
                    f"{path}, row {number}, column {error.colno}: invalid JSON "
                    f"({error.msg}); write one object a line"
                ) from error
            except (ValueError, RecursionError) as error:
                deep = isinstance(error, RecursionError)
                why = "is nested too deeply" if deep else "a number has too many digits"
                raise InputError(
                    f"{path}, row {number}: {why}; correct the row"
                ) from error
            if not isinstance(row, dict):
                raise InputError(
                    f"{path}, row {number}: not a JSON object; write one object a line"
                )
            yield number, row


def _csv(path: pathlib.Path) -> Iterator[tuple[int, Row]]:
    with _open_text(path) as file:
        reader = csv.reader(file, strict=True)
        number = 1
        try:
            # Whoever writes "user, chosen" means no name that begins with a space.
            header = [name.strip() for name in next(reader, [])]
            if len(set(header)) < len(header):
                raise InputError(f"{path}, row 1: a column occurs twice; rename one")
            if len(header) == 1 and (found := _SEPARATORS.search(header[0])):
                raise InputError(
                    f"{path}, row 1: columns are separated by {found[0]!r}; use commas"
                )
            number = reader.line_num + 1
            for fields in reader:
                if fields and len(fields) != len(header):
                    raise InputError(
                        f"{path}, row {number}: {len(fields)} fields where the header "
                        f"has {len(header)}; quote texts that hold commas or line ends"
                    )
                if fields:
                    yield number, dict(zip(header, fields, strict=True))
                number = reader.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"{path}, row {number}: not valid CSV ({error}); correct the row or "
                "use .jsonl"
            ) from error


def _parquet(path: pathlib.Path) -> Iterator[tuple[int, Row]]:
    number = 0
    try:
        with pa.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"{path}: damaged or cut off Parquet file; write or fetch it again"
        ) from error
