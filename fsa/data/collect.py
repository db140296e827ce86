"""Joins the rows of choice and rating tables in one dataset of indexed items.

There may be more rows than memory holds: they go into a database on disk, which sorts
them by user, and users are joined one by one. Memory holds the items, and the rows of
one user.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from fsa.data import splits
from fsa.data.dataset import Dataset, Embedding
from fsa.data.splits import SPLITS
from fsa.data.tables import (
    BadRow,
    Choice,
    Decisions,
    Option,
    Rating,
    Reader,
    Report,
    columns_of,
    features_of,
)
from fsa.data.users import Spool, SpooledUsers, UserTable
from fsa.errors import InputError

# The group of users for whom the tables do not name a group.
EVERYBODY = "all"

# The name of the embedding of items that the tables give as numbers.
GIVEN = "the tables"

# Kinds of contradictions between tables, in the order in which they are told.
_SPLIT, _ITEM, _GROUP, _REPEAT = range(4)

# Names without a split that are remembered: so many are in every split.
_MOST_FREE = 1000

# Memory for sorting, in KiB; what is more goes to files.
_SORTING = 32 * 1024


class _Checked(NamedTuple):
    """A table whose rows may be bad: what reads it, and its report."""

    reader: Reader
    report: Report


class _Decided(NamedTuple):
    """A row in numbers: its place, its items, and the value of a rating."""

    id: int
    items: tuple[int, ...]
    value: float | None


_Rows = list[tuple[Choice | Rating, _Decided]]


class _Names:
    """Numbers texts in the order in which they come."""

    def __init__(self):
        self.texts: list[str] = []
        self._number: dict[str, int] = {}

    def number(self, text: str) -> int:
        if text not in self._number:
            self._number[text] = len(self.texts)
            self.texts.append(text)
        return self._number[text]


class Collector:
    """Collects rows, and joins them in a dataset whose users are in files.

    An item is identified by its id, or by prompt and text if it has none. Items and
    users are sorted, so that the order of rows matters only within a user. Use it in a
    `with` statement, at whose end the files are closed.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        split_by: str = "",
        seed: int = 0,
        keep_rows: bool = False,
    ):
        """Makes the database; nothing is read yet.

        Args:
          folder: an empty folder for files, which may be deleted with the dataset.
          split_by: "user" or "prompt", by which rows without a split get one, see
            `splits.assign`; "" if all rows have a split.
          seed: see `splits.of`.
          keep_rows: whether `rows` will be asked for.
        """
        self._folder, self._split_by, self._seed = folder, split_by, seed
        self._keep_rows = keep_rows
        self._db = sqlite3.connect(folder / "rows.sqlite", isolation_level=None)
        self._tables: list[_Checked | None] = []
        self._item_ids, self._prompts, self._groups = _Names(), _Names(), _Names()
        self._options: list[Option] = []
        self._item_prompt: dict[int, int] = {}
        # Items that are in the dataset whether or not anybody decided on them.
        self._answers: set[int] = set()
        # The splits that prompts were given, "" for none, where prompts are split.
        self._of_prompts: dict[str, str] = {}
        # The splits that names were given, and some of the names without one.
        self._given: set[str] = set()
        self._free: set[str] = set()
        self._errors: dict[int, InputError] = {}
        for pragma in (
            # Nothing here outlives the process.
            "journal_mode = OFF",
            "synchronous = OFF",
            f"cache_size = -{_SORTING}",
            # Sorting takes as much room as the rows; elsewhere there may be less.
            f"temp_store_directory = '{str(folder).replace(chr(39), 2 * chr(39))}'",
        ):
            self._db.execute(f"PRAGMA {pragma}")
        columns = "user, source, number, prompt, first, second, value, split, grp, row"
        self._db.execute(f"CREATE TABLE rows ({columns})")
        self._db.execute("CREATE TABLE kept (id INTEGER PRIMARY KEY, split)")
        self._db.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._db.close()
        if isinstance(error, sqlite3.Error):
            raise InputError(
                f"{self._folder.parent}: cannot be written ({error}); make room there"
            ) from error

    def add(self, rows: Iterable[Choice | Rating]) -> None:
        """Adds the rows of tables that were checked before."""
        self._insert(enumerate(rows, 1), None)

    def add_answers(self, prompt: str, answers: Iterable[str], split: str) -> None:
        """Adds answers to a prompt of a split as items that nobody decided on."""
        if self._split_by == "prompt":
            self._agree_on_prompt(prompt, split)
        number = self._prompts.number(prompt)
        for answer in answers:
            item = self._item(prompt, Option("", answer))
            self._agree_on_prompt_of(item, number)
            self._answers.add(item)

    def add_table(self, table: Any, what: str, reader: Reader, report: Report) -> None:
        """Adds the rows of a table as it is read, see `Reader.stream`."""
        rows = reader.stream(table, what, report)
        self._insert(rows, _Checked(reader, report))

    def _insert(
        self, rows: Iterable[tuple[int, Choice | Rating]], checked: _Checked | None
    ) -> None:
        source = len(self._tables)
        self._tables.append(checked)
        encoded = (self._encoded(source, number, row) for number, row in rows)
        places = ", ".join("?" * 10)
        self._db.executemany(f"INSERT INTO rows VALUES ({places})", encoded)

    def _encoded(self, source: int, number: int, row: Choice | Rating) -> tuple:
        if self._split_by == "prompt":
            self._agree_on_prompt(row.prompt, row.split)
        items = [self._item(row.prompt, option) for option in row.options()]
        first, second = items if len(items) == 2 else (items[0], None)
        kept = None
        if self._keep_rows:
            # With a split, so that the column has its place.
            kept = json.dumps(columns_of(row._replace(split=SPLITS[0])))
        return (
            row.user,
            source,
            number,
            self._prompts.number(row.prompt),
            first,
            second,
            getattr(row, "value", None),
            row.split,
            self._groups.number(row.group),
            kept,
        )

    def _item(self, prompt: str, option: Option) -> int:
        """Returns the number of an item."""
        item_id = option.id
        if not item_id:
            digest = hashlib.sha256(f"{prompt}\0{option.text}".encode())
            item_id = digest.hexdigest()[:16]
        item = self._item_ids.number(item_id)
        if item == len(self._options):
            self._options.append(option)
        elif self._options[item].text != option.text:
            self._two(item, "texts")
        return item

    def _two(self, item: int, what: str) -> None:
        item_id = self._item_ids.texts[item]
        self._tell(
            _ITEM,
            f"item {item_id!r} has two {what} in the tables; give different items "
            "different ids",
        )

    def _tell(self, kind: int, message: str) -> None:
        """Keeps an error until all rows were read, as bad rows are told first."""
        self._errors.setdefault(kind, InputError(message))

    def _agree_on_prompt(self, prompt: str, split: str) -> None:
        known = self._of_prompts.setdefault(prompt, split)
        if split and not known:
            self._of_prompts[prompt] = split
        elif split and known != split:
            self._tell(_SPLIT, splits.disagreement("prompt", prompt, known, split))

    def dataset(self) -> Dataset:
        """Joins the rows that are not bad.

        Returns:
          A dataset whose users are in files of the folder; with features if the options
          are given as numbers.

        Raises:
          InputError: too many bad rows in a table, no rows, a user (or prompt) in two
            splits, an id with two texts or prompts, a user in two groups, an item or
            pair that one user rated or chose between in two tables, or options that are
            not all texts nor all equally many numbers.
        """
        spools = {split: Spool(self._folder / split) for split in SPLITS}
        groups = _Names()
        used = np.zeros(len(self._options), bool)
        with contextlib.ExitStack() as stack:
            for spool in spools.values():
                stack.enter_context(spool)
            for name, rows in self._users():
                group = groups.number(self._group_of(name, rows))
                for split in {row.split for row, _ in rows}:
                    own = [items for row, items in rows if row.split == split]
                    spools[split].add(name, group, *self._lists(name, own))
                    used[[item for items in own for item in items.items]] = True
        for checked in self._tables:
            if checked:
                checked.report.check(checked.reader.max_bad_share)
        if not used.any():
            raise InputError("no choices and no ratings are left; check the tables")
        used[list(self._answers)] = True
        for kind in sorted(self._errors):
            raise self._errors[kind]
        return self._joined(spools, used, groups.texts)

    def advice(self) -> str:
        """Says which split is empty, and what helps, see `splits.advice`; "" if none.

        Called after `dataset`, where rows without a split got one.
        """
        return splits.advice(
            self._given, self._free, split_by=self._split_by, seed=self._seed
        )

    def rows(self, what: str) -> Iterator[dict[str, Any]]:
        """Yields the rows of a kind that are in the dataset, in the order added.

        Args:
          what: "choices" or "ratings".
        """
        is_null = "IS NULL" if what == "choices" else "IS NOT NULL"
        found = self._db.execute(
            "SELECT row, kept.split FROM kept JOIN rows ON rows.rowid = id "
            f"WHERE value {is_null} ORDER BY id"
        )
        return ({**json.loads(row), "split": split} for row, split in found)

    def _users(self) -> Iterator[tuple[str, _Rows]]:
        """Yields each user with the rows that are not bad, each with a split."""
        found = self._db.execute(
            "SELECT user, rowid, source, number, prompt, first, second, value, split, "
            "grp FROM rows ORDER BY user, rowid"
        )
        for name, rows in itertools.groupby(found, key=lambda row: row[0]):
            kept = self._kept(rows)
            if not kept:
                continue
            own = self._with_splits([row for row, _ in kept])
            if self._keep_rows:
                pairs = zip(kept, own, strict=True)
                splits_of = [(items.id, row.split) for (_, items), row in pairs]
                self._db.executemany("INSERT INTO kept VALUES (?, ?)", splits_of)
            yield name, [(row, d) for row, (_, d) in zip(own, kept, strict=True)]

    def _kept(self, found: Iterable[tuple]) -> _Rows:
        """Returns the rows of one user that are not bad, and counts the others."""
        decisions: dict[int, Decisions] = {}
        kept = []
        for name, at, source, number, prompt, first, second, value, split, grp in found:
            items = (first,) if second is None else (first, second)
            options = [self._options[item] for item in items]
            texts, ids = [o.text for o in options], [o.id for o in options]
            own = name, self._prompts.texts[prompt]
            group = self._groups.texts[grp]
            if value is None:
                row = Choice(*own, *texts, split, group, *ids)
            else:
                row = Rating(*own, *texts, value, split, group, *ids)
            if checked := self._tables[source]:
                reader, report = checked
                by = decisions.setdefault(source, Decisions(reader.split_by))
                try:
                    by.check(row)
                except BadRow as reason:
                    report.leave_out(str(reason), number)
                    continue
            for item in items:
                self._agree_on_prompt_of(item, prompt)
            kept.append((row, _Decided(at, items, value)))
        return kept

    def _agree_on_prompt_of(self, item: int, prompt: int) -> None:
        """Notes the prompt of an item; rows that have none leave it open."""
        known = self._item_prompt.setdefault(item, prompt)
        if known == prompt or not self._prompts.texts[prompt]:
            return
        if self._prompts.texts[known]:
            self._two(item, "prompts")
        self._item_prompt[item] = prompt

    def _with_splits(self, rows: list[Choice | Rating]) -> list[Choice | Rating]:
        """Gives every row of one user a split."""
        if not self._split_by:
            return rows
        if self._split_by == "prompt":
            rows = [row._replace(split=self._of_prompts[row.prompt]) for row in rows]
        try:
            known, free = splits.given([rows], self._split_by)
            (assigned,) = splits.assign(rows, split_by=self._split_by, seed=self._seed)
        except InputError as error:
            self._errors.setdefault(_SPLIT, error)
            return [row._replace(split=SPLITS[0]) for row in rows]
        self._given.update(known.values())
        if len(self._free) < _MOST_FREE:
            self._free |= free
        return assigned

    def _group_of(self, name: str, rows: _Rows) -> str:
        groups = dict.fromkeys(row.group for row, _ in rows if row.group)
        if len(groups) > 1:
            first, other = list(groups)[:2]
            self._tell(
                _GROUP,
                f"user {name!r} is in groups {first} and {other}; make the group "
                "columns of the tables agree",
            )
        return next(iter(groups), EVERYBODY)

    def _lists(self, name: str, decided: Sequence[_Decided]) -> list[np.ndarray]:
        """Returns the columns `fsa.data.users.LISTS` of one user in one split."""
        # A repeat could be in both context and targets.
        sets = [frozenset(own.items) for own in decided]
        if len(set(sets)) < len(sets):
            repeated = next(each for i, each in enumerate(sets) if each in sets[:i])
            ids = sorted(self._item_ids.texts[item] for item in repeated)
            self._tell(
                _REPEAT,
                f"user {name!r} decided on {' and '.join(map(repr, ids))} in two "
                "tables; keep one of the rows",
            )
        pairs = [own.items for own in decided if own.value is None]
        rated = [own for own in decided if own.value is not None]
        return [
            np.array([chosen for chosen, _ in pairs], np.int32),
            np.array([rejected for _, rejected in pairs], np.int32),
            np.array([own.items[0] for own in rated], np.int32),
            np.array([own.value for own in rated], np.float32),
        ]

    def _joined(
        self, spools: dict[str, Spool], used: np.ndarray, group_names: list[str]
    ) -> Dataset:
        ids = self._item_ids.texts
        order = sorted(np.flatnonzero(used).tolist(), key=ids.__getitem__)
        item_rank = np.zeros(len(ids), np.int32)
        item_rank[order] = np.arange(len(order))
        groups = sorted(group_names)
        group_rank = np.array([groups.index(name) for name in group_names], np.int32)
        options = [self._options[item] for item in order]
        own = [self._prompts.texts[self._item_prompt[item]] for item in order]
        prompts = sorted(set(own))
        prompt_index = {prompt: i for i, prompt in enumerate(prompts)}
        features = _features(options)
        return Dataset(
            features=features,
            item_ids=tuple(ids[item] for item in order),
            texts=tuple(option.text for option in options),
            prompts=tuple(prompts),
            item_prompt=np.array([prompt_index[prompt] for prompt in own], np.int32),
            groups=tuple(groups),
            users={
                split: SpooledUsers(spool.folder, item_rank, group_rank)
                for split, spool in spools.items()
            },
            embedding=Embedding(GIVEN) if features.shape[1] else None,
        )


def collect(choices: Sequence[Choice], ratings: Sequence[Rating]) -> Dataset:
    """Joins choices and ratings of the same users about the same items, in memory.

    Args:
      choices: rows of choice tables, each with a split.
      ratings: rows of rating tables, each with a split.

    Returns:
      A dataset, with features if the options are given as numbers.

    Raises:
      InputError: see `Collector.dataset`.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        Collector(pathlib.Path(folder)) as collector,
    ):
        collector.add(choices)
        collector.add(ratings)
        data = collector.dataset()
        users = {split: UserTable.read(own) for split, own in data.users.items()}
        return dataclasses.replace(data, users=users)


def _features(options: Sequence[Option]) -> np.ndarray:
    """Returns the features of options that are numbers, `[I, F]`; else F = 0."""
    sizes = {len(features_of([o.features])[0]): o.text for o in options}
    if len(sizes) > 1:
        (first, one), (second, other) = sorted(sizes.items())[:2]
        what = f"a list of {first} numbers" if first else "a text"
        raise InputError(
            f"option {one[:40]!r} is {what}, and {other[:40]!r} a list of {second} "
            "numbers; give texts alone, or equally many numbers for every option"
        )
    return features_of(option.features for option in options)
