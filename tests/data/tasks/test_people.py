"""Episodes of real people, on a small table made here."""

import dataclasses
import functools
import tracemalloc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsa import episodes
from fsa.data.dataset import Dataset, Embedding
from fsa.data.ragged import Ragged
from fsa.data.tasks import people, windows
from fsa.data.tasks.people import CHOICES, RATINGS, People, popularity
from fsa.data.tasks.task import TEST, TRAIN, VALID
from fsa.data.users import UserTable
from fsa.episodes import Episode
from fsa.errors import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")

ITEMS, F, N, M = 19, 3, 3, 2  # items, features, most context, most targets
SIZES = dict(batch_size=5, max_context=N, num_targets=M, test_context=2, test_targets=M)
# Choices of the training users; the first four make fewer than three.
COUNTS = (0, 1, 2, 2, 3, 4, 5, 6, 7, 7, 3)


def user_table(users):
    """From (group, [(chosen, rejected)], [(item, value)]) of each user."""

    def column(entries, index):
        return [[entry[index] for entry in user] for user in entries]

    groups, choices, ratings = zip(*users, strict=True)
    return UserTable.of(
        [f"user {i}" for i in range(len(users))],
        groups,
        chosen=column(choices, 0),
        rejected=column(choices, 1),
        items=column(ratings, 0),
        values=column(ratings, 1),
    )


def preference_data(features, prompt, users):
    size = len(features)
    return Dataset(
        features=np.asarray(features, np.float32),
        item_ids=tuple(f"item {i}" for i in range(size)),
        texts=tuple(f"text {i}" for i in range(size)),
        prompts=tuple(f"prompt {i}" for i in range(max(prompt) + 1)),
        item_prompt=np.array(prompt, np.int32),
        groups=("left", "right"),
        users={split: user_table(of_split) for split, of_split in users.items()},
        embedding=Embedding("random"),
    )


def some_users(rng, counts, items):
    """Users with so many choices between `items`, who rated most of them."""
    users = []
    for user, count in enumerate(counts):
        pairs = [tuple(rng.choice(items, 2, replace=False)) for _ in range(count)]
        rated = rng.permutation(items)[: 9 + user % 4]
        votes = [(item, rng.integers(-1, 2)) for item in rated]
        users.append((user % 2, list(dict.fromkeys(pairs)), votes))
    return users


