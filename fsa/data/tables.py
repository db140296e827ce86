"""The two open formats of people's preferences, read and checked row by row.

* *choices*: a user preferred one text to another.
* *ratings*: a user gave a number to an item; larger is better.

`docs/data.md` defines the columns. Invalid rows are left out, counted by reason and
reported; a file with too many of them is refused.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from fsa.data import files
from fsa.data.splits import SPLITS
from fsa.errors import InputError
from fsa.language.tokenization import as_prompt, messages_of


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

    def options(self) -> tuple[tuple[str, str], ...]:
        """Returns the (id, text) of the chosen and of the rejected item."""
        return (self.chosen_id, self.chosen), (self.rejected_id, self.rejected)


class Rating(NamedTuple):
    """A row of a rating table; an optional column that is not given is ""."""

    user: str
    prompt: str
    item: str
    value: float
    split: str = ""
    group: str = ""
    item_id: str = ""

    def options(self) -> tuple[tuple[str, str], ...]:
        """Returns the (id, text) of the rated item."""
        return ((self.item_id, self.item),)


AnyRow = TypeVar("AnyRow", Choice, Rating)


@dataclasses.dataclass
class Report:
    """Counts of the rows of a file that were read and left out.

    Attributes:
      path: the file.
      rows: number of rows that were considered, including the bad ones.
      bad: reason -> (how many rows, number of the first).
      notes: further counts, by description.
    """

    path: str
    rows: int = 0
    bad: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    notes: dict[str, int] = dataclasses.field(default_factory=dict)

    def leave_out(self, reason: str, number: int) -> None:
        """Counts row `number` as bad."""
        count, first = self.bad.get(reason, (0, number))
        self.bad[reason] = count + 1, first

    def note(self, what: str) -> None:
        """Adds one to a further count."""
        self.notes[what] = self.notes.get(what, 0) + 1

    def check(self, max_bad_share: float) -> None:
        """Raises an InputError if more than this share of the rows is bad."""
        bad = sum(count for count, _ in self.bad.values())
        if bad <= max_bad_share * self.rows:
            return
        reason, (_, first) = min(self.bad.items(), key=lambda entry: entry[1][1])
        raise InputError(
            f"{self.path}, row {first}: {reason}; {bad} of {self.rows} rows are bad, "
            f"more than a share of {max_bad_share:g}: correct them or raise "
            "`max_bad_share`"
        )


class BadRow(ValueError):
    """An invalid row; the message is the reason, without the row's content."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads choice tables and rating tables.

    Attributes:
      where: column -> value; other rows are ignored.
      split_by: "user" or "prompt", which must not be in two splits.
      group_column: the column that names a user's group.
      max_bad_share: more than this share of bad rows in a file is an error.
    """

    where: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split_by: str = "user"
    group_column: str = "group"
    max_bad_share: float = 0.01

    def choices(self, path: str | pathlib.Path) -> tuple[list[Choice], Report]:
        """Reads a choice table; raises InputError if the file cannot be used."""
        required = ("user", "chosen", "rejected")
        return self._read(path, required, self._choice)

    def ratings(self, path: str | pathlib.Path) -> tuple[list[Rating], Report]:
        """Reads a rating table; raises InputError if the file cannot be used."""
        required = ("user", "item", "value")
        return self._read(path, required, self._rating)

    def rows(
        self, path: str | pathlib.Path, required: Sequence[str], report: Report
    ) -> Iterator[tuple[int, files.Row]]:
        """Yields the (number, row) that `where` selects, counting them in `report`."""
        columns_checked = False
        for number, row in files.read_rows(path):
            if not columns_checked:
                _require_columns(path, row, (*required, *self.where))
                columns_checked = True
            if all(str(row.get(key)) == value for key, value in self.where.items()):
                report.rows += 1
                yield number, row
        if report.rows == 0:
            asked = "".join(f" with {k}={v}" for k, v in self.where.items())
            raise InputError(f"{path}: no rows{asked}; check the file and `where`")

    def _read(
        self,
        path: str | pathlib.Path,
        required: Sequence[str],
        parse: Callable[[files.Row], AnyRow],
    ) -> tuple[list[AnyRow], Report]:
        report, consistency, kept = Report(str(path)), _Consistency(self.split_by), []
        for number, row in self.rows(path, required, report):
            try:
                parsed = parse(row)
                consistency.check(parsed)
            except BadRow as reason:
                report.leave_out(str(reason), number)
            else:
                kept.append(parsed)
        report.check(self.max_bad_share)
        return kept, report

    def _choice(self, row: files.Row) -> Choice:
        chosen, chosen_id = _item(row, "chosen", "chosen_id")
        rejected, rejected_id = _item(row, "rejected", "rejected_id")
        if chosen == rejected or (chosen_id and chosen_id == rejected_id):
            raise BadRow("chosen equal to rejected")
        user, prompt, split, group = self._whose(row)
        return Choice(
            user, prompt, chosen, rejected, split, group, chosen_id, rejected_id
        )

    def _rating(self, row: files.Row) -> Rating:
        item, item_id = _item(row, "item", "item_id")
        user, prompt, split, group = self._whose(row)
        return Rating(user, prompt, item, _number(row), split, group, item_id)

    def _whose(self, row: files.Row) -> tuple[str, str, str, str]:
        user, prompt, split = text_of(row, "user"), _prompt(row), text_of(row, "split")
        if not user.strip():
            raise BadRow("empty user")
        if split and split not in SPLITS:
            raise BadRow("unknown split (train, valid and test are known)")
        return user, prompt, split, text_of(row, self.group_column)


def write(path: str | pathlib.Path, rows: Iterable[Choice | Rating]) -> None:
    """Writes rows as .jsonl or .jsonl.gz, without empty optional columns."""
    optional = ("split", "group", "chosen_id", "rejected_id", "item_id")
    files.write_jsonl(
        path,
        (
            {k: v for k, v in row._asdict().items() if v or k not in optional}
            for row in rows
        ),
    )


def text_of(row: files.Row, column: str) -> str:
    """Returns the text in an optional column, "" for none; a number becomes text.

    Raises:
      BadRow: the value is neither text nor a number.
    """
    value = row.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""  # Parquet stores a gap in a column of numbers as NaN.
    if isinstance(value, str):
        if not value.isascii() and _has_surrogates(value):
            raise BadRow(f"{column} is not valid Unicode")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"{column} is not a text")
    # In a Parquet column with gaps, whole numbers are floats, such as 3.0.
    return str(int(value)) if value == value // 1 else str(value)


class _Consistency:
    """Finds rows that contradict or repeat an earlier row of the same file."""

    def __init__(self, split_by: str):
        self._split_by = split_by
        self._splits: dict[str, str] = {}
        self._groups: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._seen: set[tuple[Any, ...]] = set()

    def check(self, row: Choice | Rating) -> None:
        """Raises BadRow if the row contradicts or repeats one before it."""
        key = getattr(row, self._split_by)
        if row.split and self._splits.setdefault(key, row.split) != row.split:
            raise BadRow(f"{self._split_by} has earlier rows in another split")
        if row.group and self._groups.setdefault(row.user, row.group) != row.group:
            raise BadRow("user has earlier rows in another group")
        for item_id, text in row.options():
            if item_id and self._texts.setdefault(item_id, text) != text:
                raise BadRow("item id has another text in an earlier row")
        items = frozenset(i or (row.prompt, text) for i, text in row.options())
        if (row.user, items) in self._seen:
            raise BadRow("user has an earlier row on the same item or pair")
        self._seen.add((row.user, items))


def _require_columns(path: Any, row: files.Row, required: Iterable[str]) -> None:
    for column in required:
        if column not in row:
            raise InputError(
                f"{path}: no column {column!r}; its first row has {', '.join(row)}"
            )


def _prompt(row: files.Row) -> str:
    """Returns the prompt as a text; chat messages become their JSON."""
    given = row.get("prompt")
    prompt = text_of({"prompt": as_prompt(given)}, "prompt")
    if isinstance(given, list) and messages_of(prompt) is None:
        raise BadRow("prompt is a list, but not of messages with role and content")
    return prompt


def _item(row: files.Row, column: str, id_column: str) -> tuple[str, str]:
    """Returns the (text, id) of an option."""
    text, item_id = text_of(row, column), text_of(row, id_column)
    # A response may be empty, but then only an id can identify it.
    if row.get(column) is None or not (text.strip() or item_id):
        raise BadRow(f"missing or empty {column}")
    return text, item_id


def _has_surrogates(text: str) -> bool:
    """Whether a text has half a character, as in JSON cut at a length limit."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _number(row: files.Row) -> float:
    value = row.get("value")
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow("value is not a finite number")
    return number
