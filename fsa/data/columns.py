"""Reads single columns of tables: choices, prompts and options of a new person."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from fsa.data import files, tables
from fsa.errors import InputError, did_you_mean
from fsa.language.tokenization import Unusable, as_prompt

# The columns of what a person may tell in a row; the first one tells which it is.
_FORMS = (("chosen", "rejected"), ("liked",), ("disliked",), ("item", "value"))


def read_options(
    path: str | pathlib.Path, columns: Sequence[str]
) -> list[tuple[int, dict[str, Any]]]:
    """Reads the options in some columns of a table: texts, or lists of finite numbers.

    A text beside a prompt, in the column `prompt`, is a pair (prompt, text). A number
    is an id, as a text.

    Returns:
      (number of the row, column -> option) of each row.

    Raises:
      InputError: if the table has no rows, or a value is missing, empty or no option;
        the message names the row and the column.
    """
    found = []
    for number, row in files.read_rows(path):
        where = f"{path}, row {number}"
        prompt = _prompt_of(row, where)
        options = {column: _option(column, row, where, prompt) for column in columns}
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

    Options are as `read_options` reads them.

    Returns:
      (number of the row, column -> value) of each row, without empty columns. Of a tie
      the column is `tied`, with a pair of options; of a rating it is `rated`, with the
      option and the rating.

    Raises:
      InputError: if the table has no rows, or a row is none or several of these; the
        message names the row and the column.
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
      InputError: naming `where` the row is, and the column.
    """
    prompt = _prompt_of(row, where)
    given = [form for form in _FORMS if not _is_empty(row.get(form[0]))]
    if len(given) > 1:
        names = " and ".join(form[0] for form in given)
        raise InputError(f"{where}: {names} are both given; give one of them a row")
    form = given[0] if given else ("chosen", "rejected")
    if form == ("item", "value"):
        item = _option("item", row, where, prompt)
        require("value", row, where)
        with _naming(where, "value", "give one"):
            return {"rated": (item, tables.number_of(row, "value"))}
    told = {name: _option(name, row, where, prompt) for name in form}
    with _naming(where, "tie", "write true or false"):
        tied = len(told) == 2 and tables.is_tie(row)
    return {"tied": tuple(told.values())} if tied else told


def columns_of_told(argument: str) -> tuple[str, ...]:
    """Returns the columns that an argument of `Ranker.rank` is read from."""
    pairs = {"tied": ("chosen", "rejected"), "rated": ("item", "value")}
    return pairs.get(argument, (argument,))


def _option(column: str, row: files.Row, where: str, prompt: str) -> Any:
    """Returns an option as the ranker takes it."""
    require(column, row, where)
    if _is_empty(row[column]):
        raise InputError(f"{where}: {column} is empty; give a value")
    with _naming(where, column, "give a text, or a list of finite numbers"):
        if tables.as_features(row[column]):
            return row[column]
        text = tables.text_of(row, column)
        # Of numbers, which are ids, those that were rounded are refused.
        name = text if isinstance(row[column], str) else tables.name_of(row, column)
    return (prompt, name) if prompt else name


def _prompt_of(row: files.Row, where: str) -> str:
    """Returns the prompt of a row as a text, "" for none."""
    if tables.is_gap(row.get("prompt")):
        return ""
    prompt = prompt_of(row, where)
    if not isinstance(prompt, str):
        raise InputError(f"{where}: prompt is not a text; give one")
    with _naming(where, "prompt", "correct it"):
        return tables.text_of({"prompt": prompt}, "prompt")


@contextlib.contextmanager
def _naming(where: str, column: str, fix: str) -> Iterator[None]:
    """Turns what is wrong with a cell into an InputError that names it."""
    try:
        yield
    except tables.BadRow as reason:
        # Some reasons begin with the column.
        why = str(reason).removeprefix(f"{column} ")
        raise InputError(f"{where}: {column}: {why}; {fix}") from None


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return tables.is_gap(value) or (isinstance(value, list) and not value)


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
