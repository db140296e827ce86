"""The negative control keeps what everybody judged together and nothing of a person."""

import collections
import dataclasses

import numpy as np
import planted
import pytest

from fsa.data.ragged import Ragged
from fsa.rivals.exchange import exchange_people

NUM_PEOPLE, NUM_ITEMS = 120, 30
COUNTS = (80, 20, 20)


@pytest.fixture(scope="module")
def data():
    """Two camps: one chooses and rates higher the even item of a pair, one the odd."""
    rng = np.random.default_rng(0)
    camp = rng.integers(2, size=NUM_PEOPLE)
    pairs = np.arange(NUM_ITEMS).reshape(-1, 2)
    judged = [np.sort(rng.permutation(len(pairs))[:10]) for _ in camp]
    chosen = [pairs[own, c] for own, c in zip(judged, camp, strict=True)]
    rejected = [pairs[own, 1 - c] for own, c in zip(judged, camp, strict=True)]
    made = planted.dataset(np.eye(NUM_ITEMS), chosen, rejected, COUNTS)
    users, first = {}, 0
    for split, table in made.users.items():
        own = range(first, first + len(table.names))
        first += len(table.names)
        items = [np.concatenate([chosen[u], rejected[u]]) for u in own]
        values = [np.repeat([1.0, -1.0], 10) for _ in own]
        users[split] = dataclasses.replace(
            table,
            items=Ragged.of(items, np.int32),
            values=Ragged.of(values, np.float32),
        )
    return dataclasses.replace(made, users=users)


def counted(data):
    """How often each ordered pair was chosen and each rating was given."""
    pairs, ratings = collections.Counter(), collections.Counter()
    for table in data.users.values():
        pairs.update(zip(table.chosen.flat, table.rejected.flat, strict=True))
        ratings.update(zip(table.items.flat, table.values.flat, strict=True))
    return pairs, ratings


def test_the_margins_of_pairs_and_items_are_exactly_kept(data):
    assert counted(exchange_people(data, 1)) == counted(data)


def test_everybody_judged_the_same_pairs_and_items_as_before(data):
    new = exchange_people(data, 1)
    for split, table in data.users.items():
        for a, b in zip(table.items, new.users[split].items, strict=True):
            np.testing.assert_array_equal(a, b)
        for user in range(len(table.names)):
            old, own = (
                {
                    frozenset(p)
                    for p in zip(t.chosen[user], t.rejected[user], strict=True)
                }
                for t in (table, new.users[split])
            )
            assert own == old


def agreement(data):
    """Mean over people of how one half of their choices tells the other, in [-1, 1]."""
    halves = []
    for table in data.users.values():
        for chosen in table.chosen:
            side = 2 * (chosen % 2) - 1
            halves.append(side[::2].mean() * side[1::2].mean())
    return np.mean(halves)


def test_nothing_of_a_person_is_left(data):
    assert agreement(data) == 1
    assert abs(agreement(exchange_people(data, 1))) < 0.08


def test_ratings_of_a_person_have_nothing_to_do_with_one_another(data):
    def told(data):
        halves = []
        for table in data.users.values():
            for items, values in zip(table.items, table.values, strict=True):
                side = values * (1 - 2 * (items % 2))
                halves.append(side[::2].mean() * side[1::2].mean())
        return np.mean(halves)

    assert told(data) == 1
    assert abs(told(exchange_people(data, 1))) < 0.08


def test_another_seed_exchanges_otherwise_and_the_data_stay_as_they_were(data):
    before = data.users["train"].chosen.flat.copy()
    first, second = (exchange_people(data, seed) for seed in (1, 2))
    assert (first.users["train"].chosen.flat != second.users["train"].chosen.flat).any()
    np.testing.assert_array_equal(data.users["train"].chosen.flat, before)
