"""Reads single columns of tables: choices, prompts and options of a new person."""

import pathlib
from typing import Any

from fsa.data import files
from fsa.errors import InputError
from fsa.language.tokenization import Unusable, as_prompt


def read_values(path: str | pathlib.Path, column: str) -> list[Any]:
    """Reads a column of any values.

    Raises:
      InputError: if a value is missing or empty; the message names the row.
    """
    values = []
    for number, row in files.read_rows(path):
        if row.get(column) in (None, "", []):
            found = ", ".join(row)
            raise InputError(f"{path} row {number}: no {column!r} among {found}")
        values.append(row[column])
    return values


def read_texts(path: str | pathlib.Path, column: str) -> list[str]:
    """Reads a column of texts; a prompt may be a list of chat messages.

    Raises:
      InputError: if the table has no rows, or a text is missing or empty; the message
        names the row.
    """
    return _texts(path, list(files.read_rows(path)), column)


def prompt_of(row: files.Row, where: str) -> Any:
    """Returns the prompt of a row; chat messages as JSON text.

    Raises:
      InputError: naming `where` the row is, for messages that are more than text.
    """
    try:
        return as_prompt(row.get("prompt"))
    except Unusable as reason:
        raise InputError(
            f"{where}: prompt: {reason}; give messages of role and text"
        ) from reason


def _texts(
    path: str | pathlib.Path, rows: list[tuple[int, files.Row]], column: str
) -> list[str]:
    texts = []
    for number, row in rows:
        where = f"{path} row {number}"
        value = prompt_of(row, where) if column == "prompt" else row.get(column)
        if column not in row:
            found = ", ".join(row)
            raise InputError(f"{where}: no {column!r} among {found}")
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: {column} is no text; give one")
        texts.append(value)
    if not texts:
        raise InputError(f"{path}: no rows; give one a line")
    return texts


def read_choices(path: str | pathlib.Path) -> list[tuple[str, str, str]]:
    """Reads a person's (prompt, chosen, rejected) from a table.

    Raises:
      InputError: see `read_texts`.
    """
    rows = list(files.read_rows(path))
    columns = (_texts(path, rows, name) for name in ("prompt", "chosen", "rejected"))
    return list(zip(*columns, strict=True))
