"""Sums over the rows of a batch, however many are computed at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsa.data.tasks.packing import Rows
from fsa.language.token_table import RowTokens
from fsa.training.row_loop import sum_over_rows

pytestmark = pytest.mark.usefixtures("quick_compile")

# B users with R places for rows of each, K places for pairs, T tokens.
B, R, K, T = 4, 3, 2, 5


def rows(real, seed):
    """Rows of one length, of which those at `real` exist."""
    rng = np.random.default_rng(seed)
    exists = np.zeros(B * R, bool)
    exists[real] = True
    exists = exists.reshape(B, R, 1)
    texts = [np.zeros((B, R, K, 2), np.int32) for _ in range(3)]
    return Rows(
        RowTokens(rng.integers(9, size=(B, R, T)).astype(np.int32), *texts),
        user=rng.integers(B, size=(B, R, K)).astype(np.int32),
        pair=np.where(exists, rng.integers(9, size=(B, R, K)), -1).astype(np.int32),
        reference=rng.normal(size=(B, R, K, 2)).astype(np.float32),
    )


# One length has a row on most places, one has two rows, and one has none.
ROWS = rows([0, 1, 2, 4, 5, 7, 11], 1), rows([3, 10], 2), rows([], 3)
PARAMS = {"a": jnp.arange(1.0, 4.0), "b": jnp.float32(0.5)}


def of_row(params, constants, row):
    exists = (row.pair >= 0).any()
    size = constants * row.reference.sum() + row.tokens.tokens.sum()
    value = jnp.sum(jnp.sin(params["a"] * size) + params["b"] * size**2)
    return jnp.where(exists, value, 0), {"size": jnp.where(exists, size, 0)}


def one_by_one(params, constants):
    """The sums in Python, over the rows that exist."""
    total, size = 0.0, 0.0
    for of_length in ROWS:
        for at in np.argwhere((of_length.pair >= 0).any(-1)):
            row = jax.tree.map(lambda x, at=tuple(at): x[at], of_length)
            value, found = of_row(params, constants, row)
            total, size = total + value, size + found["size"]
    return total, {"size": size}


@pytest.mark.parametrize(
    "at_once",
    [
        pytest.param(1, marks=pytest.mark.slow),
        2,
        pytest.param(5, marks=pytest.mark.slow),
        pytest.param(99, marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_are_those_of_rows_one_by_one(at_once):
    def loss(params, constants):
        total, metrics = sum_over_rows(of_row, params, constants, ROWS, at_once)
        return 3 * total, metrics

    def wanted(params, constants):
        total, metrics = one_by_one(params, constants)
        return 3 * total, metrics

    constants = jnp.float32(0.3)
    run = functools.partial(jax.value_and_grad, has_aux=True)
    found = jax.jit(run(loss))(PARAMS, constants)

    def same(own, other):
        # Sums in another order differ by the size of what is added, not of the sum.
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-5 * scale)

    jax.tree.map(same, found, run(wanted)(PARAMS, constants))
    same(jax.jit(loss)(PARAMS, constants)[0], found[0][0])


@pytest.mark.parametrize(
    "at_once",
    [
        pytest.param(1, marks=pytest.mark.slow),
        2,
        pytest.param(5, marks=pytest.mark.slow),
    ],
)
def test_as_few_groups_are_computed_as_rows_need(at_once):
    """Empty rows that fill a group are computed; groups of empty rows are not."""
    computed = []

    def noted(params, constants, row):
        jax.debug.callback(lambda _: computed.append(1), row.pair)
        return of_row(params, constants, row)

    jax.block_until_ready(
        jax.jit(lambda p: sum_over_rows(noted, p, 0.3, ROWS, at_once))(PARAMS)
    )
    jax.effects_barrier()
    assert len(computed) == sum(-(-n // at_once) * at_once for n in (7, 2, 0))
