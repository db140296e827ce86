"""Methods that read or descend on a context: order, mirrors and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest

from fsa.latent import DiagonalGaussian
from fsa.rivals.gpo import Gpo
from fsa.rivals.method import TrainingPeople
from fsa.rivals.spl import Flow, swap_guidance
from fsa.rivals.test_time import TestTime

X = np.random.default_rng(0).normal(size=(20, 3))
CONTEXT = planted.choices(X, [1, 2, 3, 4], [5, 6, 7, 8], mask=[True] * 3 + [False])
TARGET = planted.choices(X, [9, 10], [11, 12])


@pytest.fixture(scope="module")
def people():
    """People without preferences: their number of features is what matters."""
    data = planted.by_rewards(np.zeros((6, 20)), X, (2, 2, 2), num_choices=12)
    return TrainingPeople(planted.people(data), (0, 3))


def test_gpo_reads_a_context_in_any_order(people):
    method = Gpo(hidden=8, num_layers=2, num_heads=2)
    values = method.init(people, jax.random.key(0))

    @jax.jit
    def predict(context, target):
        return method.predict(values, method.adapt(values, context), target)

    found = predict(CONTEXT, TARGET)
    order = np.array([2, 3, 0, 1])
    permuted = jax.tree.map(lambda x: x[order], CONTEXT)
    np.testing.assert_allclose(predict(permuted, TARGET), found, atol=1e-5)
    # Each target is read alone.
    turned = jax.tree.map(lambda x: x[::-1], TARGET)
    np.testing.assert_allclose(predict(CONTEXT, turned)[::-1], found, atol=1e-5)
    other = CONTEXT._replace(chosen=CONTEXT.rejected, rejected=CONTEXT.chosen)
    assert (np.abs(predict(other, TARGET) - found) > 1e-4).all()
    nobody = CONTEXT._replace(mask=jnp.zeros(4, bool))
    padding = other._replace(mask=jnp.zeros(4, bool))
    np.testing.assert_array_equal(predict(nobody, TARGET), predict(padding, TARGET))


@pytest.mark.slow
def test_a_step_at_test_time_is_the_gradient_computed_by_hand(people):
    """Of the last layer, whose gradient is that of a logistic regression."""
    method = TestTime(hidden=8, adapt_steps=1, first_rate=0.3)
    values = method.init(people, jax.random.key(0))
    own = {**values, "params": {**values["params"]["rest"]}}
    head = jax.tree.map(np.float64, values["params"]["head"])

    def hidden(options):
        embedded = method.module.apply(own, options, method="embed")
        x = np.float64(embedded) @ head["Dense_0"]["kernel"] + head["Dense_0"]["bias"]
        return np.float64(jax.nn.gelu(x))

    gap = (hidden(CONTEXT.chosen) - hidden(CONTEXT.rejected))[:3]
    last = head["Dense_1"]["kernel"][:, 0]
    p = 1 / (1 + np.exp(-gap @ last))
    by_hand = last + 0.3 * ((1 - p)[:, None] * gap).mean(0)
    found = method.adapt(values, CONTEXT)["Dense_1"]["kernel"][:, 0]
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)


def test_nothing_known_leaves_the_head_as_it_is(people):
    method = TestTime(hidden=8)
    values = method.init(people, jax.random.key(0))
    found = method.adapt(values, CONTEXT._replace(mask=jnp.zeros(4, bool)))
    jax.tree.map(np.testing.assert_array_equal, found, values["params"]["head"])


def test_swap_guidance_wants_opposite_means_and_equal_spreads():
    mean, log_std = jnp.array([1.0, -2.0]), jnp.array([-1.0, -0.5])
    q, mirror = DiagonalGaussian(mean, log_std), DiagonalGaussian(-3 * mean, log_std)
    np.testing.assert_allclose(swap_guidance(q, mirror), 0.0, atol=1e-5)
    np.testing.assert_allclose(swap_guidance(q, q), 1.0, atol=1e-5)
    spread = DiagonalGaussian(-mean, -log_std)
    np.testing.assert_allclose(swap_guidance(q, spread), 0.1, atol=1e-5)


@pytest.fixture(scope="module")
def flow():
    """A flow over 3 dimensions with a condition of 2, with no weight at 0."""
    z, side = jnp.zeros(3), jnp.zeros(2)
    params = Flow().init(jax.random.key(0), z, side, side)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [
        0.5 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
    ]
    params = jax.tree.unflatten(tree, drawn)
    return lambda z, d, c: Flow().apply(params, z, d, c)


def test_the_flow_is_autoregressive_and_its_volume_is_known(flow):
    z, d, c = jnp.array([0.3, -0.6, 0.2]), jnp.array([0.5, -0.2]), jnp.array([0.1, 0.9])
    jacobian = np.asarray(jax.jacobian(lambda z: flow(z, d, c)[0])(z))
    np.testing.assert_array_equal(np.triu(jacobian, 1), 0)
    assert (np.abs(np.tril(jacobian, -1)[[1, 2, 2], [0, 0, 1]]) > 0).all()
    # The scale of a dimension depends on those before it, so the diagonal is all.
    np.testing.assert_allclose(
        np.log(np.abs(np.diag(jacobian))).sum(), flow(z, d, c)[1], rtol=1e-4
    )


def test_reversed_choices_mirror_the_shift_of_the_flow(flow):
    """At z = 0 the flow gives the shift alone, which is odd in the difference."""
    z, d, c = jnp.zeros(3), jnp.array([0.5, -0.2]), jnp.array([0.1, 0.9])
    shift = flow(z, d, c)[0]
    np.testing.assert_allclose(flow(z, -d, c)[0], -shift, atol=1e-6)
    assert (np.abs(shift) > 1e-3).all()