@pytest.fixture(scope="module")
def data():
    """11 training users; the last two items are known to test users alone."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(ITEMS, F))
    features[:, 1] = 3.0
    features[-2:] = 1e6
    return preference_data(
        features,
        prompt=[i % 2 for i in range(ITEMS)],
        users={
            TRAIN: some_users(rng, COUNTS, np.arange(ITEMS - 2)),
            VALID: some_users(rng, (4, 3), np.arange(ITEMS)),
            TEST: some_users(rng, (5, 2, 7), np.arange(ITEMS)),
        },
    )


@pytest.fixture(scope="module")
def from_ratings(data):
    return People(data, **SIZES)


@pytest.fixture(scope="module")
def from_choices(data):
    return People(data, **SIZES, train_on=CHOICES, min_choices=3)


def hand_made():
    """Two training users, whose popularity can be worked out by hand."""
    users = [
        (0, [], [(0, 1.0), (1, 0.0), (2, -1.0)]),
        # A tie within prompt 0, and nothing to compare item 3 with.
        (0, [(1, 0), (2, 0)], [(0, 1.0), (1, 1.0), (3, -1.0)]),
    ]
    others = [(0, [(3, 0)] * 5, [(3, 9.0), (0, -9.0)])]
    return preference_data(
        np.eye(4), [0, 0, 0, 1], {TRAIN: users, VALID: others, TEST: others}
    )


def test_popularity_by_hand():
    # Shares of comparisons of ratings won and lost, plus choices won and lost.
    wins = np.array([2 / 2, 1 / 2 + 1, 0 + 1, 0])
    losses = np.array([0 + 2, 1 / 2, 2 / 2, 0])
    expected = np.log((wins + 1) / (losses + 1))
    found = popularity(hand_made())
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
    # Only item 0 above item 2 is further apart than 1.5.
    wins, losses = np.array([1, 1, 1, 0]), np.array([2, 0, 1, 0])
    expected = np.log((wins + 1) / (losses + 1))
    np.testing.assert_allclose(popularity(hand_made(), 1.5), expected, rtol=1e-6)


def test_popularity_of_votes_is_the_odds_of_agreement(data):
    """Of agree and disagree alone, whatever the number of passes."""
    agree, other = 5, 2
    voters = [(0, [], [(0, 1.0), (1, -1.0), (2, 0.0)])] * agree
    voters += [(0, [], [(0, -1.0), (1, 1.0)])] * other
    users = {TRAIN: voters, VALID: voters, TEST: voters}
    found = popularity(preference_data(np.eye(3), [0, 0, 0], users))
    expected = np.log((agree + 1) / (other + 1))
    np.testing.assert_allclose(found, [expected, -expected, 0], atol=1e-6)


def popularity_by_comparing_all(data, min_margin):
    """As defined: every rating is compared with every other one of its user."""
    users = data.users[TRAIN]
    wins, losses = np.zeros((2, len(data.features)))
    for items, values in zip(users.items, users.values, strict=True):
        margin = values[:, None] - values
        prompt = data.item_prompt[items]
        same = prompt[:, None] == prompt
        won = ((margin > min_margin) & same).sum(1)
        lost = ((margin < -min_margin) & same).sum(1)
        np.add.at(wins, items, won / np.maximum(won + lost, 1))
        np.add.at(losses, items, lost / np.maximum(won + lost, 1))
    np.add.at(wins, users.chosen.flat, 1.0)
    np.add.at(losses, users.rejected.flat, 1.0)
    return np.log((wins + 1) / (losses + 1)).astype(np.float32)


@pytest.mark.parametrize("min_margin", [0.0, 0.1, 0.2, 1.0])
@pytest.mark.parametrize("scale", [1, 0.1, 1e-9])
def test_popularity_is_bit_for_bit_that_of_all_comparisons(min_margin, scale):
    """With ties, margins that rounding decides, and users who rated nothing."""
    rng = np.random.default_rng(0)

    def ratings():
        rated = rng.permutation(40)[: rng.choice([0, 1, 2, 30])]
        values = scale * rng.integers(-4, 5, len(rated))
        return list(zip(rated, values + rng.choice([0, 0.1, 0.3]), strict=True))

    users = [(0, [(1, 2)] * int(rng.integers(3)), ratings()) for _ in range(25)]
    data = preference_data(
        np.eye(40),
        rng.integers(0, 3, 40).tolist(),
        dict.fromkeys((TRAIN, VALID, TEST), users),
    )
    found = popularity(data, min_margin)
    assert np.array_equal(found, popularity_by_comparing_all(data, min_margin))


def test_statistics_are_of_the_items_that_training_users_saw(data, from_ratings):
    mean, std = from_ratings.statistics()
    users = data.users[TRAIN]
    assert set(users.items.flat) == set(range(ITEMS - 2))
    features = data.features[: ITEMS - 2].astype(np.float64)
    np.testing.assert_allclose(mean, features.mean(0), atol=1e-6)
    np.testing.assert_allclose(std[[0, 2]], features.std(0)[[0, 2]], rtol=1e-5)
    # The constant feature is not divided by nothing.
    assert std[1] == 1


def test_sizes(data, from_ratings):
    assert from_ratings.num_features == F
    assert from_ratings.num_items == ITEMS
    assert from_ratings.groups == ("left", "right")
    assert not from_ratings.flips_are_types
    assert from_ratings.bayes_log_prob(None, None) is None


def test_users_with_enough_choices(from_choices):
    counts = np.array(COUNTS)
    assert from_choices.users(TRAIN).tolist() == np.flatnonzero(counts >= 3).tolist()
    # A test context of two, and one to predict.
    assert from_choices.users(VALID).tolist() == [0, 1]
    assert from_choices.users(TEST).tolist() == [0, 2]


def epochs(task, count):
    """The users of `count` epochs, in the order in which steps see them."""
    size, batch = len(task.users(TRAIN)), SIZES["batch_size"]
    steps = -(-count * size // batch)
    users = np.concatenate([task.training_users(step) for step in range(steps)])
    return users[: count * size].reshape(count, size)


def test_every_epoch_is_a_fresh_order_of_all_users(from_choices):
    found = epochs(from_choices, 5)
    # 7 users in batches of 5: epochs begin within a batch.
    assert found.shape == (5, 7)
    for epoch in found:
        assert sorted(epoch) == from_choices.users(TRAIN).tolist()
    assert len(np.unique(found, axis=0)) > 1


def test_batches_depend_on_seed_and_step_alone(data, from_choices):
    again, other = (dataclasses.replace(from_choices, seed=seed) for seed in (0, 1))
    # Any step on its own, however late and in whatever order.
    for step in (1000, 3, 0):
        users = from_choices.training_users(step)
        assert users.dtype == np.int32 and users.shape == (5,)
        assert np.array_equal(again.training_users(step), users)
    assert not np.array_equal(epochs(other, 3), epochs(from_choices, 3))


def test_a_batch_larger_than_an_epoch(from_choices):
    task = dataclasses.replace(from_choices, batch_size=17)
    users = task.users(TRAIN)
    together = np.concatenate([task.training_users(step) for step in range(7)])
    counts = np.bincount(together, minlength=len(COUNTS))[users]
    assert counts.tolist() == [17] * 7


@functools.cache
def training_program(task):
    """The training draws of a task, compiled once."""
    draw = jax.vmap(task.train_episode, in_axes=(None, 0, 0))
    return jax.jit(draw)


def trained_on(task, seed=1, draws=200):
    """Users and their training episodes, [draws] each."""
    users = np.resize(task.users(TRAIN), draws)
    keys = jax.random.split(jax.random.key(seed), draws)
    return users, jax.tree.map(
        np.asarray, training_program(task)(task.constants, users, keys)
    )


def pairs_of(choices, example):
    """Item pairs (chosen, rejected) of one episode's real choices."""
    mask = choices.mask[example]
    chosen, rejected = (
        choices.chosen.item[example][mask],
        choices.rejected.item[example][mask],
    )
    return list(zip(chosen.tolist(), rejected.tolist(), strict=True))


