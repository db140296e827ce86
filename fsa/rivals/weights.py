"""A person's weights, inferred from a few choices.

Shapes: N choices, K weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fsa import latent
from fsa.latent import Mixture, Observations, small_matrices


class Gaussian(NamedTuple):
    """A Gaussian over weights.

    Attributes:
      mean: `[K]`.
      covariance: `[K, K]`.
    """

    mean: jax.Array
    covariance: jax.Array


def most_probable(
    differences: jax.Array,
    offset: jax.Array,
    mask: jax.Array,
    prior: Gaussian,
    *,
    num_steps: int = 12,
) -> Gaussian:
    """Fits weights by Newton's method; a logistic regression with a Gaussian prior.

    A choice has probability sigmoid(differences . w + offset).

    Args:
      differences: `[N, K]`.
      offset: `[N]`.
      mask: `[N]`, which choices are real.
      prior: of the weights.
      num_steps: Newton steps.

    Returns:
      The most probable weights, and the inverse of the negative log-density's Hessian
      there (Laplace's approximation; MacKay 1992).
    """
    # As w = mean + root e, where e is N(0, I) a priori.
    root, _ = small_matrices.cholesky(prior.covariance)
    observed = Observations.of(
        differences @ root, differences @ prior.mean + offset, mask
    )
    nothing = jnp.zeros((1, len(root)))
    standard = Mixture(jnp.zeros(1), nothing, nothing)
    found = latent.laplace(observed, standard, num_steps=num_steps)
    half = root @ found.inverse[0].T
    return Gaussian(prior.mean + root @ found.mean, half @ half.T)


def averaged_log_prob(
    differences: jax.Array, offset: jax.Array, weights: Gaussian
) -> jax.Array:
    """Averages a choice's probability over uncertain weights (MacKay 1992, eq. 10).

    Args:
      differences: `[N, K]`.
      offset: `[N]`.
      weights: over `[K]`.

    Returns:
      `[N]` in nats: log sigmoid(m / sqrt(1 + pi v / 8)), of the utility's mean m and
      variance v.
    """
    mean = differences @ weights.mean + offset
    variance = jnp.einsum("nk,kl,nl->n", differences, weights.covariance, differences)
    return jax.nn.log_sigmoid(mean / jnp.sqrt(1 + jnp.pi * variance / 8))


def descend(
    loss: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    *,
    num_steps: int | jax.Array,
    rate: float,
) -> jax.Array:
    """Minimises a loss of weights `[K]` by a number of steps of Adam."""
    optimizer = optax.adam(rate)

    def step(_, state):
        w, memory = state
        update, memory = optimizer.update(jax.grad(loss)(w), memory)
        return w + update, memory

    return jax.lax.fori_loop(0, num_steps, step, (start, optimizer.init(start)))[0]


def log_likelihood(utilities: jax.Array, mask: jax.Array) -> jax.Array:
    """Sums the log-probabilities of choices by utilities `[N]` of the chosen option."""
    return jnp.sum(jax.nn.log_sigmoid(utilities), where=mask)
