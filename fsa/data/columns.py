"""Reads single columns of tables: choices, prompts and options of a new person."""

import pathlib
from collections.abc import Sequence
from typing import Any

from fsa.data import files
from fsa.errors import InputError, did_you_mean
from fsa.language.tokenization import Unusable, as_prompt


def read_options(
    path: str | pathlib.Path, columns: Sequence[str]
) -> list[tuple[int, dict[str, Any]]]:
    """Reads the options in some columns of a table, of any values.

    A text beside a prompt, in the column `prompt`, is a pair (prompt, text).

    Returns:
      (number of the row, column -> option) of each row.

    Raises:
      InputError: if the table has no rows, or a value is missing or empty; the message
        names the row.
    """
    found = []
    for number, row in files.read_rows(path):
        where = f"{path}, row {number}"
        for column in columns:
            require(column, row, where)
            if row[column] in (None, "", []):
                raise InputError(f"{where}: {column} is empty; give a value")
        prompt = prompt_of(row, where)
        if prompt and not isinstance(prompt, str):
            raise InputError(f"{where}: prompt is not a text; give one")
        options = {column: row[column] for column in columns}
        if prompt:
            options = {
                column: (prompt, option) if isinstance(option, str) else option
                for column, option in options.items()
            }
        found.append((number, options))
    if not found:
        raise _no_rows(path)
    return found


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


def require(column: str, row: files.Row, where: str) -> None:
    """Raises InputError, naming `where` the row is, if it lacks a column."""
    if column not in row:
        hint = did_you_mean(column, row)
        found = ", ".join(row)
        raise InputError(f"{where}: no column {column!r}; {hint}it has {found}")


def _texts(
    path: str | pathlib.Path, rows: list[tuple[int, files.Row]], column: str
) -> list[str]:
    texts = []
    for number, row in rows:
        where = f"{path}, row {number}"
        require(column, row, where)
        value = prompt_of(row, where) if column == "prompt" else row[column]
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: {column} is not a text; give one")
        texts.append(value)
    if not texts:
        raise _no_rows(path)
    return texts


def _no_rows(path: str | pathlib.Path) -> InputError:
    return InputError(f"{path}: no rows; give one a line")


def read_choices(path: str | pathlib.Path) -> list[tuple[str, str, str]]:
    """Reads a person's (prompt, chosen, rejected) from a table.

    Raises:
      InputError: see `read_texts`.
    """
    rows = list(files.read_rows(path))
    columns = (_texts(path, rows, name) for name in ("prompt", "chosen", "rejected"))
    return list(zip(*columns, strict=True))
