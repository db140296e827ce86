"""Joins the rows of choice and rating tables in one dataset of indexed items."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fsa.data.dataset import Dataset, Embedding
from fsa.data.splits import SPLITS
from fsa.data.tables import Choice, Option, Rating, features_of
from fsa.data.users import UserTable
from fsa.errors import InputError

# The group of users for whom the tables do not name a group.
EVERYBODY = "all"

# The name of the embedding of items that the tables give as numbers.
GIVEN = "the tables"


class _Item(NamedTuple):
    """An item; `features` are the bytes of its numbers, empty for a text."""

    prompt: str
    text: str
    features: bytes


@dataclasses.dataclass
class _User:
    """One user's choices and ratings in one split; items are indices."""

    chosen: list[int] = dataclasses.field(default_factory=list)
    rejected: list[int] = dataclasses.field(default_factory=list)
    items: list[int] = dataclasses.field(default_factory=list)
    values: list[float] = dataclasses.field(default_factory=list)


def collect(choices: Sequence[Choice], ratings: Sequence[Rating]) -> Dataset:
    """Joins choices and ratings of the same users about the same items.

    An item is identified by its id, or by prompt and text if it has none. Items and
    users are sorted, so that the order of rows matters only within a user.

    Args:
      choices: rows of choice tables, each with a split.
      ratings: rows of rating tables, each with a split.

    Returns:
      A dataset, with features if the options are given as numbers.

    Raises:
      InputError: no rows, an id with two texts or prompts, a user in two groups, an
        item or pair that one user rated or chose between in two tables, or options that
        are not all texts nor all equally many numbers.
    """
    rows = (*choices, *ratings)
    if not rows:
        raise InputError("no choices and no ratings are left; check the tables")
    catalogue = _catalogue(rows)
    item_ids = sorted(catalogue)
    items = [catalogue[item_id] for item_id in item_ids]
    users = _users(choices, ratings, item_ids)
    group_of = _groups(rows)
    groups = sorted(set(group_of.values()))
    prompts = sorted({item.prompt for item in items})
    prompt_index = {prompt: i for i, prompt in enumerate(prompts)}
    features = _features(items)
    return Dataset(
        features=features,
        item_ids=tuple(item_ids),
        texts=tuple(item.text for item in items),
        prompts=tuple(prompts),
        item_prompt=np.array([prompt_index[item.prompt] for item in items], np.int32),
        groups=tuple(groups),
        users={
            split: _table(users[split], item_ids, group_of, groups) for split in SPLITS
        },
        embedding=Embedding(GIVEN) if features.shape[1] else None,
    )


def _items(row: Choice | Rating) -> Iterator[Option]:
    """Yields a row's options; one without an id gets one."""
    for option in row.options():
        if not option.id:
            digest = hashlib.sha256(f"{row.prompt}\0{option.text}".encode())
            option = Option(digest.hexdigest()[:16], option.text, option.features)
        yield option


def _catalogue(rows: Iterable[Choice | Rating]) -> dict[str, _Item]:
    """Returns the items by id."""
    catalogue: dict[str, _Item] = {}
    for row in rows:
        for item_id, text, features in _items(row):
            prompt, known, _ = catalogue.get(item_id, (row.prompt, text, b""))
            if known != text or (prompt and row.prompt and prompt != row.prompt):
                what = "texts" if known != text else "prompts"
                raise InputError(
                    f"item {item_id!r} has two {what} in the tables; give different "
                    "items different ids"
                )
            catalogue[item_id] = _Item(prompt or row.prompt, text, features)
    return catalogue


def _features(items: Sequence[_Item]) -> np.ndarray:
    """Returns the features of items that are given as numbers, `[I, F]`; else F = 0."""
    sizes = {len(features_of([item.features])[0]): item.text for item in items}
    if len(sizes) > 1:
        (first, one), (second, other) = sorted(sizes.items())[:2]
        what = f"a list of {first} numbers" if first else "a text"
        raise InputError(
            f"option {one[:40]!r} is {what}, and {other[:40]!r} a list of {second} "
            "numbers; give texts alone, or equally many numbers for every option"
        )
    return features_of(item.features for item in items)


def _users(
    choices: Iterable[Choice], ratings: Iterable[Rating], item_ids: Sequence[str]
) -> dict[str, dict[str, _User]]:
    """Returns the users: split -> name -> user."""
    index = {item_id: i for i, item_id in enumerate(item_ids)}
    users = {split: collections.defaultdict(_User) for split in SPLITS}
    for choice in choices:
        user = users[choice.split][choice.user]
        chosen, rejected = (index[option.id] for option in _items(choice))
        user.chosen.append(chosen)
        user.rejected.append(rejected)
    for rating in ratings:
        user = users[rating.split][rating.user]
        user.items += [index[option.id] for option in _items(rating)]
        user.values.append(rating.value)
    return users


def _groups(rows: Iterable[Choice | Rating]) -> dict[str, str]:
    """Returns the group of every user."""
    groups: dict[str, str] = {}
    for row in rows:
        known = groups.get(row.user) or row.group
        if row.group and known != row.group:
            raise InputError(
                f"user {row.user!r} is in groups {known} and {row.group}; make the "
                "group columns of the tables agree"
            )
        groups[row.user] = known
    return {user: group or EVERYBODY for user, group in groups.items()}


def _table(
    users: dict[str, _User],
    item_ids: Sequence[str],
    group_of: dict[str, str],
    groups: Sequence[str],
) -> UserTable:
    names = sorted(users)
    for name in names:
        user = users[name]
        pairs = zip(user.chosen, user.rejected, strict=True)
        _refuse_repeats(name, map(frozenset, pairs), item_ids)
        _refuse_repeats(name, (frozenset([item]) for item in user.items), item_ids)
    return UserTable.of(
        names,
        [groups.index(group_of[name]) for name in names],
        chosen=[users[name].chosen for name in names],
        rejected=[users[name].rejected for name in names],
        items=[users[name].items for name in names],
        values=[users[name].values for name in names],
    )


def _refuse_repeats(
    user: str, decided: Iterable[frozenset[int]], item_ids: Sequence[str]
) -> None:
    """Raises InputError for a repeat, which could be in both context and targets."""
    seen = set()
    for items in decided:
        if items in seen:
            named = " and ".join(repr(item_ids[item]) for item in sorted(items))
            raise InputError(
                f"user {user!r} decided on {named} in two tables; keep one of the rows"
            )
        seen.add(items)
