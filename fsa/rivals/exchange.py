"""A negative control: real data in which nothing can be learned about a person.

Shapes: E judgements of all people together.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from fsa.data.dataset import Dataset
from fsa.data.ragged import Ragged
from fsa.data.users import UserTable


def exchange_people(data: Dataset, seed: int) -> Dataset:
    """Exchanges people's judgements among all who judged the same.

    Who chose which option of a pair is drawn again among the people of all splits who
    chose between the two, and who gave which rating to an item among those who rated
    it. So how often each option of a pair was chosen, how often each rating was given,
    and what each person judged are exactly those of the data, while a person's own
    judgements have nothing to do with one another. Pairs that one person alone judged
    stay as they are: make choices anew from exchanged ratings, if they came from those.

    Args:
      data: the dataset.
      seed: of the exchange.
    """
    rng = np.random.default_rng(seed)
    splits = list(data.users)
    tables = [data.users[split] for split in splits]
    chosen, rejected = (
        np.concatenate([lists.flat for lists in column])
        for column in ([t.chosen for t in tables], [t.rejected for t in tables])
    )
    low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    first_wins = _within(low * len(data.features) + high, chosen == low, rng)
    chosen, rejected = np.where(first_wins, (low, high), (high, low))
    items, values = (
        np.concatenate([lists.flat for lists in column])
        for column in ([t.items for t in tables], [t.values for t in tables])
    )
    new = {
        "chosen": chosen,
        "rejected": rejected,
        "values": _within(items, values, rng),
    }
    users, begin = {}, dict.fromkeys(new, 0)
    for split, table in zip(splits, tables, strict=True):
        users[split] = _with(table, new, begin)
        begin = {name: begin[name] + len(getattr(table, name).flat) for name in new}
    return dataclasses.replace(data, users=users)


def _within(group: np.ndarray, values: np.ndarray, rng: np.random.Generator):
    """Permutes values `[E]` at random among those of the same group `[E]`."""
    places = np.lexsort((rng.permutation(len(group)), group))
    others = np.lexsort((rng.permutation(len(group)), group))
    out = np.empty_like(values)
    out[places] = values[others]
    return out


def _with(table: UserTable, new: Mapping[str, np.ndarray], begin: Mapping[str, int]):
    """Returns a table with those entries of `new` that begin at `begin`."""

    def column(name: str) -> Ragged:
        lists = getattr(table, name)
        first = begin[name]
        own = new[name][first : first + len(lists.flat)]
        return Ragged(own.astype(lists.flat.dtype), lists.offsets)

    return dataclasses.replace(table, **{name: column(name) for name in new})
