"""The two open formats of people's preferences, read and checked row by row.

* *choices*: a user preferred one text to another.
* *ratings*: a user gave a number to an item; larger is better.

`docs/data.md` defines the columns. A table is a file, or a list of dicts. Invalid rows
are left out, counted by reason and reported; a table with too many of them is refused.
"""

import dataclasses
import decimal
import functools
import json
import math
import numbers
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fsa.data import files
from fsa.data.splits import SPLITS
from fsa.errors import InputError, did_you_mean
from fsa.language.tokenization import Unusable, as_prompt

# A table: its path, or its rows.
Table = str | pathlib.Path | Sequence[Mapping[str, Any]]

_NUMBERS = (numbers.Real, decimal.Decimal)
# A whole number as a column of floats has it, and one that a spreadsheet has rounded.
_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")
_ROUNDED = re.compile(r"-?[0-9]\.[0-9]+[eE]\+[0-9]+")
# What the column `tie` may hold, as text.
_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0", "")
# Floats hold all whole numbers below, and only some above.
_EXACT = 2**53


class Option(NamedTuple):
    """An option of a row.

    Attributes:
      id: id of the item, "" if not given.
      text: its text; for an option that is given as numbers, their JSON.
      features: the bytes of those numbers as float32; empty for a text.
    """

    id: str
    text: str
    features: bytes = b""


class Choice(NamedTuple):
    """A row of a choice table; an optional column that is not given is ""."""

    user: str
    prompt: str
    chosen: str
    rejected: str
    split: str = ""
    group: str = ""
    chosen_id: str = ""
    rejected_id: str = ""
    chosen_features: bytes = b""
    rejected_features: bytes = b""

    def options(self) -> tuple[Option, ...]:
        """Returns the chosen and the rejected option."""
        return (
            Option(self.chosen_id, self.chosen, self.chosen_features),
            Option(self.rejected_id, self.rejected, self.rejected_features),
        )


class Rating(NamedTuple):
    """A row of a rating table; an optional column that is not given is ""."""

    user: str
    prompt: str
    item: str
    value: float
    split: str = ""
    group: str = ""
    item_id: str = ""
    item_features: bytes = b""

    def options(self) -> tuple[Option, ...]:
        """Returns the rated option."""
        return (Option(self.item_id, self.item, self.item_features),)


@dataclasses.dataclass
class Report:
    """Counts of the rows of a file that were read and left out.

    Attributes:
      path: the file.
      rows: number of rows that were considered, including the bad ones.
      bad: reason -> (how many rows, number of the first).
      notes: further counts, by description.
      columns: those of the first row.
      has_groups: whether a row names a group.
    """

    path: str
    rows: int = 0
    bad: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    notes: dict[str, int] = dataclasses.field(default_factory=dict)
    columns: tuple[str, ...] = ()
    has_groups: bool = False

    def leave_out(self, reason: str, number: int) -> None:
        """Counts row `number` as bad."""
        count, first = self.bad.get(reason, (0, number))
        self.bad[reason] = count + 1, min(first, number)

    def note(self, what: str) -> None:
        """Adds one to a further count."""
        self.notes[what] = self.notes.get(what, 0) + 1

    def check(self, max_bad_share: float) -> None:
        """Raises an InputError if more than this share of the rows is bad."""
        bad = sum(count for count, _ in self.bad.values())
        if bad <= max_bad_share * self.rows:
            return
        found = sorted(self.bad.items(), key=lambda entry: entry[1][1])
        reasons = "; ".join(
            f"row {first}: {reason}" + (f" (and {count - 1} more)" if count > 1 else "")
            for reason, (count, first) in found
        )
        raise InputError(
            f"{self.path}, {reasons}; {bad} of {self.rows} rows are bad, more than a "
            f"share of {max_bad_share:g}: correct them or raise `max_bad_share`"
        )


