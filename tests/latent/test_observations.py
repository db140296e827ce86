"""Observations against closed forms in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_expit

from fsa.latent import Observations, observations

pytestmark = pytest.mark.usefixtures("quick_compile")

# The rows of the module's table: what is told, low, high, and its probability at u.
W, T1, T2 = 0.7, -0.4, 1.1
ROWS = {
    "choice": (0, np.inf, lambda u: log_expit(u)),
    # Rao & Kupper (1967), theta = exp(w).
    "choice where ties were allowed": (
        W,
        np.inf,
        lambda u: u - np.logaddexp(u, W),
    ),
    "tie": (
        -W,
        W,
        lambda u: (
            np.log(np.expm1(2 * W)) + u - np.logaddexp(u, W) - np.logaddexp(0, u + W)
        ),
    ),
    "liked": (0, np.inf, lambda u: log_expit(u)),
    "disliked": (-np.inf, 0, lambda u: log_expit(-u)),
    "rated lowest": (-np.inf, T1, lambda u: log_expit(T1 - u)),
    "rated between": (T1, T2, lambda u: np.log(expit(T2 - u) - expit(T1 - u))),
    "rated highest": (T2, np.inf, lambda u: log_expit(u - T2)),
}
log_prob = jax.jit(observations.log_prob)
slope_and_curvature = jax.jit(observations.slope_and_curvature)


@pytest.mark.parametrize("told", ROWS)
def test_probability_is_that_of_the_model(told):
    low, high, expected = ROWS[told]
    u = np.linspace(-12, 12, 49)
    with jax.enable_x64(True):
        found = log_prob(u, float(low), float(high))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected(u), rtol=1e-9)
    np.testing.assert_allclose(
        log_prob(u.astype(np.float32), low, high), expected(u), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("told", ROWS)
def test_slope_and_curvature_are_derivatives(told):
    low, high, _ = ROWS[told]
    u = np.linspace(-12, 12, 25)
    with jax.enable_x64(True):
        slope, curvature = slope_and_curvature(u, float(low), float(high))

        def at(u):
            return observations.log_prob(u, low, high)

        expected = jax.vmap(jax.grad(at))(u)
        second = jax.vmap(jax.grad(jax.grad(at)))(u)
    np.testing.assert_allclose(slope, expected, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(curvature, -second, rtol=1e-9, atol=1e-15)


def test_levels_of_a_scale_have_total_probability_one():
    ends = np.array([-np.inf, -2.0, -1.9, 0.3, 4.0, np.inf])
    u = np.linspace(-20, 20, 9)[:, None]
    total = np.exp(log_prob(u, ends[:-1], ends[1:])).sum(axis=1)
    np.testing.assert_allclose(total, 1, rtol=1e-5)


@given(
    st.floats(-1e6, 1e6, width=32),
    st.sampled_from([(0, np.inf), (-np.inf, 0), (-0.01, 0.01), (3, 5), (-5, np.inf)]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_everything_is_finite_at_extreme_utilities(u, ends):
    low, high = map(np.float32, ends)
    value, slope = jax.value_and_grad(observations.log_prob)(u, low, high)
    curvature = slope_and_curvature(u, low, high)[1]
    assert np.isfinite([value, slope, curvature]).all()
    assert value <= 0
    assert abs(slope) <= 1
    assert 0 <= curvature <= 0.25 * observations.num_ends(low, high)


def test_ends_have_finite_derivatives_where_others_are_infinite():
    low = jnp.array([0.0, -jnp.inf, -0.5, -jnp.inf])
    high = jnp.array([jnp.inf, 0.0, 0.5, jnp.inf])
    u = jnp.array([0.3, -0.2, 0.1, 2.0])
    slopes = jax.grad(
        lambda *arguments: observations.log_prob(*arguments).sum(), (0, 1, 2)
    )(u, low, high)
    assert np.isfinite(slopes).all()
    # Moving an interval by as much as u changes nothing.
    np.testing.assert_allclose(slopes[0] + slopes[1] + slopes[2], 0, atol=1e-6)


def test_half_precision_becomes_float32_and_float64_stays():
    features = jnp.ones((2, 3), jnp.bfloat16)
    observed = Observations.of(features, features[:, 0], features[:, 0] > 0)
    assert {x.dtype for x in observed} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        features = np.ones((2, 3))
        observed = Observations.of(features, features[:, 0], features[:, 0])
        assert {x.dtype for x in observed} == {jnp.dtype("float64")}


def test_concatenate_joins_all_fields():
    first = Observations.of(jnp.ones((2, 3)), jnp.zeros(2), jnp.ones(2))
    second = Observations.of(
        jnp.zeros((1, 3)), jnp.ones(1), jnp.ones(1), low=-jnp.inf, high=1.5
    )
    joined = observations.concatenate(first, second)
    np.testing.assert_array_equal(joined.low, [0, 0, -np.inf])
    np.testing.assert_array_equal(joined.high, [np.inf, np.inf, 1.5])
    z = jnp.array([0.5, -1.0, 2.0])
    np.testing.assert_allclose(
        joined.log_prob(z), first.log_prob(z) + second.log_prob(z), rtol=1e-6
    )
