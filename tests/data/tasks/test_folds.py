"""People in folds: who is trained on, who is scored, and by whose choices."""

import dataclasses

import jax
import numpy as np
import pytest

from fsa.data.dataset import Dataset, Embedding
from fsa.data.tasks.folds import FoldedPeople, pool
from fsa.data.tasks.people import CHOICES, RATINGS, People, popularity
from fsa.data.tasks.task import TEST, TRAIN, VALID
from fsa.data.users import UserTable
from fsa.errors import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")

ITEMS, FOLDS, N, M = 11, 3, 2, 4
USERS = {TRAIN: 13, VALID: 5, TEST: 3}
LEAST = 2  # Choices of whoever is trained on.


def people(split, count, rng):
    """People with 1 to 7 choices; nobody chooses between the same items twice."""
    pairs = [(a, b) for a in range(ITEMS) for b in range(ITEMS) if a < b]
    chosen, rejected = [], []
    for user in range(count):
        picked = rng.permutation(len(pairs))[: 1 + user % 7]
        both = np.array([pairs[i] for i in picked])
        both = np.where(rng.uniform(size=(len(both), 1)) < 0.5, both, both[:, ::-1])
        chosen.append(both[:, 0])
        rejected.append(both[:, 1])
    return UserTable.of(
        [f"{split} {i}" for i in range(count)],
        [0] * count,
        chosen=chosen,
        rejected=rejected,
        items=[[]] * count,
        values=[[]] * count,
    )


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return Dataset(
        features=rng.normal(size=(ITEMS, 2)).astype(np.float32),
        item_ids=tuple(map(str, range(ITEMS))),
        texts=tuple(map(str, range(ITEMS))),
        prompts=("which",),
        item_prompt=np.zeros(ITEMS, np.int32),
        groups=("all",),
        users={split: people(split, count, rng) for split, count in USERS.items()},
        embedding=Embedding("random"),
    )


@pytest.fixture(scope="module")
def task(data):
    return FoldedPeople(
        pool(data),
        batch_size=4,
        max_context=N,
        num_targets=M,
        test_context=N,
        test_targets=M,
        min_choices=LEAST,
        train_on=CHOICES,
        num_folds=FOLDS,
    )


def test_everybody_of_train_and_valid_is_scored_once(task):
    lengths = np.concatenate([np.arange(USERS[s]) % 7 + 1 for s in (TRAIN, VALID)])
    assert (task.data.users[VALID].chosen.lengths == lengths).all()
    scored = np.concatenate([task.scored(fold) for fold in range(FOLDS)])
    assert sorted(scored) == np.flatnonzero(lengths > N).tolist()
    sizes = [len(task.scored(fold)) for fold in range(FOLDS)]
    assert max(sizes) - min(sizes) <= 1
    assert not any(name.startswith(TEST) for name in task.data.users[TRAIN].names)


def test_nobody_is_trained_on_who_is_scored(task):
    enough = np.flatnonzero(task.data.users[TRAIN].chosen.lengths >= LEAST)
    for fold in range(FOLDS):
        trained = task.trained(fold)
        assert sorted(trained) == enough[task.fold[enough] != fold].tolist()
        assert not set(trained) & set(task.scored(fold))


def test_at_most_so_many_are_scored(task):
    few = dataclasses.replace(task, max_scored=5)
    scored = [user for fold in range(FOLDS) for user in few.scored(fold)]
    assert len(set(scored)) == 5
    assert set(scored) < set(task.users(VALID).tolist())
    assert few.users(TRAIN).tolist() == task.users(TRAIN).tolist()


def test_popularity_is_that_among_people_of_other_folds(task):
    for fold in range(FOLDS):
        wins, losses = np.ones((2, ITEMS))
        for user in np.flatnonzero(task.fold != fold):
            np.add.at(wins, task.data.users[TRAIN].chosen[user], 1)
            np.add.at(losses, task.data.users[TRAIN].rejected[user], 1)
        found = task.constants_without(fold)["popularity"]
        np.testing.assert_allclose(found, np.log(wins / losses), rtol=1e-5)
    assert not np.allclose(found, popularity(task.data))


def test_flipped_contexts_are_of_somebody_else_of_the_fold(task):
    table = task.data.users[VALID]

    def choices_of(user):
        return set(zip(table.chosen[user], table.rejected[user], strict=True))

    draw = jax.jit(
        lambda user, key: task.test_episode(task.constants, VALID, user, key)
    )
    others = set()
    for user in task.users(VALID):
        for seed in range(6):
            test = draw(user, jax.random.key(seed))
            both = (test.flipped.chosen.item, test.flipped.rejected.item)
            shown = set(zip(*map(np.asarray, both), strict=True))
            same = task.scored(task.fold[user])
            found = {other for other in same if shown <= choices_of(other)}
            assert len(shown) == test.flipped.mask.sum() == N
            assert found - {user}
            others |= {(user, other) for other in found - {user}}
            own = test.episode.context
            pairs = zip(
                *map(np.asarray, (own.chosen.item, own.rejected.item)), strict=True
            )
            assert set(pairs) <= choices_of(user)
    assert len(others) > 2 * len(task.users(VALID))


def rated(data, rng):
    """The same people with ratings of 3 items instead; the first one rated all."""

    def table(users):
        sizes = [3] * len(users.names)
        sizes[0] = ITEMS
        return UserTable.of(
            users.names,
            users.group,
            chosen=[[]] * len(sizes),
            rejected=[[]] * len(sizes),
            items=[rng.permutation(ITEMS)[:size] for size in sizes],
            values=[rng.permutation(ITEMS)[:size] for size in sizes],
        )

    users = {split: table(users) for split, users in data.users.items()}
    return dataclasses.replace(data, users=users)


@pytest.mark.parametrize(
    "source", [CHOICES, pytest.param(RATINGS, marks=pytest.mark.slow)]
)
def test_episodes_are_those_of_the_same_people_without_folds(data, task, source):
    """Only the flipped context and who is drawn differ, not a person's own episode."""
    if source == RATINGS:
        data = rated(data, np.random.default_rng(1))
    settings = {
        field.name: getattr(task, field.name) for field in dataclasses.fields(People)
    }
    settings |= {"data": pool(data), "train_on": source, "test_context": 0}
    plain = People(**settings)
    folded = FoldedPeople(**settings, num_folds=FOLDS, max_scored=9)
    users = folded.users(VALID)
    assert len(users) == 9 and set(users) < set(plain.users(VALID).tolist())
    keys = jax.random.split(jax.random.key(0), len(users))

    # Popularity, by which ratings are paired, is that of the other folds' people.
    constants = {"popularity": folded.popularity_without(0)}

    def drawn(task):
        def episodes(constants, users, keys):
            train = jax.vmap(lambda *x: task.train_episode(constants, *x))
            test = jax.vmap(lambda *x: task.test_episode(constants, VALID, *x))
            return train(users, keys), test(users, keys).episode

        return jax.jit(episodes)({**task.constants, **constants}, users, keys)

    jax.tree.map(np.testing.assert_array_equal, drawn(plain), drawn(folded))


def test_people_in_two_splits_are_refused(data):
    twice = {**data.users, VALID: data.users[TRAIN]}
    with pytest.raises(InputError, match="'train 0'"):
        pool(dataclasses.replace(data, users=twice))
