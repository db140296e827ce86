"""Operations count as often as they are carried out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from fsa.conditioning import Conditioned, matmul
from fsa.cost_model.flops import flops, peak_flops


def test_operations_are_counted_through_scans_and_branches():
    x, w = jnp.ones((3, 5)), jnp.ones((4, 5, 5))

    def scanned(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    product = 2 * 3 * 5 * 5
    assert flops(scanned, x, w) == 4 * product
    # The gradient has a product for x (but for the first layer's) and one for w.
    gradient = jax.jit(jax.grad(scanned, argnums=1))
    assert flops(gradient, x, w) == 12 * product

    def branched(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w[0] @ w[1], lambda: x @ w[0])

    assert flops(branched, x, w) == 2 * product

    def looped(x):
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w[0] @ w[1], x)

    with pytest.raises(ValueError, match="while"):
        flops(looped, x)
    assert flops(looped, x, while_trips=3) == 3 * 2 * product


def test_what_every_device_does_counts_for_each():
    """As under pmap, which runs the program of one device on each."""
    mesh = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    sharded = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert flops(sharded, jnp.ones((12, 5))) == 4 * 2 * 3 * 3 * 5


def test_shapes_are_enough():
    x = jax.ShapeDtypeStruct((10**6, 10**6), np.float32)
    assert flops(lambda x: x @ x, x) == 2 * 10**18


def test_products_with_low_rank_count_as_others_do():
    leaf = Conditioned(
        jnp.ones((5, 7)), (), ((jnp.ones((5, 1, 2)), jnp.ones((1, 7, 2))),)
    )
    assert flops(matmul, jnp.ones((3, 5)), leaf) == 2 * 3 * (5 * 7 + 2 * (5 + 7))


def test_rematerialised_products_count_twice():
    def loss(w, x):
        return (jax.checkpoint(lambda x: jnp.sin(x @ w))(x)).sum()

    x, w = jnp.ones((3, 5)), jnp.ones((5, 5))
    # x @ w forward and again backward, and the product for w.
    assert flops(jax.grad(loss), w, x) == 3 * 2 * 3 * 5 * 5


def test_peaks():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("cpu") is None
