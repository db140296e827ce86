"""Episodes: disjoint, of the right sizes, uniform, and reproducible from their keys."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fsa import episodes
from fsa.episodes import Choices, Options

pytestmark = pytest.mark.usefixtures("quick_compile")

L, N, M, F, J = 11, 5, 3, 2, 11  # choices, context, targets, features, rated items
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
SEEDS = st.integers(0, 10_000)


def split(key, mask, n, **kwargs):
    return episodes.split(key, mask, n, max_context=N, max_targets=M, **kwargs)


behind_context = jax.jit(split)
at_position = jax.jit(split, static_argnames="first_target")
gather, first_choices = jax.jit(episodes.gather), jax.jit(episodes.first_choices)
pair = jax.jit(episodes.pair_ratings, static_argnames="max_gap")


def numpy(tree):
    return jax.tree.map(np.asarray, tree)


def masks(size, least=0):
    return st.lists(st.booleans(), min_size=size, max_size=size).filter(
        lambda mask: sum(mask) >= least
    )


@PROPERTY
@given(SEEDS, st.sampled_from([4, L]), st.data(), st.integers(0, 9))
def test_split_is_disjoint_and_of_the_size_asked_for(seed, size, data, n):
    mask = np.array(data.draw(masks(size, least=1)))
    found = numpy(behind_context(jax.random.key(seed), mask, n))
    context = found.context[found.context_mask]
    target = found.target[found.target_mask]
    used = [*context, *target]
    assert len(set(used)) == len(used)
    assert mask[used].all()
    # Every user with a choice has a target.
    expected = min(n, N, mask.sum() - 1)
    assert len(context) == expected
    assert len(target) == min(M, mask.sum() - expected) >= 1
    assert found.context.shape == (N,) and found.target.shape == (M,)
    # Real positions come first, and padding has valid indices.
    for part in (found.context_mask, found.target_mask):
        assert list(part) == sorted(part, reverse=True)
    for positions in (found.context, found.target):
        assert ((positions >= 0) & (positions < size)).all()


@PROPERTY
@given(SEEDS, masks(L), st.integers(0, 9), st.sampled_from([N, N + 2]))
def test_split_with_targets_at_a_position(seed, mask, n, first_target):
    mask = np.array(mask)
    found = numpy(at_position(jax.random.key(seed), mask, n, first_target=first_target))
    context = found.context[found.context_mask]
    target = found.target[found.target_mask]
    used = [*context, *target]
    assert len(set(used)) == len(used)
    assert mask[used].all()
    assert len(context) == min(n, N, max(mask.sum() - 1, 0))
    assert len(target) == np.clip(mask.sum() - first_target, 0, M)
    for positions in (found.context, found.target):
        assert ((positions >= 0) & (positions < L)).all()


@pytest.mark.parametrize("n", [0, 2])
def test_a_user_without_choices_has_an_empty_episode(n):
    found = behind_context(jax.random.key(0), np.zeros(L, bool), n)
    assert not found.context_mask.any()
    assert not found.target_mask.any()


def test_a_user_with_one_choice_has_a_target_and_no_context():
    mask = np.arange(L) == 6
    found = numpy(behind_context(jax.random.key(0), mask, 4))
    assert not found.context_mask.any()
    assert found.target[found.target_mask].tolist() == [6]


def test_split_is_uniform():
    """Every real choice is as likely in the context as in the targets, in any order."""
    mask = np.isin(np.arange(L), (0, 2, 3, 7, 10))
    keys = jax.random.split(jax.random.key(0), 4001)
    drawn = numpy(jax.vmap(lambda key: behind_context(key, mask, 2))(keys))
    assert drawn.context_mask.sum(1).tolist() == [2] * 4001
    first_of_each = zip(drawn.context[:, 0], drawn.target[:, 0], strict=True)
    counts = dict.fromkeys(itertools.permutations(np.flatnonzero(mask), 2), 0)
    for ordered in first_of_each:
        counts[ordered] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4
    counts = np.bincount(drawn.context[:, :2].ravel(), minlength=L)[mask]
    assert stats.chisquare(counts).pvalue > 1e-4


def test_targets_at_a_position_are_the_same_for_every_n():
    mask = np.arange(L) != 4
    key = jax.random.key(5)
    found = [numpy(at_position(key, mask, n, first_target=N)) for n in range(N, -1, -1)]
    for n, smaller in zip(range(N, -1, -1), found, strict=True):
        assert np.array_equal(smaller.target, found[0].target)
        assert smaller.target_mask.all()
        # And contexts are prefixes of one another.
        assert np.array_equal(smaller.context, found[0].context)
        assert smaller.context_mask.sum() == n


def test_split_follows_the_key():
    mask = np.ones(L, bool)
    one, again, other = (
        numpy(behind_context(jax.random.key(s), mask, 4)) for s in (1, 1, 2)
    )
    assert all(map(np.array_equal, one, again))
    assert not np.array_equal(one.context, other.context)


def test_split_under_vmap_equals_a_loop():
    rng = np.random.default_rng(0)
    many = rng.random((7, L)) < 0.6
    sizes = rng.integers(0, N + 1, 7)
    keys = jax.random.split(jax.random.key(1), 7)
    found = numpy(jax.jit(jax.vmap(split))(keys, many, sizes))
    for u in range(7):
        alone = behind_context(keys[u], many[u], sizes[u])
        chex.assert_trees_all_equal(jax.tree.map(lambda x, u=u: x[u], found), alone)


def test_example_keys_depend_on_step_and_position_alone():
    key = jax.random.key(0)
    steps, positions = np.meshgrid(np.arange(7), np.arange(11), indexing="ij")
    of_batch = jax.vmap(jax.vmap(functools.partial(episodes.example_key, key)))(
        steps, positions
    )
    data = np.asarray(jax.random.key_data(of_batch))
    assert len(np.unique(data.reshape(77, -1), axis=0)) == 77
    for step, position in ((0, 0), (3, 5), (5, 3), (6, 10)):
        alone = jax.random.key_data(episodes.example_key(key, step, position))
        assert np.array_equal(alone, data[step, position])
    other = jax.random.key_data(episodes.example_key(jax.random.key(1), 3, 5))
    assert not (other == data).all(-1).any()


def rated(seed, size=J):
    """(values, popularity, prompt, mask) of a user with ties and gaps."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(-2, 3, size).astype(np.float32),
        rng.normal(size=size).astype(np.float32),
        rng.integers(0, 3, size).astype(np.int32),
        rng.random(size) < rng.choice([0.3, 0.8, 1.0]),
    )


