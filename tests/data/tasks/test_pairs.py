"""Batches for policies: disjoint, keyed by step and position, padded unnoticed."""

import dataclasses

import jax
import numpy as np
import pytest

from fsa.data.collect import collect
from fsa.data.ragged import Ragged
from fsa.data.scored_responses import Responses
from fsa.data.tables import Choice
from fsa.data.tasks import packing
from fsa.data.tasks.pairs import PairTask
from fsa.errors import InputError
from fsa.language.token_table import TokenTable

NUM_PROMPTS, F = 12, 5


def some_data(users=None, prompts=NUM_PROMPTS):
    """Users of two groups, who choose once on each prompt."""
    users = users or {"train": 6, "valid": 2, "test": 3}
    rows = [
        Choice(
            f"{split}{u}",
            f"prompt {p}",
            f"good {p} {u % 3}",
            f"bad {p} {u % 3}",
            split,
            "ab"[u % 2],
        )
        for split, count in users.items()
        for u in range(count)
        for p in range(prompts)
    ]
    return collect(rows, [])


def some_responses(data, unusable=()):
    """Responses whose tokens and scores name the item."""
    count = len(data.texts)
    items = [([100 + i] * (3 + i % 4), 2) for i in range(count)]
    for i in unusable:
        items[i] = ([], 0)
    rng = np.random.default_rng(0)
    return Responses(
        TokenTable.of(items),
        -np.arange(count, dtype=np.float32),
        rng.normal(2, 3, (count, F)).astype(np.float32),
        {},
        "key",
    )


def make(data=None, responses=None, **options):
    data = data or some_data()
    defaults = dict(
        batch_size=4,
        max_context=5,
        num_targets=3,
        test_context=6,
        test_targets=4,
        buckets=(4, 8),
        seed=0,
    )
    return PairTask(data, responses or some_responses(data), **(defaults | options))


def items_of(task, batch):
    """Items `[B, M, 2]` of a batch's targets by their tokens, and of its contexts."""
    tokens = batch.responses.tokens[..., 0]
    target = np.where(tokens > 0, tokens - 100, -1)
    features = task.responses.features

    def lookup(options, mask):
        gaps = np.abs(options.features[..., None, :] - features).sum(-1)
        return np.where(mask, gaps.argmin(-1), -1)

    context = batch.episode.context
    pairs = [lookup(side, context.mask) for side in (context.chosen, context.rejected)]
    return target, np.stack(pairs, axis=-1)


def test_context_and_targets_are_the_users_own_and_of_different_prompts():
    task = make()
    sizes = set()
    for step in range(40):
        batch = task.train_batch(step)
        target, context = items_of(task, batch)
        for example in range(4):
            table = task.data.users["train"]
            user = batch.user[example]
            own = set(zip(table.chosen[user], table.rejected[user], strict=True))
            shown = [tuple(p) for p in context[example] if p[0] >= 0]
            asked = [tuple(p) for p in target[example] if p[0] >= 0]
            assert set(shown) | set(asked) <= own
            assert len(set(shown)) == len(shown) and len(set(asked)) == len(asked) == 3
            prompts = task.data.item_prompt
            assert not {prompts[a] for a, _ in shown} & {prompts[a] for a, _ in asked}
            assert batch.episode.group[example] == table.group[user]
            sizes.add(len(shown))
    assert sizes == set(range(6))


def test_contexts_have_as_many_choices_as_are_asked_for():
    task = make(min_context=3)
    batches = [task.train_batch(step) for step in range(40)]
    sizes = np.concatenate([b.episode.context.mask.sum(-1) for b in batches])
    assert set(sizes.tolist()) == {3, 4, 5}


def test_any_pairs_are_of_one_prompt_each_and_need_no_choice():
    """Pairs of responses that no user was asked about are among them."""
    task = make(any_pairs=True, max_context=0)
    plain = make(max_context=0)
    prompts, table = task.data.item_prompt, task.data.users["train"]
    sides = zip(table.chosen.flat, table.rejected.flat, strict=True)
    asked = {pair for a, b in sides for pair in ((a, b), (b, a))}
    trained = set(plain._choices["train"].flat.flat)
    found, seen = set(), set()
    for step in range(40):
        target, _ = items_of(task, task.train_batch(step))
        for a, b in target.reshape(-1, 2).tolist():
            assert a != b and prompts[a] == prompts[b] and {a, b} <= trained
            found.add((a, b))
            seen.add(int(prompts[a]))
    assert found - asked and found & asked
    assert len(seen) == NUM_PROMPTS