class BadRow(ValueError):
    """An invalid row; the message is the reason, without the row's content."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads choice tables and rating tables.

    Attributes:
      where: column -> value; other rows are ignored. Values are compared as names are,
        so that 1 selects 1.0; true and false in any case; "" selects gaps.
      split_by: "user" or "prompt", which must not be in two splits.
      group_column: the column that names a user's group.
      max_bad_share: more than this share of bad rows in a file is an error.
    """

    where: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split_by: str = "user"
    group_column: str = "group"
    max_bad_share: float = 0.01

    def choices(self, table: Table) -> tuple[list[Choice], Report]:
        """Reads a choice table; raises InputError if it cannot be used."""
        return self._read(table, "choices")

    def ratings(self, table: Table) -> tuple[list[Rating], Report]:
        """Reads a rating table; raises InputError if it cannot be used."""
        return self._read(table, "ratings")

    def rows(
        self, table: Table, required: Sequence[str], report: Report
    ) -> Iterator[tuple[int, files.Row]]:
        """Yields the (number, row) that `where` selects, counting them in `report`."""
        path = report.path
        for number, row in _numbered(table, path):
            if not report.columns:
                _require_columns(path, row, (*required, *self.where))
                report.columns = tuple(row)
            if all(_equal(row.get(key), value) for key, value in self.where.items()):
                report.rows += 1
                yield number, row
        if report.rows == 0:
            asked = "".join(f" with {k}={v}" for k, v in self.where.items())
            fix = "check the values of `where`" if asked else "give one a decision"
            raise InputError(f"{path}: no rows{asked}; {fix}")

    def stream(
        self, table: Table, what: str, report: Report
    ) -> Iterator[tuple[int, Choice | Rating]]:
        """Yields the (number, row) of a table that are not bad in themselves.

        Whether a user contradicts or repeats an earlier row is left to `Decisions`.

        Args:
          table: the table.
          what: "choices" or "ratings".
          report: where rows are counted.
        """
        is_choices = what == "choices"
        required = ("chosen", "rejected") if is_choices else ("item", "value")
        parse = self._choice if is_choices else self._rating
        items = _Items(self.split_by)
        for number, row in self.rows(table, ("user", *required), report):
            try:
                if is_choices and is_tie(row):
                    report.note("ties, which no training uses")
                    continue
                parsed = parse(row)
                items.check(parsed)
            except BadRow as reason:
                report.leave_out(str(reason), number)
            else:
                report.has_groups = report.has_groups or bool(parsed.group)
                yield number, parsed
        _as_json.cache_clear()

    def _read(self, table: Table, what: str) -> tuple[list[Any], Report]:
        report = Report(str(table) if is_path(table) else f"`{what}`")
        decisions, kept = Decisions(self.split_by), []
        # Each text, name and vector is held once, however many rows have it.
        known: dict[str | bytes, str | bytes] = {}
        for number, row in self.stream(table, what, report):
            try:
                decisions.check(row)
            except BadRow as reason:
                report.leave_out(str(reason), number)
            else:
                once = (
                    known.setdefault(value, value)
                    if isinstance(value, str | bytes)
                    else value
                    for value in row
                )
                kept.append(type(row)._make(once))
        report.check(self.max_bad_share)
        return kept, report

    def _choice(self, row: files.Row) -> Choice:
        chosen = _option(row, "chosen", "chosen_id")
        rejected = _option(row, "rejected", "rejected_id")
        if chosen.text == rejected.text or (chosen.id and chosen.id == rejected.id):
            raise BadRow("chosen equal to rejected")
        user, prompt, split, group = self._whose(row)
        return Choice(
            user,
            prompt,
            chosen.text,
            rejected.text,
            split,
            group,
            chosen.id,
            rejected.id,
            chosen.features,
            rejected.features,
        )

    def _rating(self, row: files.Row) -> Rating:
        item = _option(row, "item", "item_id")
        user, prompt, split, group = self._whose(row)
        value = number_of(row, "value")
        return Rating(
            user, prompt, item.text, value, split, group, item.id, item.features
        )

    def _whose(self, row: files.Row) -> tuple[str, str, str, str]:
        user, prompt, split = name_of(row, "user"), _prompt(row), text_of(row, "split")
        if not user.strip():
            raise BadRow("empty user")
        if split and split not in SPLITS:
            raise BadRow("unknown split (train, valid and test are known)")
        return user, prompt, split, name_of(row, self.group_column)


def write(path: str | pathlib.Path, rows: Iterable[Choice | Rating]) -> None:
    """Writes rows as .jsonl or .jsonl.gz, without empty optional columns."""
    files.write_jsonl(path, map(columns_of, rows))