def assert_features_are_of_the_items(data, episodes):
    for choices in (episodes.context, episodes.target):
        for options in (choices.chosen, choices.rejected):
            real = options.item >= 0
            assert np.array_equal(real, choices.mask)
            expected = np.where(real[..., None], data.features[options.item], 0)
            assert np.array_equal(options.features, expected)


def test_episodes_of_choices_are_from_the_users_own_table(data, from_choices):
    users, found = trained_on(from_choices)
    assert_features_are_of_the_items(data, found)
    table = data.users[TRAIN]
    sizes = set()
    for example, user in enumerate(users):
        own = set(zip(table.chosen[user], table.rejected[user], strict=True))
        context, target = (
            pairs_of(found.context, example),
            pairs_of(found.target, example),
        )
        assert set(context + target) <= own
        assert len(set(context + target)) == len(context) + len(target)
        assert len(target) >= 1
        sizes.add(len(context))
        assert found.group[example] == table.group[user]
    assert sizes == {0, 1, 2, 3}


def test_episodes_of_ratings_are_pairs_the_user_would_have_chosen(data, from_ratings):
    users, found = trained_on(from_ratings)
    assert_features_are_of_the_items(data, found)
    table = data.users[TRAIN]
    drawn = set()
    for example, user in enumerate(users):
        value = dict(zip(table.items[user], table.values[user], strict=True))
        together = pairs_of(found.context, example) + pairs_of(found.target, example)
        used = [item for pair in together for item in pair]
        assert len(set(used)) == len(used)
        for chosen, rejected in together:
            assert value[chosen] > value[rejected]
            assert chosen % 2 == rejected % 2  # of one prompt
        drawn |= {(user, *pair) for pair in together}
    # Fresh pairs each time: more of them than one pairing of every user can hold.
    assert len(drawn) > len(set(users)) * 12 // 2


