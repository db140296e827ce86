"""The users of a split, with their choices and ratings: in memory, or left on disk.

`UserTable` holds everything. `StoredUsers` holds 12 bytes a user, and reads the records
of those users who are asked for. `SpooledUsers` are on their way to disk. All are
`Users`.

Shapes: U users, E entries of all users' lists.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Protocol, Self

import numpy as np

from fsa.data import records
from fsa.data.ragged import Ragged

# The columns of a user that are lists, and the type of their entries.
LISTS = {
    "chosen": np.int32,
    "rejected": np.int32,
    "items": np.int32,
    "values": np.float32,
}
# Those that hold items.
_OF_ITEMS = ("chosen", "rejected", "items")
_INDEX_ROWS = ("group", "choices", "ratings")
# The folder of what `StoredUsers` holds, in a dataset.
INDEX = "index"


class Users(Protocol):
    """The users of one split, in order; the length is U.

    Attributes:
      names: U names.
      group: `[U]` int32, index into `Dataset.groups`.
    """

    names: Iterable[str]
    group: np.ndarray

    def __len__(self) -> int: ...

    def lengths(self, column: str) -> np.ndarray:
        """Returns the number of entries of each user's list, `[U]` int32 or int64."""

    def parts(self, columns: Sequence[str]) -> Iterator[list[Ragged]]:
        """Yields some of the columns `LISTS`, for one part of the users at a time."""

    def judged(self) -> np.ndarray:
        """Returns the items that users chose, rejected or rated, ascending, int32."""


@dataclasses.dataclass(frozen=True, eq=False)
class UserTable:
    """The users of one split in memory.

    Attributes:
      names: U names.
      group: `[U]` int32, index into `Dataset.groups`.
      chosen: for each user the items that were chosen, int32.
      rejected: for each user the items that were rejected, in the same order, int32.
      items: for each user the items that were rated, int32.
      values: for each user the ratings of these items, float32; larger is better.
    """

    names: tuple[str, ...]
    group: np.ndarray
    chosen: Ragged
    rejected: Ragged
    items: Ragged
    values: Ragged

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        group: Sequence[int],
        *,
        chosen: Sequence[Sequence[int] | np.ndarray],
        rejected: Sequence[Sequence[int] | np.ndarray],
        items: Sequence[Sequence[int] | np.ndarray],
        values: Sequence[Sequence[float] | np.ndarray],
    ) -> Self:
        """Makes a table of each user's lists."""
        return cls(
            names=tuple(names),
            group=np.array(group, np.int32),
            chosen=Ragged.of(chosen, np.int32),
            rejected=Ragged.of(rejected, np.int32),
            items=Ragged.of(items, np.int32),
            values=Ragged.of(values, np.float32),
        )

    @classmethod
    def read(cls, users: Users) -> Self:
        """Makes a table of any users."""
        lists = [_lists([], tuple(LISTS)), *users.parts(tuple(LISTS))]
        return cls._joined(tuple(users.names), users.group, lists)

    @classmethod
    def load(cls, folder: pathlib.Path, split: str, groups: Sequence[str]) -> Self:
        """Reads all users of a split of a dataset, whose groups have these names."""
        names, group = [], []
        lists = [_lists([], tuple(LISTS))]
        for rows in records.Source(folder, "users", split).parts():
            names += [row["user"] for row in rows]
            group += [groups.index(row["group"]) for row in rows]
            lists.append(_lists(rows, tuple(LISTS)))
        return cls._joined(tuple(names), np.array(group, np.int32), lists)

    @classmethod
    def _joined(
        cls, names: tuple[str, ...], group: np.ndarray, parts: Sequence[list[Ragged]]
    ) -> Self:
        """Makes a table of parts of its columns, at least one."""
        columns = map(Ragged.concatenate, zip(*parts, strict=True))
        return cls(names, group, *columns)

    @classmethod
    def concatenate(cls, tables: Sequence[Self]) -> Self:
        """Joins the users of several tables, one table after the other."""
        return cls(
            tuple(name for table in tables for name in table.names),
            np.concatenate([table.group for table in tables]),
            *(Ragged.concatenate([getattr(t, c) for t in tables]) for c in LISTS),
        )

    def take(self, users: Sequence[int]) -> Self:
        """Returns the table of some of its users, in the order given."""
        return type(self).of(
            [self.names[u] for u in users],
            self.group[np.asarray(users, int)],
            **{c: [getattr(self, c)[int(u)] for u in users] for c in LISTS},
        )

    def __len__(self) -> int:
        return len(self.names)

    def lengths(self, column: str) -> np.ndarray:
        """See `Users`."""
        return getattr(self, column).lengths

    def parts(self, columns: Sequence[str]) -> Iterator[list[Ragged]]:
        """See `Users`; all users are one part."""
        yield [getattr(self, column) for column in columns]

    def judged(self) -> np.ndarray:
        """See `Users`."""
        return np.unique(np.concatenate([getattr(self, c).flat for c in _OF_ITEMS]))