def columns_of(row: Choice | Rating) -> dict[str, Any]:
    """Returns a row as `Reader` reads it; options that were numbers are numbers."""
    optional = ("split", "group", "chosen_id", "rejected_id", "item_id")
    columns = {k: v for k, v in row._asdict().items() if v or k not in optional}
    for column in ("chosen", "rejected", "item"):
        if columns.pop(f"{column}_features", b""):
            columns[column] = json.loads(columns[column])
    return columns


def is_path(table: Table) -> bool:
    """Returns whether a table is a file, not a list of rows."""
    return isinstance(table, str | pathlib.Path)


def as_features(value: Any) -> bytes:
    """Returns the features of an option that is given as numbers; empty for others.

    Equal numbers give equal bytes, whatever their type: they are rounded to float32,
    and -0.0 becomes 0.0.

    Raises:
      BadRow: if the value is a list or an array, but not of finite numbers.
    """
    is_array = hasattr(value, "__array__") and getattr(value, "ndim", 0)
    if not is_array and not isinstance(value, list | tuple):
        return b""
    array = as_numbers(value)
    if array is not None and array.ndim == 1 and array.size:
        with np.errstate(over="ignore"):
            array = array.astype("<f4")
        if np.isfinite(array).all():
            return (array + np.float32(0)).tobytes()
    raise BadRow("an option is a list, but not of finite numbers")


def as_numbers(value: Any) -> np.ndarray | None:
    """Returns real numbers as an array; None for texts, truth values and all others."""
    try:
        array = np.asarray(value)
        # NumPy has no whole numbers from 2^64 on, and takes them as Python's objects.
        if array.dtype == object and all(map(_is_real, array.flat)):
            array = array.astype(float)
    except (TypeError, ValueError, OverflowError):  # Such as lists of unequal lengths.
        return None
    # The "V" is that of bfloat16.
    return array if array.dtype.kind in "iufV" else None


def _is_real(value: Any) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, bool)


def features_of(options: Iterable[bytes]) -> np.ndarray:
    """Returns `[O, F]` float32, the features of O options that are given as numbers."""
    options = list(options)
    return np.frombuffer(b"".join(options), "<f4").reshape(len(options), -1)


def is_tie(row: files.Row) -> bool:
    """Returns whether the optional column `tie` of a row says so.

    Raises:
      BadRow: if its value is neither true nor false.
    """
    value = row.get("tie")
    if is_gap(value):
        return False
    text = str(value).strip().lower()
    if text not in (*_TRUE, *_FALSE):
        raise BadRow("tie is neither true nor false")
    return text in _TRUE


def _numbered(table: Table, name: str) -> Iterator[tuple[int, files.Row]]:
    """Yields the (number, row) of a file, or of rows in memory from 1."""
    if is_path(table):
        yield from files.read_rows(table)
        return
    for number, row in enumerate(table, 1):
        if not isinstance(row, Mapping):
            raise InputError(f"{name}, row {number}: not a dict; give one a row")
        yield number, dict(row)


def text_of(row: files.Row, column: str) -> str:
    """Returns the text in an optional column, "" for none; a number becomes text.

    Raises:
      BadRow: the value is neither text nor a number.
    """
    value = row.get(column)
    if is_gap(value):
        return ""
    if isinstance(value, str):
        if not value.isascii() and _has_surrogates(value):
            raise BadRow(f"{column} is not valid Unicode")
        return value
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise BadRow(f"{column} is not a text")
    return _text_of_number(value)


def name_of(row: files.Row, column: str) -> str:
    """Returns the name of a user, group or item in an optional column, "" for none.

    7, 7.0 and the text "7.0" are one name: a column of whole numbers with gaps is one
    of floats in Parquet and pandas, which also writes it to CSV as such.

    Raises:
      BadRow: the value is neither text nor a number, or a number that was rounded, so
        that two names may have become one.
    """
    text, value = text_of(row, column), row.get(column)
    rounded = isinstance(value, float) and abs(value) >= _EXACT
    if rounded or (isinstance(value, str) and _ROUNDED.fullmatch(text)):
        raise BadRow(f"{column} is a number that was rounded (write names as texts)")
    return _without_zeros(text)


def _equal(cell: Any, asked: Any) -> bool:
    """Whether a cell holds the value that `where` asks for."""

    def text(value: Any) -> str:
        if is_gap(value):
            return ""
        if isinstance(value, bool) or not isinstance(value, _NUMBERS):
            return _without_zeros(str(value))
        return _text_of_number(value)

    if isinstance(cell, bool):
        return text(cell).lower() == text(asked).lower()
    return text(cell) == text(asked)


