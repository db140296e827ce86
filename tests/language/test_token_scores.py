"""`fsa.language.token_scores` against a log-softmax over all logits."""

import itertools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow_but

from fsa.language.token_scores import token_log_probs

LENGTH, WIDTH, WORDS = 23, 7, 31


def inputs():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(LENGTH, WIDTH)).astype(np.float32)
    kernel = rng.normal(size=(WORDS, WIDTH)).astype(np.float32)
    return states, kernel, rng.integers(0, WORDS, LENGTH)


def plain(states, kernel, targets, wanted, soft_cap):
    logits = states @ kernel.T
    if soft_cap:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    scores = jax.nn.log_softmax(logits)[jnp.arange(LENGTH), targets]
    return jnp.where(wanted, scores, 0)


# Every value is in a quick case; the slow ones are all that can be combined.
QUICK = {(0.0, None, 5), (0.4, 1.5, 5), (1.0, None, 64)}
CASES = slow_but(QUICK, itertools.product((0.0, 0.4, 1.0), (None, 1.5), (5, 64)))


@pytest.mark.parametrize(("share", "soft_cap", "block"), CASES)
def test_scores_and_gradients_equal_those_of_all_logits(block, soft_cap, share):
    states, kernel, targets = inputs()
    rng = np.random.default_rng(1)
    wanted = rng.uniform(size=LENGTH) < share
    weight = rng.normal(size=LENGTH).astype(np.float32)

    def of_blocks(states, kernel):
        return token_log_probs(
            states, kernel, targets, wanted, soft_cap=soft_cap, block=block
        )

    def of_all(states, kernel):
        return plain(states, kernel, targets, wanted, soft_cap)

    def gradients(fn, argnums):
        return jax.grad(lambda *x: jnp.sum(weight * fn(*x)), argnums)(states, kernel)

    expected = of_all(states, kernel)
    np.testing.assert_allclose(of_blocks(states, kernel), expected, atol=3e-6)
    # With the kernel trained and frozen, which take two ways.
    for argnums in ((0, 1), (0,), (1,)):
        both = gradients(of_blocks, argnums), gradients(of_all, argnums)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), *both)


def test_no_array_of_all_logits_is_made():
    states, kernel, targets = inputs()

    def total(states):
        return token_log_probs(states, kernel, targets, targets > 3, block=5).sum()

    def sizes(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (v.aval.size for v in eqn.outvars if hasattr(v.aval, "size"))
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from sizes(inner)

    found = sizes(jax.make_jaxpr(jax.grad(total))(states).jaxpr)
    assert max(found) < LENGTH * WORDS