def test_training_replays_from_its_key(from_ratings):
    (_, first), (_, again), (_, other) = (
        trained_on(from_ratings, seed) for seed in (1, 1, 2)
    )
    assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(again)))
    differs = (first.target.chosen.item != other.target.chosen.item).any(1)
    assert differs.mean() > 0.5


@functools.cache
def scoring_program(task, split):
    """The test draws of a task, compiled once."""

    def draw(constants, users, key):
        return jax.vmap(lambda user: task.test_episode(constants, split, user, key))(
            users
        )

    return jax.jit(draw)


def scored(task, split, key):
    """The test episodes of all users of a split."""
    out = scoring_program(task, split)(task.constants, task.users(split), key)
    return jax.tree.map(np.asarray, out)


def test_test_episodes_of_choices(data, from_ratings):
    """People are scored on choices where there are any, though trained on votes."""
    drawn = []
    for seed in range(3):
        test = scored(from_ratings, TEST, jax.random.key(seed))
        assert_features_are_of_the_items(data, test.episode)
        context, target = test.episode.context, test.episode.target
        assert context.mask.all()
        table = data.users[TEST]
        for example, user in enumerate(from_ratings.users(TEST)):
            own = set(zip(table.chosen[user], table.rejected[user], strict=True))
            asked = pairs_of(context, example) + pairs_of(target, example)
            assert set(asked) <= own
            assert len(set(asked)) == len(asked)
            left = len(table.chosen[user]) - 2
            assert target.mask[example].sum() == min(M, left)
        assert np.array_equal(test.flipped.chosen.item, context.rejected.item)
        assert np.array_equal(test.flipped.rejected.item, context.chosen.item)
        assert np.array_equal(test.context_differs, context.mask)
        assert np.array_equal(test.target_differs, target.mask)
        drawn.append(context.chosen.item)
    assert not all(np.array_equal(drawn[0], other) for other in drawn)


def test_test_episodes_of_ratings_where_there_are_no_choices(data):
    table = data.users[TEST]
    nothing = Ragged.of([[], [], []], np.int32)
    without = dataclasses.replace(table, chosen=nothing, rejected=nothing)
    task = People(
        dataclasses.replace(data, users={**data.users, TEST: without}),
        **{**SIZES, "test_context": 1},
    )
    test = scored(task, TEST, jax.random.key(0))
    seen = 0
    for example, user in enumerate(task.users(TEST)):
        value = dict(zip(table.items[user], table.values[user], strict=True))
        for choices in (test.episode.context, test.episode.target):
            for chosen, rejected in pairs_of(choices, example):
                assert value[chosen] > value[rejected]
                seen += 1
    assert seen > 3


@pytest.fixture(scope="module")
def of_ratings(data):
    """Contexts are ratings as they are: -1, 0 or 1."""
    return People(data, **SIZES, context=RATINGS)


def ratings_of(context, example):
    """(item, level) of one episode's real context ratings."""
    mask = context.mask[example]
    level = context.kind[example][mask] - episodes.RATING
    return list(zip(context.first.item[example][mask].tolist(), level, strict=True))


def test_ratings_of_other_data_are_levels_of_the_model(data, of_ratings):
    """A level is the place among those of the model, which may know more of them."""
    known = (-2.0, -1.0, 0.0, 1.0, 5.0)
    other = People(data, **SIZES, context=RATINGS, known_levels=known)
    assert other.levels == known
    _, found = trained_on(other)
    _, own = trained_on(of_ratings)
    np.testing.assert_array_equal(found.context.mask, own.context.mask)
    mask = own.context.mask
    np.testing.assert_array_equal(found.context.kind[mask], own.context.kind[mask] + 1)
    with pytest.raises(InputError, match="`data`: has ratings of -1, and .* 0, 1, 2;"):
        People(data, **SIZES, context=RATINGS, known_levels=(0.0, 1.0, 2.0))
    # Contexts of choices have no levels, whatever the ratings are.
    assert People(data, **SIZES, known_levels=(7.0,)).levels == ()


