"""No user, and no prompt, is in two splits."""

import collections
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsa.data import splits
from fsa.data.tables import Choice, Rating
from fsa.errors import InputError

NAMES = st.sampled_from([f"name {i}" for i in range(12)])
ROWS = st.lists(
    st.tuples(NAMES, NAMES).map(lambda names: Choice(*names, "a", "b")),
    min_size=1,
    max_size=30,
)


def splits_of(rows, split_by):
    found = collections.defaultdict(set)
    for row in rows:
        found[getattr(row, split_by)].add(row.split)
    return found


@settings(max_examples=50, deadline=None)
@given(ROWS, st.sampled_from(["user", "prompt"]), st.integers(0, 99), st.randoms())
def test_disjoint_and_independent_of_row_order(rows, split_by, seed, rng):
    ratings = [Rating(row.user, row.prompt, "a", 1.0) for row in rows[::2]]
    assigned = splits.assign(rows, ratings, split_by=split_by, seed=seed)
    found = splits_of([*assigned[0], *assigned[1]], split_by)
    assert all(len(of_one) == 1 for of_one in found.values())
    shuffled = random.Random(rng.random()).sample(rows, len(rows))
    again = splits.assign(shuffled, ratings, split_by=split_by, seed=seed)
    assert splits_of([*again[0], *again[1]], split_by) == found
    assert [row._replace(split="") for row in assigned[0]] == rows


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_shares(size):
    drawn = np.bincount(splits.draw(np.random.default_rng(0), size), minlength=3)
    assert np.abs(drawn - size * np.array([0.7, 0.1, 0.2])).max() <= 0.5


def test_another_seed_draws_another_split():
    rows = [Choice(f"user {i}", "", "a", "b") for i in range(50)]
    (first,) = splits.assign(rows, split_by="user", seed=0)
    (second,) = splits.assign(rows, split_by="user", seed=1)
    assert first != second


def test_given_splits_hold_in_all_tables():
    choices = [Choice("ann", "", "a", "b", "test"), Choice("ann", "", "a", "c")]
    ratings = [Rating("ann", "", "a", 1.0), Rating("bob", "", "a", 1.0)]
    choices, ratings = splits.assign(choices, ratings, split_by="user", seed=0)
    assert [row.split for row in choices] == ["test", "test"]
    assert ratings[0].split == "test"
    assert ratings[1].split in splits.SPLITS


def test_by_prompt_one_user_is_in_several_splits():
    rows = [Choice("helpfulness", f"prompt {i}", "a", "b") for i in range(10)]
    (rows,) = splits.assign(rows, split_by="prompt", seed=0)
    counts = collections.Counter(row.split for row in rows)
    assert counts == {"train": 7, "valid": 1, "test": 2}


def test_tables_that_disagree_are_refused_naming_the_user():
    choices = [Choice("ann", "", "a", "b", "test")]
    ratings = [Rating("ann", "", "a", 1.0, "train")]
    with pytest.raises(InputError, match="user 'ann'"):
        splits.assign(choices, ratings, split_by="user", seed=0)