def with_free_responses():
    """Data with eight more items, of which four differ, and their responses.

    They are of two prompts, of which one nobody was asked about; in it all are the same
    tokens. One of the other four was rated.
    """
    data, more = some_data(), 8
    count = len(data.texts)
    train = data.users["train"]
    rated = Ragged.of([[count], *[[]] * (len(train) - 1)], np.int32)
    data = dataclasses.replace(
        data,
        users={**data.users, "train": dataclasses.replace(train, items=rated)},
        item_ids=(*data.item_ids, *(f"free {i}" for i in range(more))),
        texts=(*data.texts, *(f"free {i}" for i in range(more))),
        prompts=(*data.prompts, "another"),
        item_prompt=np.append(data.item_prompt, [0] * 4 + [NUM_PROMPTS] * 4),
    )
    plain = some_responses(data)
    items = [(plain.tokens[i], plain.tokens.start[i]) for i in range(count)]
    items += [([100 + i] * 3, 2) for i in range(count, count + 4)]
    items += [([7] * 5, 2)] * 4
    return data, dataclasses.replace(plain, tokens=TokenTable.of(items))


def test_any_pairs_are_of_responses_without_choices_where_there_are_some():
    data, responses = with_free_responses()
    count = len(some_data().texts)
    task = make(data, responses, any_pairs=True)
    found = {i for s in range(20) for i in items_of(task, task.train_batch(s))[0].flat}
    assert found == {*range(count + 1, count + 4)} and task.num_free == 3
    # Those who test have the same targets as without.
    own, other = task.test_batch("test", [0], 0), make().test_batch("test", [0], 0)
    np.testing.assert_array_equal(own.responses.tokens, other.responses.tokens)
    assert make(any_pairs=True).num_free == 0
    packed = make(data, responses, any_pairs=True, packed=True)
    assert packed.packing.longest == 2 * 3


def test_any_pairs_have_features_in_the_range_of_choices():
    """One strange response would have more reward than all others."""
    data, responses = with_free_responses()
    features = responses.features.copy()
    free = np.arange(len(some_data().texts), len(features))
    features[free, 0] *= 1000
    responses = dataclasses.replace(responses, features=features)
    task = make(data, responses, any_pairs=True)
    # Of the items, those of people who test are not known in training.
    asked = np.unique(data.users["train"].chosen.flat)
    asked = np.union1d(asked, data.users["train"].rejected.flat)
    low, high = features[asked].min(0), features[asked].max(0)
    assert (np.abs(features[free, 0]) > np.abs([low[0], high[0]]).max()).any()
    for step in range(3):
        batch = task.train_batch(step)
        items, _ = items_of(task, batch)
        target = batch.episode.target
        found = np.stack([target.chosen.features, target.rejected.features], -2)
        np.testing.assert_array_equal(found, np.clip(features[items], low, high))
        plain = make(data, responses).train_batch(step)
        jax.tree.map(
            np.testing.assert_array_equal, batch.episode.context, plain.episode.context
        )


def test_of_candidates_the_pair_is_taken_whose_rewards_differ_most():
    plain = make(any_pairs=True)
    trained = plain._choices["train"].flat.flat
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=(len(plain.data.texts), 3))
    # The largest difference of all, which is 0 on average over people.
    prompt = plain.data.item_prompt
    first, second = trained[prompt[trained] == 4][:2]
    rewards[first], rewards[second] = (9, 0, -9), (-9, 0, 9)

    def gaps(candidates, steps):
        task = dataclasses.replace(plain, rewards=rewards, candidates=candidates)
        batches = [task.train_batch(step) for step in range(steps)]
        items = np.concatenate([items_of(task, b)[0].reshape(-1, 2) for b in batches])
        assert (prompt[items[:, 0]] == prompt[items[:, 1]]).all()
        assert (items[:, 0] != items[:, 1]).all()
        return np.square(rewards[items[:, 0]] - rewards[items[:, 1]]).mean(1)

    assert gaps(1, 20).mean() < 0.8 * gaps(4, 20).mean()
    largest = np.square(rewards[first] - rewards[second]).mean()
    # So many that the largest difference is among them.
    np.testing.assert_allclose(gaps(2000, 2), largest)