def test_contexts_of_ratings_are_the_users_own(data, of_ratings):
    """Of items that are in no target, passes too, and in any number."""
    assert of_ratings.levels == (-1.0, 0.0, 1.0)
    users, found = trained_on(of_ratings)
    table, sizes, levels = data.users[TRAIN], set(), set()
    for example, user in enumerate(users):
        value = dict(zip(table.items[user], table.values[user], strict=True))
        rated = ratings_of(found.context, example)
        targets = pairs_of(found.target, example)
        items = [item for item, _ in rated]
        assert len(set(items)) == len(items)
        assert not set(items) & {item for pair in targets for item in pair}
        assert all(value[item] == level - 1 for item, level in rated)
        sizes.add(len(rated))
        levels |= {level for _, level in rated}
    assert sizes == {0, 1, 2, 3} and levels == {0, 1, 2}
    real = found.context.first.item >= 0
    assert np.array_equal(real, found.context.mask)
    expected = np.where(real[..., None], data.features[found.context.first.item], 0)
    assert np.array_equal(found.context.first.features, expected)


def test_held_out_people_are_scored_on_pairs_beside_their_ratings(data, of_ratings):
    """Though their split has choices, of which no ratings are known to be apart."""
    test = scored(of_ratings, TEST, jax.random.key(0))
    table, context = data.users[TEST], test.episode.context
    assert context.mask.all()
    for example, user in enumerate(of_ratings.users(TEST)):
        value = dict(zip(table.items[user], table.values[user], strict=True))
        rated = ratings_of(context, example)
        targets = pairs_of(test.episode.target, example)
        assert all(value[chosen] > value[rejected] for chosen, rejected in targets)
        items = {item for item, _ in rated}
        assert not items & {item for pair in targets for item in pair}
        flipped = ratings_of(test.flipped, example)
        assert [(i, 2 - level) for i, level in rated] == flipped
    assert np.array_equal(test.context_differs, context.kind != test.flipped.kind)


@pytest.mark.slow
def test_contexts_of_ratings_do_not_depend_on_padding(uneven, monkeypatch):
    sizes = SIZES | {"batch_size": 2, "test_context": 1}
    drawn = []
    for widths in ((HEAVY,), (7, HEAVY)):
        monkeypatch.setattr(windows, "widths", lambda lengths, together, w=widths: w)
        drawn.append(trained_on(People(uneven, **sizes, context=RATINGS), draws=30)[1])
    chex.assert_trees_all_equal(*drawn)


def test_ratings_that_cannot_be_contexts(data):
    with pytest.raises(InputError, match="train_on"):
        People(data, **SIZES, train_on=CHOICES, context=RATINGS)
    table = data.users[TRAIN]
    values = dataclasses.replace(
        table.values, flat=np.linspace(0, 1, len(table.values.flat), dtype=np.float32)
    )
    users = {**data.users, TRAIN: dataclasses.replace(table, values=values)}
    with pytest.raises(InputError, match="context"):
        People(dataclasses.replace(data, users=users), **SIZES, context=RATINGS)


def test_a_draw_without_a_pair_has_no_target():
    """Neighbours may happen to be valued alike; then nothing would be chosen."""
    liked = [{(item + user) % 8 for item in range(4)} for user in range(8)]
    voters = [
        (0, [], [(item, 1.0 if item in liked[user] else -1.0) for item in range(8)])
        for user in range(8)
    ]
    users = dict.fromkeys((TRAIN, VALID, TEST), voters)
    task = People(
        preference_data(np.eye(8), [0] * 8, users),
        **{**SIZES, "test_context": 0},
        pairing_noise=100.0,
    )
    trained, found = trained_on(task)
    sizes = set()
    for example, user in enumerate(trained):
        together = pairs_of(found.context, example) + pairs_of(found.target, example)
        for chosen, rejected in together:
            assert chosen in liked[user] and rejected not in liked[user]
        sizes.add(len(together))
    # Six orders of 70 leave none of four pairs.
    assert 0 in sizes and max(sizes) >= 2


