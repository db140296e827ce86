"""`ToldTable`: a file of what one person told, as commands read, use and keep it.

Errors of the library name arguments; here they come to name the row and the column of
the person's own file.
"""

import datetime
import decimal
from collections.abc import Sequence
from typing import Any

from fsa.data import columns, files, tables
from fsa.data.columns import read_told
from fsa.errors import InputError
from fsa.inference.feedback import NotTrained
from fsa.inference.option_lookup import BadOption


class ToldTable:
    """What one person told, from a table whose rows `fsa.data.columns` defines.

    Attributes:
      path: of the file; "" for a person who has told nothing.
      num_rows: how many rows it has.
      left_out: how many choices are between two equal options, which tell nothing.
    """

    def __init__(self, path: str | None):
        """Reads the file, if one is given.

        Raises:
          InputError: see `read_told`.
        """
        self.path = path or ""
        rows = read_told(path) if path else []
        self._rows = [
            (number, row)
            for number, row in rows
            if "chosen" not in row or row["chosen"] != row["rejected"]
        ]
        self.num_rows, self.left_out = len(rows), len(rows) - len(self._rows)

    @property
    def arguments(self) -> dict[str, list[Any]]:
        """What was told, as arguments of `Ranker.rank`."""
        told: dict[str, list[Any]] = {}
        for _, row in self._rows:
            for name, value in row.items():
                told.setdefault(name, []).append(value)
        return told

    def at_its_row(self, error: BadOption | NotTrained) -> InputError:
        """Returns an error about what was told that names its row and column."""
        told = [number for number, row in self._rows if error.argument in row]
        names = columns.columns_of_told(error.argument)
        if isinstance(error, NotTrained):
            number, name = told[0], "tie" if error.argument == "tied" else names[-1]
        else:
            number, name = told[error.number], names[error.part or 0]
        return InputError(f"{self.path}, row {number}: {name}: {error.reason}")

    def rows_to_keep(self, path: str) -> list[files.Row]:
        """Returns the rows of the file as they can be written to another one.

        Args:
          path: the file that is to hold them; its ending decides what its cells hold.

        Raises:
          InputError: naming the row and the column of a cell that cannot be written.
        """
        if not self.path:
            return []
        lists = not path.endswith(".csv")
        return [
            _row_to_keep(row, f"{self.path}, row {number}", lists)
            for number, row in files.read_rows(self.path)
        ]


def at_its_option(error: BadOption, path: str, numbers: Sequence[int]) -> InputError:
    """Returns an error about an option that names its row in a table of options.

    Args:
      error: about the argument `options`.
      path: the table.
      numbers: of the rows of the options.
    """
    return InputError(f"{path}, row {numbers[error.number]}: option: {error.reason}")


def _row_to_keep(row: files.Row, where: str, lists: bool) -> files.Row:
    for name in row:
        check_characters(name, f"{where}: the name of a column")
    return {
        name: _to_keep(cell, f"{where}: {name}", lists)
        for name, cell in row.items()
        if not tables.is_gap(cell)
    }


def _to_keep(cell: Any, where: str, lists: bool) -> Any:
    """Returns a cell that a .jsonl, or a .csv, gives back as it was."""
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat()
    if isinstance(cell, decimal.Decimal | datetime.timedelta):
        return str(cell)
    if isinstance(cell, list | dict) and not lists:
        raise InputError(f"{where}: holds a list, which no .csv does; save to a .jsonl")
    if isinstance(cell, dict):
        return _row_to_keep(cell, where, lists)
    if isinstance(cell, list):
        return [_to_keep(each, where, lists) for each in cell]
    if isinstance(cell, bytes):
        raise InputError(f"{where}: holds bytes, not a text; leave the column out")
    check_characters(cell, where)
    return cell


def check_characters(value: Any, where: str) -> None:
    """Raises InputError, naming where, for half a character, which cannot be saved."""
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half of a character; correct it") from error
