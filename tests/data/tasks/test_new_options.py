"""Held-out items: nobody in training judged them, and held-out people only them."""

import numpy as np
import pytest

from fsa.data.dataset import Dataset, Embedding
from fsa.data.tasks import new_options
from fsa.data.tasks.people import popularity
from fsa.data.tasks.task import TEST, TRAIN, VALID
from fsa.data.users import UserTable

ITEMS, PEOPLE = 60, 12


def table(rng):
    """People who voted on all items but every tenth, and chose between some."""
    pairs = [rng.permutation(ITEMS)[:20].reshape(2, 10) for _ in range(PEOPLE)]
    items = [rng.permutation(ITEMS)[: ITEMS - 6] for _ in range(PEOPLE)]
    return UserTable.of(
        [f"person {i}" for i in range(PEOPLE)],
        [0] * PEOPLE,
        chosen=[chosen for chosen, _ in pairs],
        rejected=[rejected for _, rejected in pairs],
        items=items,
        values=[rng.integers(-1, 2, len(own)) for own in items],
    )


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return Dataset(
        features=rng.normal(size=(ITEMS, 2)).astype(np.float32),
        item_ids=tuple(f"item {i}" for i in range(ITEMS)),
        texts=tuple(f"text {i}" for i in range(ITEMS)),
        prompts=("first", "second"),
        item_prompt=np.arange(ITEMS, dtype=np.int32) % 2,
        groups=("",),
        users={split: table(rng) for split in (TRAIN, VALID, TEST)},
        embedding=Embedding("random"),
    )


def test_an_item_is_held_out_by_its_id_alone():
    ids = tuple(f"item {i}" for i in range(2000))
    found = new_options.is_held_out(ids, 0.3)
    assert 0.25 < found.mean() < 0.35
    np.testing.assert_array_equal(new_options.is_held_out(ids[7:9], 0.3), found[7:9])
    assert not new_options.is_held_out(ids, 0.0).any()
    assert (found <= new_options.is_held_out(ids, 0.6)).all()


def test_nobody_in_training_judged_a_held_out_item(data):
    held_out = new_options.is_held_out(data.item_ids, 0.5)
    before, after = data.users[TRAIN], new_options.hold_out(data, 0.5).users[TRAIN]
    for person in range(PEOPLE):
        rated = ~held_out[before.items[person]]
        np.testing.assert_array_equal(after.items[person], before.items[person][rated])
        np.testing.assert_array_equal(
            after.values[person], before.values[person][rated]
        )
        pairs = np.stack([before.chosen[person], before.rejected[person]])
        left = pairs[:, ~held_out[pairs].any(0)]
        np.testing.assert_array_equal(after.chosen[person], left[0])
        np.testing.assert_array_equal(after.rejected[person], left[1])


def test_held_out_people_choose_between_held_out_items_as_they_voted(data):
    held_out = new_options.is_held_out(data.item_ids, 0.5)
    liked = popularity(data, 1.0)
    after = new_options.hold_out(data, 0.5)
    for split in (VALID, TEST):
        table = after.users[split]
        assert not len(table.items.flat) and len(table.chosen.flat) > PEOPLE
        for person in range(PEOPLE):
            items, values = (
                getattr(data.users[split], name)[person] for name in ("items", "values")
            )
            vote = dict(zip(items, values, strict=True))
            chosen, rejected = table.chosen[person], table.rejected[person]
            pairs = np.concatenate([chosen, rejected])
            assert held_out[pairs].all() and len(set(pairs)) == len(pairs)
            for a, b in zip(chosen, rejected, strict=True):
                assert vote[a] - vote[b] > 1
                assert abs(liked[a] - liked[b]) <= 0.5
                assert data.item_prompt[a] == data.item_prompt[b]


def test_the_same_choices_where_training_people_know_the_items(data):
    new, known = (
        new_options.hold_out(data, 0.5, known=known) for known in (False, True)
    )
    np.testing.assert_array_equal(
        known.users[TRAIN].items.flat, data.users[TRAIN].items.flat
    )
    for name in ("chosen", "rejected"):
        own, other = (getattr(d.users[TEST], name) for d in (new, known))
        np.testing.assert_array_equal(own.flat, other.flat)
        np.testing.assert_array_equal(own.offsets, other.offsets)