@pytest.mark.parametrize(
    "change, field",
    [
        (dict(train_on=CHOICES, min_choices=8), "min_choices"),
        (dict(train_on=RATINGS, min_choices=8), "min_choices"),
        (dict(train_on=CHOICES, test_context=7), "test_context"),
    ],
)
def test_nobody_has_enough_choices(data, change, field):
    with pytest.raises(InputError, match=field) as error:
        People(data, **{**SIZES, **change})
    assert "\n" not in str(error.value)
    assert "8" in str(error.value)


@pytest.mark.parametrize("empty", [CHOICES, RATINGS])
def test_the_other_source_is_named_where_there_is_nothing_to_train_on(data, empty):
    none = Ragged(np.zeros(0, np.int32), np.zeros(len(COUNTS) + 1, np.int64))
    lists = {CHOICES: ("chosen", "rejected"), RATINGS: ("items", "values")}[empty]
    train = dataclasses.replace(data.users[TRAIN], **dict.fromkeys(lists, none))
    without = dataclasses.replace(data, users={**data.users, TRAIN: train})
    other = RATINGS if empty == CHOICES else CHOICES
    with pytest.raises(InputError, match=f"`train_on` to {other}"):
        People(without, **SIZES, train_on=empty)


@pytest.mark.parametrize("split", [TRAIN, VALID, TEST])
def test_a_split_without_people_is_named(data, split):
    nobody = UserTable.of([], [], chosen=[], rejected=[], items=[], values=[])
    without = dataclasses.replace(data, users={**data.users, split: nobody})
    for source in (CHOICES, RATINGS):
        with pytest.raises(InputError, match=f"split {split}"):
            People(without, **SIZES, train_on=source)


HEAVY = 60  # Choices, and ratings, of one user of each split; the others have few.


@pytest.fixture(scope="module")
def uneven():
    """Users with few choices and ratings, and in each split one with many."""
    rng = np.random.default_rng(1)
    items = 90

    def users(counts):
        return [
            (
                0,
                [tuple(rng.choice(items, 2, replace=False)) for _ in range(count)],
                list(
                    zip(
                        rng.permutation(items)[:count],
                        rng.integers(-1, 2, count),
                        strict=True,
                    )
                ),
            )
            for count in counts
        ]

    return preference_data(
        rng.normal(size=(items, F)),
        [i % 2 for i in range(items)],
        {
            TRAIN: users([3, 0, 4, HEAVY, 5, 6, 2, 4]),
            VALID: users([4, HEAVY, 5]),
            TEST: users([6, 3, 4, HEAVY]),
        },
    )


def padded_episode(task, split, user, key, n, sizes, first_target):
    """An episode drawn from lists that are padded to the longest of the split."""
    constants, users = task.constants, task.data.users[split]
    pair_key, split_key = jax.random.split(key)
    if task.train_on == CHOICES:
        chosen, rejected = (x.pad(-1)[user] for x in (users.chosen, users.rejected))
        mask = chosen >= 0
    else:
        items = users.items.pad(-1)[user]
        first, second, mask = pair_ratings(
            pair_key,
            users.values.pad(0)[user],
            constants["popularity"][items],
            constants["prompt"][items],
            items >= 0,
            noise=task.pairing_noise,
        )
        chosen, rejected = items[first], items[second]
    parts = split_choices(
        split_key,
        mask,
        n,
        max_context=sizes[0],
        max_targets=sizes[1],
        first_target=first_target,
    )
    found = [
        gather(constants["features"], (chosen, rejected), *part)
        for part in (
            (parts.context, parts.context_mask),
            (parts.target, parts.target_mask),
        )
    ]
    return Episode(*found, jnp.asarray(users.group)[user])


pair_ratings = jax.jit(episodes.pair_ratings, static_argnames="noise")
gather = jax.jit(episodes.gather)
split_choices = jax.jit(
    episodes.split, static_argnames=("max_context", "max_targets", "first_target")
)


