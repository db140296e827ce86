"""Popularity and nearest neighbours on people whose choices are counted by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest

from fsa.data.ragged import Ragged
from fsa.rivals import judgements
from fsa.rivals.method import TrainingPeople
from fsa.rivals.neighbours import Neighbours, Values
from fsa.rivals.popularity import Popularity

NUM_ITEMS = 40


def three_to_one():
    """Of 40 people 30 choose item 0 over 1; 2 and 3 are chosen as often."""
    chosen = [[0, 2 + u % 2] if u < 30 else [1, 2 + u % 2] for u in range(44)]
    rejected = [[1, 3 - u % 2] if u < 30 else [0, 3 - u % 2] for u in range(44)]
    data = planted.dataset(np.eye(4), chosen, rejected, (40, 2, 2))
    return TrainingPeople(planted.people(data, context=1, targets=1), (0, 1))


def shares(method, people, chosen, rejected):
    values = method.fit(people, jax.random.key(0)).values
    target = planted.choices(np.eye(4), chosen, rejected)
    return np.exp(method.predict(values, method.adapt(values, target), target))


def test_popularity_is_the_share():
    method, people = Popularity(pseudo_people=1e-6), three_to_one()
    found = shares(method, people, [0, 1, 2], [1, 0, 3])
    np.testing.assert_allclose(found, [0.75, 0.25, 0.5], atol=1e-5)


def test_few_people_are_drawn_to_the_popularity_of_items():
    """Nobody chose between 0 and 2, so only the items' odds say something."""
    found = shares(Popularity(pseudo_people=4.0), three_to_one(), [0], [2])
    odds = np.log(31 / 11) - np.log(21 / 21)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-odds)), rtol=1e-5)


def test_popularity_knows_nothing_of_an_unknown_item():
    found = shares(Popularity(), three_to_one(), [-1], [0])
    np.testing.assert_allclose(found, 0.5, rtol=1e-6)


@pytest.fixture(scope="module")
def likes():
    """What 60 people like of 40 items, at random."""
    return np.random.default_rng(0).choice([-1.0, 1.0], size=(60, NUM_ITEMS))


def of_twin(likes, sharpness):
    """Predictions for somebody who likes what person 7 likes, after ten choices."""
    half = jnp.full((NUM_ITEMS, NUM_ITEMS), jnp.log(0.5))
    values = Values(
        jnp.asarray(likes), jnp.ones(likes.shape, bool), half, jnp.float32(sharpness)
    )
    liked, not_liked = (np.flatnonzero(likes[7] == sign) for sign in (1, -1))
    size = min(len(liked), len(not_liked))
    pairs = planted.choices(np.eye(NUM_ITEMS), liked[:size], not_liked[:size])
    context = jax.tree.map(lambda x: x[:10], pairs)
    target = jax.tree.map(lambda x: x[10:], pairs)
    method = Neighbours(pseudo_people=0.1)
    return np.exp(method.predict(values, method.adapt(values, context), target))


def test_the_identical_twin_is_copied(likes):
    assert (of_twin(likes, sharpness=3.0) > 0.9).all()


def test_without_agreement_everybody_counts_alike(likes):
    found = of_twin(likes, sharpness=0.0)
    assert (found < 0.8).all()
    assert abs(found.mean() - 0.5) < 0.15


def test_sharpness_is_chosen_on_validation_people():
    """Two camps, of which one choice tells: the sharpest weights are best."""
    rng = np.random.default_rng(0)
    camp = rng.choice([-1.0, 1.0], size=80)
    rewards = 20 * camp[:, None] * rng.choice([-1.0, 1.0], size=20)
    data = planted.by_rewards(rewards, np.eye(20), (60, 10, 10), num_choices=14)
    people = TrainingPeople(planted.people(data), (0, 5))
    fitted = Neighbours(sharpnesses=(0.1, 1.0), valid_episodes=1).fit(
        people, jax.random.key(0)
    )
    assert fitted.setting == 1.0


def test_ratings_are_counted_from_the_middle():
    people = three_to_one()
    table = people.task.data.users["train"]
    rated = dataclasses.replace(
        table,
        items=Ragged.of([[0, 1, 2]] * 40, np.int32),
        values=Ragged.of([[1.0, 3.0, 5.0]] * 40, np.float32),
    )
    data = people.task.data
    data = dataclasses.replace(data, users={**data.users, "train": rated})
    task = dataclasses.replace(
        people.task, data=data, train_on="ratings", min_choices=1
    )
    liked, known = judgements.matrix(task)
    np.testing.assert_array_equal(liked[0], [-1, 0, 1, 0])
    np.testing.assert_array_equal(known[0], [True, True, True, False])