@dataclasses.dataclass(frozen=True, eq=False)
class StoredUsers:
    """The users of one split on disk, whose names and lists are read when needed.

    Attributes:
      source: their records.
      index: `[3, U]` int32: index of the group, number of choices, number of ratings.
      own_items: the items that they judged, ascending, int32.
    """

    source: records.Source
    index: np.ndarray
    own_items: np.ndarray

    @classmethod
    def open(cls, folder: pathlib.Path, split: str) -> Self:
        """Opens the users of a dataset that has an index."""
        source = records.Source(folder, "users", split)
        return cls(source, *(np.load(file) for file in _index_files(folder, split)))

    @property
    def names(self) -> Iterator[str]:
        """U names, which are read now."""
        return (row["user"] for part in self.source.parts(("user",)) for row in part)

    @property
    def group(self) -> np.ndarray:
        """`[U]` int32, index into `Dataset.groups`."""
        return self.index[0]

    def __len__(self) -> int:
        return self.index.shape[1]

    def lengths(self, column: str) -> np.ndarray:
        """See `Users`."""
        return self.index[_INDEX_ROWS.index(_counted(column))]

    def parts(self, columns: Sequence[str]) -> Iterator[list[Ragged]]:
        """See `Users`; reads a thousand users at a time."""
        return (_lists(rows, columns) for rows in self.source.parts(columns))

    def judged(self) -> np.ndarray:
        """See `Users`."""
        return self.own_items

    def read(self, users: Sequence[int], columns: Sequence[str]) -> list[Ragged]:
        """Reads some columns of some users, in the order given."""
        return _lists(self.source.read(users, columns), columns)


# Users of a spool whose lists are read at a time.
_SPOOLED_AT_ONCE = 10_000
_NUMBERS = {"group": np.int32, "choices": np.int32, "ratings": np.int32, **LISTS}


class Spool:
    """Files of scratch that users are written to one by one, in a `with` statement."""

    def __init__(self, folder: pathlib.Path):
        """Makes the folder and its files."""
        self.folder = folder
        folder.mkdir()
        names = ("names", *_NUMBERS)
        self._files = {name: (folder / name).open("wb") for name in names}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        for file in self._files.values():
            file.close()

    def add(self, name: str, group: int, *lists: np.ndarray) -> None:
        """Adds a user with the columns `LISTS`; groups and items in any numbers."""
        self._files["names"].write(json.dumps(name).encode() + b"\n")
        counts = group, len(lists[0]), len(lists[2])
        columns = (*(np.array([n], np.int32) for n in counts), *lists)
        for file, column in zip(_NUMBERS, columns, strict=True):
            self._files[file].write(column.tobytes())


@dataclasses.dataclass(frozen=True, eq=False)
class SpooledUsers:
    """The users of a `Spool` that was closed, read in parts.

    Attributes:
      folder: of the spool.
      item_rank: maps the numbers of items there to those of the dataset.
      group_rank: maps those of groups.
    """

    folder: pathlib.Path
    item_rank: np.ndarray
    group_rank: np.ndarray

    def __len__(self) -> int:
        return len(self._numbers("group"))

    @property
    def names(self) -> Iterator[str]:
        """U names, which are read now."""
        with (self.folder / "names").open("rb") as file:
            yield from map(json.loads, file)

    @property
    def group(self) -> np.ndarray:
        """`[U]` int32, index into `Dataset.groups`."""
        return self.group_rank[self._numbers("group")]

    def lengths(self, column: str) -> np.ndarray:
        """See `Users`."""
        return self._numbers(_counted(column))

    def parts(self, columns: Sequence[str]) -> Iterator[list[Ragged]]:
        """See `Users`."""
        lengths = [self._numbers(_counted(column)) for column in columns]
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context((self.folder / c).open("rb")) for c in columns]
            for first in range(0, len(self), _SPOOLED_AT_ONCE):
                part = slice(first, first + _SPOOLED_AT_ONCE)
                yield [
                    self._read(file, column, own[part])
                    for file, column, own in zip(files, columns, lengths, strict=True)
                ]

    def judged(self) -> np.ndarray:
        """See `Users`."""
        seen = np.zeros(len(self.item_rank), bool)
        for part in self.parts(_OF_ITEMS):
            for lists in part:
                seen[lists.flat] = True
        return np.flatnonzero(seen).astype(np.int32)

    def _read(self, file: BinaryIO, column: str, lengths: np.ndarray) -> Ragged:
        flat = np.fromfile(file, LISTS[column], lengths.sum())
        if column in _OF_ITEMS:
            flat = self.item_rank[flat]
        return Ragged(flat, np.cumsum([0, *lengths], dtype=np.int64))

    def _numbers(self, name: str) -> np.ndarray:
        return np.fromfile(self.folder / name, _NUMBERS[name])


def _counted(column: str) -> str:
    """Returns what the lists of a column hold: choices or ratings."""
    return "choices" if column in ("chosen", "rejected") else "ratings"


def _lists(rows: Sequence[records.Record], columns: Sequence[str]) -> list[Ragged]:
    return [Ragged.of([row[c] for row in rows], LISTS[c]) for c in columns]


def write_index(folder: pathlib.Path, split: str, users: Users) -> None:
    """Writes what `StoredUsers` holds of the users of a split."""
    counts, judged = _index_files(folder, split)
    counts.parent.mkdir(exist_ok=True)
    columns = users.group, users.lengths("chosen"), users.lengths("items")
    np.save(counts, np.stack(columns).astype(np.int32))
    np.save(judged, users.judged())


def has_index(folder: pathlib.Path) -> bool:
    """Returns whether a dataset has an index; those of older versions have none."""
    return (folder / INDEX).is_dir()


def _index_files(folder: pathlib.Path, split: str) -> tuple[pathlib.Path, pathlib.Path]:
    return folder / INDEX / f"{split}.npy", folder / INDEX / f"{split}-items.npy"