def test_any_pairs_leave_contexts_and_tests_as_they_are():
    task, plain = make(any_pairs=True), make()
    for step in range(3):
        own, other = task.train_batch(step), plain.train_batch(step)
        jax.tree.map(
            np.testing.assert_array_equal, own.episode.context, other.episode.context
        )
    own, other = (x.test_batch("test", [0, 1], 0) for x in (task, plain))
    jax.tree.map(np.testing.assert_array_equal, own, other)


def test_choices_between_the_same_tokens_are_left_out():
    """As a template, or a cut, makes them of different texts."""
    data = some_data()
    table = data.users["train"]
    chosen, rejected = (int(side.flat[0]) for side in (table.chosen, table.rejected))
    plain = some_responses(data)
    items = [(plain.tokens[i], plain.tokens.start[i]) for i in range(len(data.texts))]
    items[rejected] = items[chosen]
    responses = dataclasses.replace(plain, tokens=TokenTable.of(items))
    equal = {chosen, rejected}
    task, whole = make(data, responses), make(data)
    count = 0
    for split, users in data.users.items():
        sides = zip(users.chosen.flat, users.rejected.flat, strict=True)
        same = sum({int(a), int(b)} == equal for a, b in sides)
        lost = len(whole.differences(split)[0]) - len(task.differences(split)[0])
        assert lost == same
        count += same
    assert (task.num_equal, whole.num_equal) == (count, 0) and count > 0


def test_tokens_of_the_first_targets():
    full, part = make().train_batch(3), make(num_pairs=2).train_batch(3)
    jax.tree.map(np.testing.assert_array_equal, part.episode, full.episode)
    np.testing.assert_array_equal(part.reference, full.reference[:, :2])
    length = part.responses.tokens.shape[-1]
    np.testing.assert_array_equal(
        part.responses.tokens, full.responses.tokens[:, :2, :, :length]
    )
    np.testing.assert_array_equal(part.responses.stop, full.responses.stop[:, :2])


def test_targets_carry_their_reference_and_features():
    task = make()
    batch = task.train_batch(3)
    target, _ = items_of(task, batch)
    np.testing.assert_array_equal(batch.reference, -target)
    features = task.responses.features[target]
    np.testing.assert_array_equal(
        batch.episode.target.chosen.features, features[..., 0, :]
    )
    np.testing.assert_array_equal(
        batch.episode.target.rejected.features, features[..., 1, :]
    )
    np.testing.assert_array_equal(
        batch.responses.stop, task.responses.tokens.length[target]
    )


def test_an_example_depends_on_seed_step_and_position_alone():
    a, b = make().train_batch(7), make().train_batch(7)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    half = make(batch_size=2)
    for part, step in ((slice(0, 2), 0), (slice(2, 4), 1)):
        # The order of users does not depend on the batch size.
        np.testing.assert_array_equal(
            make().train_batch(0).user[part], half.train_batch(step).user
        )
    other = make(seed=1).train_batch(7)
    assert (other.user != a.user).any() or (other.reference != a.reference).any()


def test_some_examples_are_those_of_the_complete_batch():
    """They are padded to its length, whatever their own lengths are."""
    task = make()
    for step in range(8):
        full = task.train_batch(step)
        for positions in ([0], [1, 3], [2, 3]):
            some = task.train_batch(step, np.array(positions, np.int32))
            assert some.position.tolist() == positions
            for own, each in zip(*map(jax.tree.leaves, (some, full)), strict=True):
                np.testing.assert_array_equal(own, each[positions])


def test_an_epoch_has_every_user_once():
    task = make(batch_size=3)
    first = np.concatenate([task.train_batch(step).user for step in (0, 1)])
    second = np.concatenate([task.train_batch(step).user for step in (2, 3)])
    assert sorted(first) == sorted(second) == list(range(6))


def test_test_contexts_face_the_same_targets_whatever_the_model():
    batch = make().test_batch("test", [0, 1, 2], 0)
    same = make(seed=5, batch_size=1).test_batch("test", [0, 1, 2], 0)
    jax.tree.map(np.testing.assert_array_equal, batch, same)
    assert batch.episode.context.mask.sum() == 3 * 6
    assert batch.episode.target.mask.sum() == 3 * 4
    other = make().test_batch("test", [0, 1, 2], 1)
    assert (batch.reference != other.reference).any()
    # A user's episode does not depend on who else is in the batch.
    alone = make().test_batch("test", [1], 0)
    np.testing.assert_array_equal(batch.reference[1:2], alone.reference)