@PROPERTY
@given(
    SEEDS,
    st.sampled_from([0.0, 1.0, 100.0]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([None, 0.5]),
)
def test_pairs_are_what_the_user_would_have_chosen(seed, noise, margin, max_gap):
    values, popularity, prompt, mask = rated(seed)
    chosen, rejected, valid = numpy(
        pair(
            jax.random.key(seed),
            values,
            popularity,
            prompt,
            mask,
            noise=noise,
            min_margin=margin,
            max_gap=max_gap,
        )
    )
    assert chosen.shape == rejected.shape == valid.shape == (J // 2,)
    used = np.concatenate([chosen, rejected])
    # Not even pairs that do not count share an item with another.
    assert len(np.unique(used)) == len(used)
    a, b = chosen[valid], rejected[valid]
    assert mask[a].all() and mask[b].all()
    assert np.array_equal(prompt[a], prompt[b])
    assert (values[a] - values[b] > margin).all()
    if max_gap is not None:
        assert (np.abs(popularity[a] - popularity[b]) <= max_gap).all()


@PROPERTY
@given(SEEDS)
def test_only_what_is_excluded_is_left_out(seed):
    """Valid pairs are those of real items whose values and popularities qualify."""
    values, popularity, prompt, mask = rated(seed)
    args = popularity, prompt, mask
    key = jax.random.key(seed)
    chosen, rejected, valid = numpy(
        pair(key, values, *args, noise=1.0, min_margin=1.0, max_gap=0.5)
    )
    expected = (
        mask[chosen]
        & mask[rejected]
        & (prompt[chosen] == prompt[rejected])
        & (values[chosen] - values[rejected] > 1)
        & (np.abs(popularity[chosen] - popularity[rejected]) <= 0.5)
    )
    assert np.array_equal(valid, expected)
    # The pairing does not depend on the user's values.
    other, another, _ = numpy(
        pair(key, -values[::-1], *args, noise=1.0, min_margin=1.0, max_gap=0.5)
    )
    pairs, again = (
        {frozenset(p) for p in zip(*positions, strict=True)}
        for positions in ((chosen, rejected), (other, another))
    )
    assert pairs == again


@pytest.mark.parametrize("size", [J - 1, J])
def test_without_noise_neighbours_in_popularity_are_paired(size):
    popularity = np.random.default_rng(0).permutation(size).astype(np.float32)
    values = np.arange(size, dtype=np.float32)
    prompt, mask = np.zeros(size, int), np.ones(size, bool)
    offsets = set()
    for seed in range(12):
        chosen, rejected, valid = numpy(
            pair(jax.random.key(seed), values, popularity, prompt, mask, noise=0.0)
        )
        a, b = popularity[chosen[valid]], popularity[rejected[valid]]
        assert (np.abs(a - b) == 1).all()
        offsets |= set(np.minimum(a, b) % 2)
        # At most the two ends are left out.
        assert valid.sum() >= (size - 1) // 2
    # Pairs start at even or at odd positions.
    assert offsets == {0, 1}


def test_items_of_a_prompt_find_each_other():
    """At most one item of each prompt is left, however popularities are interleaved."""
    popularity = np.arange(J, dtype=np.float32)
    prompt = (np.arange(J) % 2).astype(np.int32)
    for seed in range(5):
        valid = pair(
            jax.random.key(seed),
            popularity,
            popularity,
            prompt,
            np.ones(J, bool),
            noise=0.0,
        )[2]
        assert valid.sum() >= J // 2 - 1


def test_much_noise_pairs_at_random():
    size, draws = 5, 3001
    popularity = np.arange(size, dtype=np.float32)
    keys = jax.random.split(jax.random.key(0), draws)
    chosen, rejected, valid = numpy(
        jax.vmap(
            lambda key: pair(
                key,
                popularity,
                popularity,
                np.zeros(size, int),
                np.ones(size, bool),
                noise=1e4,
            )
        )(keys)
    )
    assert valid.all()
    counts = np.zeros((size, size))
    np.add.at(counts, (chosen, rejected), 1)
    # A draw has two of the ten possible pairs.
    expected, share = draws * 2 / 10, 2 / 10
    error = 5 * np.sqrt(draws * share * (1 - share))
    assert (np.abs(counts[np.tril_indices(size, -1)] - expected) < error).all()
    assert not np.triu(counts).any()


def test_pairs_under_vmap_equal_a_loop_and_follow_the_key():
    users = [rated(seed) for seed in range(5)]
    stacked = [np.stack(x) for x in zip(*users, strict=True)]
    keys = jax.random.split(jax.random.key(2), 5)
    one = functools.partial(pair, noise=1.0, min_margin=0.0, max_gap=None)
    found = numpy(jax.vmap(one)(keys, *stacked))
    for u, user in enumerate(users):
        of_user = jax.tree.map(lambda x, u=u: x[u], found)
        chex.assert_trees_all_equal(of_user, one(keys[u], *user))
    full = (*users[0][:2], np.zeros(J, np.int32), np.ones(J, bool))
    orders = [np.asarray(one(key, *full)[0]) for key in keys]
    assert not all(np.array_equal(orders[0], order) for order in orders)


def some_choices(size, seed=0):
    rng = np.random.default_rng(seed)

    def options():
        return Options(
            rng.normal(size=(size, F)).astype(np.float32),
            rng.integers(0, 99, size).astype(np.int32),
        )

    return Choices(options(), options(), rng.random(size) < 0.6)


def test_gather_looks_up_options_and_blanks_the_padding():
    features = np.random.default_rng(0).normal(size=(13, F)).astype(np.float32)
    chosen, rejected = np.random.default_rng(1).permutation(13)[: 2 * N].reshape(2, N)
    positions = np.array([3, 0, 2, 0])
    mask = np.array([True, True, True, False])
    found = numpy(gather(features, (chosen, rejected), positions, mask))
    for options, items in ((found.chosen, chosen), (found.rejected, rejected)):
        assert options.item.tolist() == [*items[[3, 0, 2]], -1]
        assert np.array_equal(options.features[:3], features[items[[3, 0, 2]]])
        assert not options.features[3].any()
    assert np.array_equal(found.mask, mask)


def test_reverse_swaps_the_options_of_every_pair():
    choices = some_choices(N)
    found = episodes.reverse(choices)
    assert found.chosen is choices.rejected and found.rejected is choices.chosen
    assert found.mask is choices.mask


def test_concatenate_is_the_union():
    first, second = some_choices(N), some_choices(M, seed=1)
    expected = jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)
    found = jax.jit(episodes.concatenate)(first, second)
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize("n", [0, 2, N, N + 3])
def test_first_choices_makes_the_others_padding(n):
    choices = some_choices(N)
    found = first_choices(choices, n)
    assert np.array_equal(found.mask, choices.mask & (np.arange(N) < n))
    chex.assert_trees_all_equal(found._replace(mask=choices.mask), choices)
    # Of a batch of users, all keep the same number.
    users = jax.tree.map(lambda x: np.stack([x, x[::-1]]), choices)
    of_users = first_choices(users, n).mask
    assert np.array_equal(of_users[0], found.mask)
    assert np.array_equal(of_users[1], choices.mask[::-1] & (np.arange(N) < n))


def test_pairs_of_numpy_arrays_are_numpy_arrays():
    """In their own precision, and the same as those of JAX."""
    values, popularity, _, _ = rated(0)
    order = np.argsort(popularity)[:-2]
    args = order, 1, values, popularity.astype(np.float64)
    found = episodes.pair_neighbours(*args, max_gap=0.5, min_margin=1.0)
    assert all(type(x) is np.ndarray for x in found)
    traced = jax.jit(
        lambda *args: episodes.pair_neighbours(*args, max_gap=0.5, min_margin=1.0)
    )
    chex.assert_trees_all_equal(traced(*args), found)


def test_splitting_and_gathering_inside_one_program():
    """As tasks do it: a batch of users, sizes and keys in one compiled program."""
    features = jnp.asarray(np.random.default_rng(3).normal(size=(29, F)))
    items = np.random.default_rng(4).permutation(29)[: 2 * L].reshape(2, L)

    @jax.jit
    @jax.vmap
    def draw(key, n):
        parts = split(key, jnp.ones(L, bool), n)
        chosen_and_rejected = tuple(jnp.asarray(items))
        return (
            episodes.gather(
                features, chosen_and_rejected, parts.context, parts.context_mask
            ),
            episodes.gather(
                features, chosen_and_rejected, parts.target, parts.target_mask
            ),
        )

    sizes = np.arange(N + 1)
    context, target = numpy(draw(jax.random.split(jax.random.key(0), N + 1), sizes))
    assert np.array_equal(context.mask.sum(1), sizes)
    pairs = set(zip(*items, strict=True))
    for n in sizes:
        seen = list(zip(context.chosen.item[n], context.rejected.item[n], strict=True))
        asked = list(zip(target.chosen.item[n], target.rejected.item[n], strict=True))
        assert set(seen[:n]) <= pairs and set(asked) <= pairs
        assert not set(seen[:n]) & set(asked)
        assert seen[n:] == [(-1, -1)] * (N - n)


def shaped(*shapes, of=jnp.float32):
    return [jax.ShapeDtypeStruct((2, *shape), of) for shape in shapes]


def choices_of(*shape):
    options = Options(*shaped((*shape, F)), *shaped(shape, of=jnp.int32))
    return Choices(options, options, *shaped(shape, of=bool))


KEY, COUNT = jax.random.split(jax.random.key(0)), shaped((), of=jnp.int32)
MASK, ITEMS = shaped((L,), of=bool), shaped((L,), of=jnp.int32)
pair_quietly = functools.partial(episodes.pair_ratings, noise=0.0)

# Calls with a wrong shape or type, most of which would broadcast to a wrong episode.
WRONG = {
    "key, position": (episodes.example_key, [KEY, *COUNT, *ITEMS]),
    "key, step": (episodes.example_key, [KEY, *shaped(()), *COUNT]),
    "first, n": (episodes.first_choices, [choices_of(N), *ITEMS]),
    "first, fraction": (episodes.first_choices, [choices_of(N), *shaped(())]),
    "union": (episodes.concatenate, [choices_of(3, N), choices_of(3, M)]),
    "split, users": (split, [KEY, *shaped((3, L), of=bool), *COUNT]),
    "split, mask": (split, [KEY, *ITEMS, *COUNT]),
    "split, n": (split, [KEY, *MASK, *ITEMS]),
    "pair, values": (pair_quietly, [KEY, *shaped((1,), (L,)), *ITEMS, *MASK]),
    "pair, mask": (pair_quietly, [KEY, *shaped((L,), (L,)), *ITEMS, *ITEMS]),
    "neighbours": (episodes.pair_neighbours, [*ITEMS, *COUNT, *shaped((L,), (1,))]),
    "gather, features": (
        episodes.gather,
        [*shaped((L,)), (*ITEMS, *ITEMS), *ITEMS, *MASK],
    ),
    "gather, mask": (
        episodes.gather,
        [*shaped((L, F)), (*ITEMS, *ITEMS), *ITEMS, *shaped((1,), of=bool)],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_shapes_and_types_are_refused(case):
    """While they are traced, under jit and vmap."""
    fn, args = WRONG[case]
    with pytest.raises(AssertionError, match="Chex"):
        jax.eval_shape(jax.jit(jax.vmap(fn)), *args)
