"""Reads single columns of tables: choices, prompts and options of a new person."""

import pathlib
from collections.abc import Sequence
from typing import Any

from fsa.data import files, tables
from fsa.errors import InputError, did_you_mean
from fsa.language.tokenization import Unusable, as_prompt

# The columns of what a person may tell in a row; the first one tells which it is.
_FORMS = (("chosen", "rejected"), ("liked",), ("disliked",), ("item", "value"))


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


def read_told(path: str | pathlib.Path) -> list[tuple[int, dict[str, Any]]]:
    """Reads what a person told from a table, in which each row is one of these:

    * a choice: columns `chosen` and `rejected`;
    * a tie: the same, and true in the column `tie`;
    * a like or a dislike: column `liked` or `disliked`;
    * a rating: columns `item` and `value`, as in a table of ratings.

    A text beside a prompt, in the column `prompt`, is a pair (prompt, text).

    Returns:
      (number of the row, column -> value) of each row, without empty columns. Of a tie
      the column is `tied`, with a pair of options; of a rating it is `rated`, with the
      option and the rating.

    Raises:
      InputError: if the table has no rows, or a row is none or several of these; the
        message names the row.
    """
    found = []
    for number, row in files.read_rows(path):
        found.append((number, told_of(row, f"{path}, row {number}")))
    if not found:
        raise _no_rows(path)
    return found


def told_of(row: files.Row, where: str) -> dict[str, Any]:
    """Returns what one row of such a table tells, see `read_told`.

    Raises:
      InputError: naming `where` the row is.
    """
    prompt = prompt_of(row, where)
    if prompt and not isinstance(prompt, str):
        raise InputError(f"{where}: prompt is not a text; give one")
    try:
        return _told(row, where, prompt)
    except tables.BadRow as reason:
        raise InputError(f"{where}: {reason}") from None


def _told(row: files.Row, where: str, prompt: str) -> dict[str, Any]:
    given = [form for form in _FORMS if not _is_empty(row.get(form[0]))]
    if len(given) > 1:
        names = " and ".join(form[0] for form in given)
        raise InputError(f"{where}: {names} are both given; give one of them a row")
    form = given[0] if given else ("chosen", "rejected")
    for name in form:
        require(name, row, where)
        if _is_empty(row[name]):
            raise InputError(f"{where}: {name} is empty; give a value")

    def option(name: str) -> Any:
        value = row[name]
        return (prompt, value) if prompt and isinstance(value, str) else value

    if form == ("item", "value"):
        return {"rated": (option("item"), tables.number_of(row, "value"))}
    told = {name: option(name) for name in form}
    if len(told) == 2 and tables.is_tie(row):
        return {"tied": tuple(told.values())}
    return told


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list) and not value)


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


def read_people(path: str | pathlib.Path) -> dict[str, list[tuple[str, str, str]]]:
    """Reads the (prompt, chosen, rejected) of several people from a table.

    Returns:
      Choices by the value of the column `user`, in the order of the table.

    Raises:
      InputError: see `read_texts`.
    """
    rows = list(files.read_rows(path))
    people = {}
    for (number, row), choice in zip(rows, read_choices(path), strict=True):
        where = f"{path}, row {number}"
        require("user", row, where)
        try:
            name = tables.name_of(row, "user")
        except tables.BadRow as error:
            raise InputError(f"{where}: {error}") from error
        if not name:
            raise InputError(f"{where}: user is empty; name the person")
        people.setdefault(name, []).append(choice)
    return people


def read_choices(path: str | pathlib.Path) -> list[tuple[str, str, str]]:
    """Reads a person's (prompt, chosen, rejected) from a table.

    Raises:
      InputError: see `read_texts`.
    """
    rows = list(files.read_rows(path))
    columns = (_texts(path, rows, name) for name in ("prompt", "chosen", "rejected"))
    return list(zip(*columns, strict=True))
