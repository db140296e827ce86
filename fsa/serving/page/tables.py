"""Tables of answers that the page takes in and gives out."""

import pathlib
import tempfile

from fsa.data import files
from fsa.data.tables import is_tie
from fsa.errors import InputError
from fsa.serving.person_model import Answer
from fsa.serving.service import Service

_ENDINGS = (".csv", ".jsonl")
# The columns of a row that tell something, see `fsa.data.columns.read_told`.
_COLUMNS = ("prompt", "chosen", "rejected", "liked", "disliked", "item", "value")


def read(content: bytes, name: str, service: Service) -> list[Answer]:
    """Returns the answers of a table, such as `fsa ask` and the page write.

    Args:
      content: of the file.
      name: of the file, whose ending says what it is.
      service: knows which answers the model can use.

    Raises:
      InputError: naming the row, if an answer cannot be used.
    """
    ending = pathlib.PurePath(name).suffix
    if ending not in _ENDINGS:
        raise InputError(f"{name}: choose a table, a .csv or a .jsonl")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"table{ending}")
        path.write_bytes(content)
        try:
            rows = [(number, of_row(row)) for number, row in files.read_rows(path)]
        except InputError as error:
            raise InputError(str(error).replace(str(path), name)) from error
    if not rows:
        raise InputError(f"{name}: has no rows; choose a table of choices")
    for number, row in rows:
        try:
            service.check(row)
        except InputError as error:
            raise InputError(f"{name}, row {number}: {error}") from error
    return [row for _, row in rows]


def write(rows: list[files.Row], ending: str) -> bytes:
    """Returns a table of rows as a file.

    Args:
      rows: the rows.
      ending: "csv" or "jsonl".
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"table.{ending}")
        if ending == "csv":
            files.write_csv(path, rows)
        else:
            files.write_jsonl(path, rows)
        return path.read_bytes()


def of_row(row: files.Row) -> Answer:
    """Returns the columns of a row that tell something, without empty ones."""
    found = {name: row[name] for name in _COLUMNS if row.get(name) not in (None, "")}
    # A .csv has texts in place of true and false.
    return found | ({"tie": True} if is_tie(row) else {})