def is_gap(value: Any) -> bool:
    """Returns whether there is no value; a gap in a column of floats is NaN."""
    fractional = float | np.floating | decimal.Decimal
    return value is None or (isinstance(value, fractional) and math.isnan(value))


def _text_of_number(value: Any) -> str:
    # In a column with gaps, whole numbers are floats, such as 3.0.
    try:
        return str(int(value)) if value == value // 1 else str(value)
    except ValueError as error:
        raise BadRow("a number has too many digits") from error


def _without_zeros(text: str) -> str:
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


class _Items:
    """Finds rows whose items, or prompts, contradict an earlier row of the file."""

    def __init__(self, split_by: str):
        self._by_prompt = split_by == "prompt"
        self._splits: dict[str, str] = {}
        self._texts: dict[str, str] = {}

    def check(self, row: Choice | Rating) -> None:
        """Raises BadRow if the row contradicts one before it."""
        if self._by_prompt:
            _check_split(self._splits, row, "prompt")
        for option in row.options():
            if option.id and self._texts.setdefault(option.id, option.text) != (
                option.text
            ):
                raise BadRow("item id has another text in an earlier row")


class Decisions:
    """Finds rows in which a user contradicts or repeats an earlier row of the file.

    It may be given the rows of one user, or those of all.
    """

    def __init__(self, split_by: str):
        """Begins without rows; `split_by` is that of `Reader`."""
        self._by_user = split_by == "user"
        self._splits: dict[str, str] = {}
        self._groups: dict[str, str] = {}
        # What the user decided, by user and items: the chosen one, or the value.
        self._decisions: dict[tuple[Any, ...], Any] = {}

    def check(self, row: Choice | Rating) -> None:
        """Raises BadRow if the row contradicts or repeats one before it."""
        if self._by_user:
            _check_split(self._splits, row, "user")
        if row.group and self._groups.setdefault(row.user, row.group) != row.group:
            raise BadRow("user has earlier rows in another group")
        items = [option.id or (row.prompt, option.text) for option in row.options()]
        key = row.user, frozenset(items)
        decision = row.value if isinstance(row, Rating) else items[0]
        if key not in self._decisions:
            self._decisions[key] = decision
        elif self._decisions[key] == decision:
            raise BadRow("copy of an earlier row of the user")
        else:
            raise BadRow("contradicts an earlier row of the user")


def _check_split(known: dict[str, str], row: Choice | Rating, split_by: str) -> None:
    key = getattr(row, split_by)
    if row.split and known.setdefault(key, row.split) != row.split:
        raise BadRow(f"{split_by} has earlier rows in another split")


def _require_columns(path: Any, row: files.Row, required: Iterable[str]) -> None:
    for column in required:
        if column not in row:
            hint = did_you_mean(column, row)
            raise InputError(
                f"{path}: no column {column!r}; {hint}its first row has "
                f"{', '.join(row)}"
            )


def _prompt(row: files.Row) -> str:
    """Returns the prompt as a text; chat messages become their JSON."""
    try:
        return text_of({"prompt": as_prompt(row.get("prompt"))}, "prompt")
    except Unusable as reason:
        raise BadRow(f"prompt: {reason}") from reason


def _option(row: files.Row, column: str, id_column: str) -> Option:
    item_id = name_of(row, id_column)
    if features := as_features(row.get(column)):
        return Option(item_id, _as_json(features), features)
    text = text_of(row, column)
    # A response may be empty, but then only an id can identify it.
    if is_gap(row.get(column)) or not (text.strip() or item_id):
        raise BadRow(f"missing or empty {column}")
    return Option(item_id, text)


@functools.cache  # While a table is read, which may repeat options; see `Reader._read`.
def _as_json(features: bytes) -> str:
    """Returns numbers with the fewest digits that give the same float32 again."""
    digits = np.frombuffer(features, "<f4").astype(str)
    return json.dumps(list(map(float, digits.tolist())))


def _has_surrogates(text: str) -> bool:
    """Whether a text has half a character, as in JSON cut at a length limit."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def number_of(row: files.Row, column: str) -> float:
    """Returns a finite number in a column; raises BadRow for anything else."""
    value = row.get(column)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"{column} is not a finite number")
    return number
