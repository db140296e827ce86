import jax
import jax.numpy as jnp
import pytest

from fsa.training.flops import flops


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
    with pytest.raises(ValueError, match="while"):
        flops(
            lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w[0], x),
            x,
        )
