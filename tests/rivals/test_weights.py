"""A person's weights against SciPy and quadrature in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from fsa.rivals import weights
from fsa.rivals.weights import Gaussian

RNG = np.random.default_rng(0)
X, OFFSET = 2 * RNG.normal(size=(7, 3)), RNG.normal(size=7)
MASK = np.array([True] * 5 + [False] * 2)
MEAN = np.array([0.5, -1.0, 0.0])
COVARIANCE = np.array([[1.0, 0.3, 0.0], [0.3, 2.0, 0.1], [0.0, 0.1, 0.5]])
PRIOR = Gaussian(jnp.asarray(MEAN), jnp.asarray(COVARIANCE))


def negative_log_density(w):
    apart = w - MEAN
    prior = 0.5 * apart @ np.linalg.solve(COVARIANCE, apart)
    return prior + np.logaddexp(0, -(X @ w + OFFSET))[MASK].sum()


def test_the_most_probable_weights_are_those_of_scipy():
    found = weights.most_probable(X, OFFSET, jnp.asarray(MASK), PRIOR)
    best = scipy.optimize.minimize(negative_log_density, MEAN, tol=1e-12)
    np.testing.assert_allclose(found.mean, best.x, atol=2e-4)
    p = 1 / (1 + np.exp(-(X @ best.x + OFFSET)))
    spread = p * (1 - p) * MASK
    hessian = np.linalg.inv(COVARIANCE) + (X * spread[:, None]).T @ X
    np.testing.assert_allclose(found.covariance, np.linalg.inv(hessian), atol=1e-4)


def test_nothing_known_leaves_the_prior():
    found = weights.most_probable(X, OFFSET, jnp.zeros(7, bool), PRIOR)
    np.testing.assert_allclose(found.mean, MEAN, atol=1e-6)
    np.testing.assert_allclose(found.covariance, COVARIANCE, atol=1e-5)


def test_averaged_probabilities_are_about_those_of_quadrature():
    found = np.exp(weights.averaged_log_prob(X, OFFSET, PRIOR))
    mean, std = X @ MEAN + OFFSET, np.sqrt(np.einsum("nk,kl,nl->n", X, COVARIANCE, X))
    u = mean[:, None] + std[:, None] * np.linspace(-8, 8, 4001)
    density = np.exp(-(np.linspace(-8, 8, 4001) ** 2) / 2)
    exact = (density / (1 + np.exp(-u))).sum(1) / density.sum()
    np.testing.assert_allclose(found, exact, atol=0.02)


def test_descent_finds_the_minimum():
    found = weights.descend(
        lambda w: jnp.sum((w - MEAN) ** 2), jnp.zeros(3), num_steps=200, rate=0.1
    )
    np.testing.assert_allclose(found, MEAN, atol=1e-2)


def test_log_likelihood_leaves_padding_out():
    u = jnp.array([0.0, 5.0])
    found = weights.log_likelihood(u, jnp.array([True, False]))
    np.testing.assert_allclose(found, jax.nn.log_sigmoid(0.0))
