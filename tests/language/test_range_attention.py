"""`fsa.language.range_attention` against attention with all products in one array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsa.language import range_attention
from fsa.language.layers import soft_capped

LENGTH, HEADS, KV_HEADS, FEATURES = 37, 6, 3, 5


def inputs(seed=0):
    rng = np.random.default_rng(seed)

    def of(heads):
        return rng.normal(size=(LENGTH, heads, FEATURES)).astype(np.float32)

    return of(HEADS), of(KV_HEADS), of(KV_HEADS)


def ranges(begins, window=None):
    """The first token that each of `LENGTH` tokens sees."""
    at = np.arange(LENGTH)
    own = np.array(begins)[np.searchsorted(begins, at, side="right") - 1]
    return own if window is None else np.maximum(own, at - window + 1)


def plain(query, key, value, first, soft_cap=None):
    key, value = (jnp.repeat(x, HEADS // KV_HEADS, axis=1) for x in (key, value))
    products = soft_capped(0.3 * jnp.einsum("tnh,snh->nts", query, key), soft_cap)
    at = jnp.arange(LENGTH)
    seen = (first[:, None] <= at) & (at <= at[:, None])
    weights = jax.nn.softmax(jnp.where(seen, products, -jnp.inf), axis=-1)
    return jnp.einsum("nts,snh->tnh", weights, value)


@pytest.mark.parametrize("block", [8, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("begins", "window", "soft_cap"),
    [
        ([0], None, None),
        ([0, 3, 4, 17, 30], None, None),
        ([0, 20], 5, None),
        ([0, 11], None, 0.7),
    ],
)
def test_output_and_gradients_equal_those_of_all_products(
    block, begins, window, soft_cap
):
    first = ranges(begins, window)
    weight = inputs(1)[0]

    def of_blocks(*arrays):
        out = range_attention.attend(
            *arrays, first, scale=0.3, soft_cap=soft_cap, block=block
        )
        return jnp.sum(out * weight), out

    def of_all(*arrays):
        out = plain(*arrays, first, soft_cap)
        return jnp.sum(out * weight), out

    both = [
        jax.grad(f, (0, 1, 2), has_aux=True)(*inputs()) for f in (of_blocks, of_all)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 4e-6), *both)


def test_texts_of_a_row_do_not_see_each_other():
    query, key, value = inputs()
    first = ranges([0, 10, 25])

    def changed(x):
        return np.concatenate([x[:10], x[10:25] + 1, x[25:]])

    before = range_attention.attend(query, key, value, first, scale=1.0, block=8)
    after = range_attention.attend(
        query, changed(key), changed(value), first, scale=1.0, block=8
    )
    same = np.all(before == after, axis=(1, 2))
    np.testing.assert_array_equal(same, ~np.isin(np.arange(LENGTH), range(10, 25)))


def test_rows_under_vmap_are_as_each_alone():
    rows = [inputs(seed) for seed in range(2)]
    first = np.stack([ranges([0, 30]), ranges([0, 5, 9])])

    def of(query, key, value, first):
        return range_attention.attend(query, key, value, first, scale=0.4, block=8)

    stacked = jax.vmap(of)(*map(np.stack, zip(*rows, strict=True)), first)
    for row, own, found in zip(rows, first, stacked, strict=True):
        np.testing.assert_allclose(found, of(*row, own), atol=1e-6)