def test_the_padded_length_is_the_least_into_which_the_batch_fits():
    data = some_data()
    responses = some_responses(data)
    short = dataclasses.replace(
        responses,
        tokens=TokenTable.of([([7, 7, i], 1) for i in range(len(data.texts))]),
    )
    assert make(data, short).train_batch(0).responses.tokens.shape == (4, 3, 2, 4)
    assert make(data, responses).train_batch(0).responses.tokens.shape[-1] == 8


def test_choices_of_unusable_responses_are_left_out():
    data = some_data()
    item = data.users["train"].chosen[0][0]
    task = make(data, some_responses(data, unusable=[item]))
    for step in range(20):
        assert item not in items_of(task, task.train_batch(step))[0]


def test_a_single_prompt_is_asked_about_again():
    rows = [
        Choice(f"{split}{u}", "one prompt", f"a{u}{c}", f"b{u}{c}", split)
        for split in ("train", "valid", "test")
        for u in range(2)
        for c in range(9)
    ]
    task = make(collect(rows, []))
    target, context = items_of(task, task.train_batch(0))
    for example in range(4):
        asked, shown = (
            set(target[example].ravel()) - {-1},
            set(context[example].ravel()) - {-1},
        )
        assert asked and not asked & shown


def test_statistics_are_of_training_users_alone():
    task = make()
    table = task.data.users["train"]
    seen = np.unique(np.concatenate([table.chosen.flat, table.rejected.flat]))
    mean, std = task.statistics()
    np.testing.assert_allclose(mean, task.responses.features[seen].mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, task.responses.features[seen].std(0), rtol=1e-5)


def test_prompts_of_a_users_context():
    task = make()
    _, context = items_of(task, task.test_batch("test", [1], 0))
    wanted = task.data.item_prompt[context[0, :, 0]]
    np.testing.assert_array_equal(task.context_prompts("test", 1), wanted)
    assert set(wanted) < set(task.prompts("test"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": (4, 5)}, "6 tokens.*buckets"),
        ({"test_context": 12}, "valid users.*12.*13.*test_context"),
    ],
)
def test_data_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_split_without_people_is_named(split):
    task = make()
    empty = task.data.users[split].take([])
    data = dataclasses.replace(task.data, users=task.data.users | {split: empty})
    with pytest.raises(InputError, match=f"{split}.*split_seed"):
        dataclasses.replace(task, data=data)


def test_differences_are_chosen_minus_rejected():
    task = make()
    gaps, groups = task.differences("valid")
    table, features = task.data.users["valid"], task.responses.features
    np.testing.assert_array_equal(
        gaps, features[table.chosen.flat] - features[table.rejected.flat]
    )
    np.testing.assert_array_equal(groups.reshape(2, -1)[:, 0], table.group)


def test_packed_batches_have_the_episodes_of_padded_ones():
    padded, packed = make(num_pairs=2), make(num_pairs=2, packed=True)
    for step in range(3):
        own, other = packed.train_batch(step), padded.train_batch(step)
        jax.tree.map(np.testing.assert_array_equal, own.episode, other.episode)
        for rows in own.rows:
            for at in zip(*np.nonzero(rows.pair >= 0), strict=True):
                user, pair = rows.user[at], rows.pair[at]
                length = other.responses.stop[user, pair].sum()
                first, stop = rows.tokens.first[at][0], rows.tokens.stop[at][1]
                assert stop - first == length
                np.testing.assert_array_equal(
                    rows.reference[at], other.reference[user, pair]
                )
        assert sum((rows.pair >= 0).sum() for rows in own.rows) == own.pairs.sum()
        assert 0 <= packing.padding(own.rows) < 1


def test_packed_batches_are_the_same_when_made_again_and_in_parts():
    task = make(packed=True)
    whole, again = task.train_batch(5), make(packed=True).train_batch(5)
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    halves = [task.train_batch(5, np.arange(first, first + 2)) for first in (0, 2)]
    joined = jax.tree.map(lambda *x: np.concatenate(x), *halves)
    jax.tree.map(np.testing.assert_array_equal, joined, whole)
