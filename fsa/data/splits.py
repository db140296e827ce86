"""Assigns users, or prompts, to training, validation and test."""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np

from fsa.errors import InputError

SPLITS = ("train", "valid", "test")


class Row(Protocol):
    """The fields of a table's row that splitting needs, see `fsa.data.tables`."""

    user: str
    prompt: str
    split: str

    def _replace(self, *, split: str) -> Self: ...


def draw(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws positions in `SPLITS`, int8 `[size]`, in shares of 70, 10 and 20%."""
    first, second = round(0.7 * size), round(0.8 * size)
    order = rng.permutation(size)
    splits = np.full(size, 2, np.int8)
    splits[order[:first]] = 0
    splits[order[first:second]] = 1
    return splits


def assign(*tables: Sequence[Row], split_by: str, seed: int) -> list[list[Row]]:
    """Gives every row a split, so that no user (or prompt) is in two.

    A split that a row has already is kept and holds for all rows of the user (or
    prompt) in all tables. The splits of other users (or prompts) are drawn at random,
    independently of the order of rows.

    Args:
      *tables: rows, some of which may have a split.
      split_by: "user", so that test users are new, or "prompt" for users that are
        labelled objectives, so that test prompts, and hence pairs, are new.
      seed: seed of the draw.

    Raises:
      InputError: if two rows of one user (or prompt) have different splits.
    """
    keys = [[getattr(row, split_by) for row in table] for table in tables]
    given: dict[str, str] = {}
    for table, table_keys in zip(tables, keys, strict=True):
        for row, key in zip(table, table_keys, strict=True):
            if row.split and given.setdefault(key, row.split) != row.split:
                raise InputError(
                    f"{split_by} {key!r} is in split {given[key]} and in split "
                    f"{row.split}; make the split columns of the tables agree"
                )
    free = sorted({key for table_keys in keys for key in table_keys} - given.keys())
    drawn = draw(np.random.default_rng(seed), len(free))
    splits = given | {key: SPLITS[i] for key, i in zip(free, drawn, strict=True)}
    return [
        [row._replace(split=splits[key]) for row, key in zip(*pair, strict=True)]
        for pair in zip(tables, keys, strict=True)
    ]
