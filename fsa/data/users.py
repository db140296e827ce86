"""The users of a split, with their choices and ratings: in memory, or left on disk.

`UserTable` holds everything. `StoredUsers` holds 12 bytes a user, and reads the records
of those users who are asked for. Both are `Users`.

Shapes: U users, E entries of all users' lists.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, Self

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
        """Returns the number of entries of each user's list, `[U]`."""

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
    def load(cls, folder: pathlib.Path, split: str, groups: Sequence[str]) -> Self:
        """Reads all users of a split of a dataset, whose groups have these names."""
        names, group = [], []
        # Without users there is no other part.
        lists = [_lists([], tuple(LISTS))]
        for rows in records.Source(folder, "users", split).parts():
            names += [row["user"] for row in rows]
            group += [groups.index(row["group"]) for row in rows]
            lists.append(_lists(rows, tuple(LISTS)))
        columns = map(Ragged.concatenate, zip(*lists, strict=True))
        return cls(tuple(names), np.array(group, np.int32), *columns)

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
        return self.index[1 if column in ("chosen", "rejected") else 2].astype(np.int64)

    def parts(self, columns: Sequence[str]) -> Iterator[list[Ragged]]:
        """See `Users`; reads a thousand users at a time."""
        return (_lists(rows, columns) for rows in self.source.parts(columns))

    def judged(self) -> np.ndarray:
        """See `Users`."""
        return self.own_items

    def read(self, users: Sequence[int], columns: Sequence[str]) -> list[Ragged]:
        """Reads some columns of some users, in the order given."""
        return _lists(self.source.read(users, columns), columns)


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