@pytest.mark.parametrize(
    ("widths", "source"),
    [
        ((7, HEAVY), CHOICES),
        pytest.param((7, HEAVY), RATINGS, marks=pytest.mark.slow),
        *(
            pytest.param(widths, source, marks=pytest.mark.slow)
            for source in (CHOICES, RATINGS)
            for widths in (None, (HEAVY,), (6, 20, 100))
        ),
    ],
)
def test_episodes_do_not_depend_on_padding(uneven, monkeypatch, source, widths):
    """Bit for bit those of padded lists, however wide windows onto the lists are."""
    if widths:
        monkeypatch.setattr(windows, "widths", lambda lengths, together: widths)
    data = uneven
    if source == RATINGS:
        none = Ragged.of([[]] * 4, np.int32)
        test = dataclasses.replace(data.users[TEST], chosen=none, rejected=none)
        data = dataclasses.replace(data, users={**data.users, TEST: test})
    sizes = SIZES | {"batch_size": 2, "test_context": 1}
    task = People(data, **sizes, train_on=source, pairing_noise=1.0)
    users, found = trained_on(task, draws=30)
    # Batches with and without the heavy user: both widths of windows are used.
    keys = jax.random.split(jax.random.key(1), 30)
    few = users != 3
    assert few.any() and not few.all()
    of_few = training_program(task)(task.constants, users[few], keys[few])
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[few], found), of_few)
    for example in range(0, 30, 3):
        size_key, key = jax.random.split(keys[example])
        n = jax.random.randint(size_key, (), 0, N + 1)
        wanted = padded_episode(task, TRAIN, users[example], key, n, (N, M), None)
        own = jax.tree.map(lambda x, i=example: x[i], found)
        chex.assert_trees_all_equal(own, jax.tree.map(np.asarray, wanted))
    test = scored(task, TEST, jax.random.key(2))
    for example, user in enumerate(task.users(TEST)):
        key = jax.random.fold_in(jax.random.key(2), user)
        wanted = padded_episode(task, TEST, user, key, 1, (1, M), 1)
        own = jax.tree.map(lambda x, i=example: x[i], test.episode)
        chex.assert_trees_all_equal(own, jax.tree.map(np.asarray, wanted))


@pytest.mark.slow
def test_the_number_of_pairs_does_not_depend_on_padding(uneven, monkeypatch):
    counts = []
    for widths in ((HEAVY,), (3, HEAVY), (4, 6, 99)):
        monkeypatch.setattr(people, "_SORTED_WHILE_COMPILING", 0)
        monkeypatch.setattr(windows, "widths", lambda lengths, together, w=widths: w)
        task = People(uneven, **SIZES | {"test_context": 1})
        counts.append([len(task.users(split)) for split in (TRAIN, VALID, TEST)])
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][0] < 8


@pytest.mark.slow
def test_memory_grows_with_the_choices_not_with_the_heaviest_user():
    """Of arrays on the device and, at its peak, on the host."""
    users, heavy = 3000, 4000
    rng = np.random.default_rng(0)
    lengths = np.full(users, 4)
    lengths[7] = heavy
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate([rng.permutation(heavy)[:size] for size in lengths])
    table = UserTable(
        names=tuple(map(str, range(users))),
        group=np.zeros(users, np.int32),
        chosen=Ragged(items.astype(np.int32), offsets),
        rejected=Ragged(np.roll(items, 1).astype(np.int32), offsets),
        items=Ragged(items.astype(np.int32), offsets),
        values=Ragged(rng.normal(size=len(items)).astype(np.float32), offsets),
    )
    data = dataclasses.replace(
        preference_data(rng.normal(size=(heavy, F)), [0] * heavy, {}),
        users=dict.fromkeys((TRAIN, VALID, TEST), table),
    )
    for source in (CHOICES, RATINGS):
        task = People(data, **SIZES, train_on=source)
        tracemalloc.start()
        on_device = sum(x.nbytes for x in jax.tree.leaves(task.constants))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        entries = len(items)
        assert on_device < 3 * (3 * 4 * entries) + 4 * (F + 2) * heavy + 24 * users * 3
        # Padded, a list would take 48 MB; compared with all others, ratings 16 MB.
        assert peak < 5e6
