"""The cost estimate: counts by hand, and what XLA counts of the same programs."""

import jax
import jax.numpy as jnp
import pytest

from fsa.conditioning import cost

SIZES = 5, 7, 11, 13  # users, tokens, inputs, outputs


def counted(fn, *shapes):
    """Operations that XLA counts."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(fn).lower(*arrays).compile().cost_analysis()["flops"]


def test_operations_are_those_that_xla_counts():
    def by_parts(x, w, d, a, s, b):
        return (x @ w) * d + ((x @ a) * s) @ b

    shapes = (5, 7, 11), (11, 13), (5, 1, 13), (11, 3), (5, 1, 3), (3, 13)
    found = cost.by_parts(*SIZES, rank=3).operations
    assert found == pytest.approx(counted(by_parts, *shapes), rel=0.02)
    found = cost.plain(*SIZES).operations
    assert found == pytest.approx(counted(jnp.matmul, *shapes[:2]), rel=0.02)


def test_more_of_a_modulation_costs_more():
    plain = cost.plain(*SIZES)
    ways = [cost.by_parts(*SIZES, rank=rank) for rank in (0, 1, 8)]
    ways.append(cost.by_parts(*SIZES, rank=8, generated=True))
    ratios = [cost.ratio(way, plain) for way in ways]
    assert ratios == sorted(ratios) and ratios[0] > 1
    unscaled = cost.by_parts(*SIZES, rank=0, scaled=False)
    assert (unscaled.operations, unscaled.bytes) == (plain.operations, plain.bytes)


def test_folding_pays_for_many_tokens_of_one_user():
    assert cost.folding_is_as_good(1, 10_000, 512, 512, rank=64)
    assert not cost.folding_is_as_good(64, 32, 512, 512, rank=8)
