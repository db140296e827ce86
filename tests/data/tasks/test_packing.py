"""Rows of pairs: complete, short, and the same on any number of devices."""

import itertools

import jax
import numpy as np
import pytest

from fsa.data.tasks import packing
from fsa.data.tasks.packing import Packing
from fsa.language.token_table import RowTokens, TokenTable

# B users with at most P pairs, of texts of 2 to 11 tokens.
B, P, LONGEST = 8, 3, 22
PACKING = Packing((16, 32, 48), places=4, longest=LONGEST)


def some_table(seed=0):
    """Tokens of all texts of a batch, each token the number of its text."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, LONGEST // 2 + 1, B * P * 2)
    starts = rng.integers(1, lengths)
    items = [
        ([i + 1] * n, s) for i, (n, s) in enumerate(zip(lengths, starts, strict=True))
    ]
    return TokenTable.of(items)


def some_pairs():
    """Items `[B, P, 2]`; some users have fewer than P pairs."""
    items = np.arange(B * P * 2).reshape(B, P, 2)
    real = np.arange(P) < np.array([3, 1, 2, 3, 3, 2, 3, 3])[:, None]
    return np.where(real[..., None], items, -1)


def packed(positions=range(B), table=None):
    table = table or some_table()
    log_prob = -np.arange(B * P * 2, dtype=np.float32)
    return packing.pack(PACKING, table, log_prob, some_pairs(), np.array(positions))


@pytest.mark.parametrize("places", [2, 100])
def test_items_are_in_one_row_each_and_rows_are_filled(places):
    lengths = np.random.default_rng(1).integers(1, 30, 60)
    rows = packing.best_fit(lengths, 40, places)
    assert sorted(itertools.chain(*rows)) == list(range(60))
    used = [lengths[row].sum() for row in rows]
    assert max(used) <= 40 and max(map(len, rows)) <= places
    # Whatever is left open could not take the items of another row.
    left_open = [x for x, row in zip(used, rows, strict=True) if len(row) < places]
    assert all(a + b > 40 for a, b in itertools.combinations(left_open, 2))


def test_lengths_of_rows_are_the_best_of_all():
    used = np.random.default_rng(2).integers(10, 300, 40)
    sizes = np.unique(-(-used // 32) * 32)
    found, total = packing.lengths_of(used, 320, 4)

    def cost(lengths):
        return np.array(lengths)[np.searchsorted(lengths, used)].sum()

    choices = itertools.combinations(sizes, 3)
    assert total == cost(found) == min(cost((*own, 320)) for own in choices)


def test_equal_pairs_need_one_length_of_row():
    """Every further length would be compiled in vain."""
    found = packing.choose([np.full(64, 160)] * 5, longest=160)
    assert len(found.lengths) == 1 and found.lengths[0] % 160 == 0


def test_chosen_rows_hold_the_longest_pair_and_little_padding():
    rng = np.random.default_rng(3)
    batches = [rng.integers(20, 500, 64) for _ in range(40)]
    found = packing.choose(batches[:20], longest=640)
    assert found.lengths[-1] >= 640 and len(found.lengths) <= 4
    real = total = 0
    for own in batches[20:]:
        rows = packing.best_fit(own, found.lengths[-1], found.places)
        used = [own[row].sum() for row in rows]
        index = np.searchsorted(found.lengths, used)
        real, total = real + sum(used), total + np.array(found.lengths)[index].sum()
        assert len(rows) <= 8 * found.rows_of_each(8, 8)
    assert real / total > 0.95


@pytest.mark.parametrize("users", [8, 12])
def test_most_batches_are_computed_in_one_go(users):
    """By the rows that devices get; those of 12 users are spread less evenly."""
    parts, rng = 4, np.random.default_rng(4)
    batches = []
    for _ in range(20):
        lengths = rng.integers(20, 250, (users, P, 2))
        items = [([1] * n, 1) for n in lengths.ravel()]
        batches.append(TokenTable.of(items))
    tokens = [table.length.reshape(-1, 2).sum(-1) for table in batches]
    found = packing.choose(tokens, longest=500, together=users)
    assert len(found.lengths) == 1
    pairs = np.arange(users * P * 2).reshape(users, P, 2)
    fullest = []
    for table in batches:
        zeros = np.zeros(users * P * 2, np.float32)
        (rows,) = packing.pack(found, table, zeros, pairs, np.arange(users))
        real = (rows.pair >= 0).any(-1).reshape(parts, -1)
        fullest.append(real.sum(-1).max())
    size = packing.at_once(found, tokens, users, parts)
    fits, fewer = (np.mean(np.array(fullest) <= n) for n in (size, size - 1))
    assert fits >= 0.9 > fewer


def test_devices_that_compute_rows_together_are_all_busy():
    """With a user on each of 256 devices a row takes fewer tokens than padding does."""
    rng = np.random.default_rng(5)
    users, pairs, longest = 256, 2, 2048
    batches = [rng.integers(300, longest + 1, users * pairs) for _ in range(8)]
    found = packing.choose(batches, longest, together=users)
    size = packing.at_once(found, batches, users, parts=users)
    assert size * found.lengths[-1] < 0.7 * pairs * longest


def test_every_pair_is_in_one_row_with_its_tokens():
    table, pairs, seen = some_table(), some_pairs(), set()
    for rows in packed():
        for at in zip(*np.nonzero(rows.pair >= 0), strict=True):
            row = at[:2]
            user, pair = rows.user[at], rows.pair[at]
            for side in range(2):
                item = pairs[user, pair, side]
                first, start, stop = (x[at][side] for x in rows.tokens[1:])
                own = rows.tokens.tokens[row][first:stop]
                np.testing.assert_array_equal(own, table[item])
                assert start - first == table.start[item]
                assert rows.reference[at][side] == -item
            seen.add((user, pair))
    assert seen == set(zip(*np.nonzero(pairs[..., 0] >= 0), strict=True))


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_processes_make_parts_of_the_same_rows(parts):
    blocks = [packed(own) for own in np.split(np.arange(B), parts)]
    joined = jax.tree.map(lambda *x: np.concatenate(x), *blocks)
    jax.tree.map(np.testing.assert_array_equal, joined, packed())


def test_rows_are_spread_evenly_over_devices():
    for rows in packed():
        real = (rows.pair >= 0).any(-1)
        for parts in (2, 4, 8):
            counts = real.reshape(parts, -1).sum(-1)
            assert counts.max() - counts.min() <= 1


def test_each_token_of_a_row_knows_its_text():
    """Two pairs of texts of lengths 3, 2 and 4, 1, and a place without a pair."""
    first = np.array([[0, 3], [5, 9], [10, 10]])
    start = np.array([[1, 4], [7, 9], [10, 10]])
    stop = np.array([[3, 5], [9, 10], [10, 10]])
    row = RowTokens(np.ones(12, np.int32), first, start, stop)
    np.testing.assert_array_equal(row.text[:10], [0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    np.testing.assert_array_equal(row.begin, [0, 0, 0, 3, 3, 5, 5, 5, 5, 9, 10, 11])
    wanted = [False, True, True, False, True, *[False] * 2, *[True] * 3, False, False]
    np.testing.assert_array_equal(row.is_response, wanted)
