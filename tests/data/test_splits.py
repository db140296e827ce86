"""No user, and no prompt, is in two splits."""

import collections
import random
import re

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


def advice(rows, seed):
    known, free = splits.given([rows], "user")
    return splits.advice(known.values(), free, split_by="user", seed=seed)


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


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.sets(st.text(max_size=5), min_size=1), st.sets(st.text()), st.integers(0, 9))
def test_people_who_join_move_nobody(names, others, seed):
    def found(names):
        rows = [Choice(name, "", "a", "b") for name in sorted(names)]
        (rows,) = splits.assign(rows, split_by="user", seed=seed)
        return {row.user: row.split for row in rows}

    before, after = found(names), found(names | others)
    assert {name: after[name] for name in names} == before


def test_shares():
    for seed in (0, 1):
        found = collections.Counter(splits.of(f"p{i}", seed) for i in range(10_000))
        for split, share in zip(splits.SPLITS, (0.7, 0.1, 0.2), strict=True):
            # Four standard deviations of a binomial count.
            assert abs(found[split] - 10_000 * share) < 4 * 100 * np.sqrt(
                share * (1 - share)
            )


def test_another_seed_gives_independent_splits():
    names = [f"user {i}" for i in range(2000)]
    first, second = ([splits.of(name, seed) for name in names] for seed in (0, 1))
    same = np.mean([a == b for a, b in zip(first, second, strict=True)])
    assert same == pytest.approx(0.7**2 + 0.1**2 + 0.2**2, abs=0.05)


def test_advice_names_the_empty_split_and_a_seed_that_helps():
    rows = [Choice(f"user {i}", "", "a", "b") for i in range(6)]
    advised = 0
    for seed in range(20):
        (assigned,) = splits.assign(rows, split_by="user", seed=seed)
        empty = set(splits.SPLITS) - {row.split for row in assigned}
        told = advice(rows, seed)
        assert bool(told) == bool(empty)
        if empty:
            advised += 1
            assert all(split in told for split in empty)
            other = int(re.search(r"`split_seed`=(\d+)", told)[1])
            assert not advice(rows, other)
    assert 0 < advised < 20


def test_no_seed_helps_where_all_splits_are_given():
    rows = [Choice(f"{i}", "", "a", "b", ("train", "test")[i % 2]) for i in range(40)]
    told = advice(rows, 0)
    assert "valid" in told and "split_seed" not in told


def test_no_seed_is_tried_where_nobody_is_free(monkeypatch):
    """With many people it would take seconds."""
    monkeypatch.setattr(splits, "_TRIED", map(pytest.fail, ["a seed was tried"]))
    rows = [Choice(f"{i}", "", "a", "b", "train") for i in range(9)]
    told = advice(rows, 0)
    assert "valid" in told and "test" in told and "split_seed" not in told


def test_a_seed_helps_where_some_splits_are_given():
    rows = [Choice(f"{i}", "", "a", "b", ("train", "test")[i % 2]) for i in range(40)]
    rows.append(Choice("new", "", "a", "b"))
    seed = next(seed for seed in range(99) if splits.of("new", seed) != "valid")
    told = advice(rows, seed)
    other = int(re.search(r"`split_seed`=(\d+)", told)[1])
    assert splits.of("new", other) == "valid"


def test_given_splits_hold_in_all_tables():
    choices = [Choice("ann", "", "a", "b", "test"), Choice("ann", "", "a", "c")]
    ratings = [Rating("ann", "", "a", 1.0), Rating("bob", "", "a", 1.0)]
    choices, ratings = splits.assign(choices, ratings, split_by="user", seed=0)
    assert [row.split for row in choices] == ["test", "test"]
    assert ratings[0].split == "test"
    assert ratings[1].split in splits.SPLITS


def test_by_prompt_one_user_is_in_several_splits():
    rows = [Choice("helpfulness", f"prompt {i}", "a", "b") for i in range(50)]
    (rows,) = splits.assign(rows, split_by="prompt", seed=0)
    assert {row.split for row in rows} == {*splits.SPLITS}
    assert all(row.split == splits.of(row.prompt, 0) for row in rows)


def test_tables_that_disagree_are_refused_naming_the_user():
    choices = [Choice("ann", "", "a", "b", "test")]
    ratings = [Rating("ann", "", "a", 1.0, "train")]
    with pytest.raises(InputError, match="user 'ann'"):
        splits.assign(choices, ratings, split_by="user", seed=0)
