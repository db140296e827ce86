"""Assigns users, or prompts, to training, validation and test.

A user's split depends on the user's name and a seed alone, so that people who join
later move nobody: whoever was tested on stays a stranger to every model.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, Self

from fsa.errors import InputError

SPLITS = ("train", "valid", "test")

# The shares of names below which a split ends: 70, 10 and 20%.
_ENDS = (0.7, 0.8, 1.0)

# Seeds that are tried to find one that leaves no split empty.
_TRIED = range(1000)


class Row(Protocol):
    """The fields of a table's row that splitting needs, see `fsa.data.tables`."""

    user: str
    prompt: str
    split: str

    def _replace(self, *, split: str) -> Self: ...


def of(name: str, seed: int) -> str:
    """Returns the split of a user or prompt: about 70% train, 10% valid, 20% test.

    Args:
      name: the user's id, or the prompt.
      seed: another seed gives another split.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    share = int.from_bytes(digest[:6]) / 2**48
    return next(split for split, end in zip(SPLITS, _ENDS, strict=True) if share < end)


def assign(*tables: Sequence[Row], split_by: str, seed: int) -> list[list[Row]]:
    """Gives every row a split, so that no user (or prompt) is in two.

    A split that a row has already is kept and holds for all rows of the user (or
    prompt) in all tables. Other users (or prompts) get that of `of`.

    Args:
      *tables: rows, some of which may have a split.
      split_by: "user", so that test users are new, or "prompt" for users that are
        labelled objectives, so that test prompts, and hence pairs, are new.
      seed: see `of`.

    Raises:
      InputError: if two rows of one user (or prompt) have different splits.
    """
    known, free = given(tables, split_by)
    splits = known | {name: of(name, seed) for name in free}
    return [
        [row._replace(split=splits[getattr(row, split_by)]) for row in table]
        for table in tables
    ]


def advice(
    given: Iterable[str], free: Collection[str], *, split_by: str, seed: int
) -> str:
    """Says which split `assign` would leave empty, and what helps; "" if none.

    Args:
      given: the splits that users (or prompts) have already.
      free: users (or prompts) without a split; of very many, some.
      split_by: as for `assign`.
      seed: as for `assign`.
    """
    wanted = {*SPLITS} - {*given}
    empty = _empty(wanted, free, seed)
    if not empty:
        return ""
    fix = f"add {split_by}s, "
    tried = _TRIED if free else ()
    others = (other for other in tried if not _empty(wanted, free, other))
    if (other := next(others, None)) is not None:
        fix += f"pass `split_seed`={other}, "
    fix += f"or assign {split_by}s in a column `split`"
    have = f"split {empty[0]} has" if len(empty) == 1 else f"{_listed(empty)} have"
    return (
        f"{have} no {split_by}s, and training needs {split_by}s in every split: {fix}"
    )


def _listed(names: Sequence[str]) -> str:
    return f"splits {', '.join(names[:-1])} and {names[-1]}"


def given(
    tables: Iterable[Sequence[Row]], split_by: str
) -> tuple[dict[str, str], set[str]]:
    """Returns the splits that users (or prompts) have already, and those without one.

    Raises:
      InputError: if two rows of one user (or prompt) have different splits.
    """
    known: dict[str, str] = {}
    names = set()
    for table in tables:
        for row in table:
            name = getattr(row, split_by)
            names.add(name)
            if row.split and known.setdefault(name, row.split) != row.split:
                raise InputError(disagreement(split_by, name, known[name], row.split))
    return known, names - known.keys()


def disagreement(split_by: str, name: str, one: str, other: str) -> str:
    """Returns the message for a user or prompt that tables give to two splits."""
    return (
        f"{split_by} {name!r} is in split {one} and in split {other}; make the split "
        "columns of the tables agree"
    )


def _empty(wanted: Iterable[str], free: Iterable[str], seed: int) -> list[str]:
    """Returns those of some splits that a seed gives to none of the free names."""
    left = set(wanted)
    for name in free:
        if not left:
            break
        left.discard(of(name, seed))
    return [split for split in SPLITS if split in left]
