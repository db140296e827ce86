"""Mixtures of Gaussians over z: the prior, the posterior, and what follows from them.

Functions take one unbatched person; callers `jax.vmap` over people.

Shapes: C components, D latent dimensions, M utilities, K samples of z, Q quadrature
points.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import logsumexp

from fsa.latent import gaussian, observations
from fsa.latent.gaussian import DiagonalGaussian, at_least_float32

_QUADRATURE_POINTS = 20


class Mixture(NamedTuple):
    """A mixture of diagonal Gaussians, as a pytree: the prior of z.

    Attributes:
      log_weight: `[C]`; the weights need not sum to one.
      mean: `[C, D]`.
      log_std: `[C, D]`, natural logarithm of the standard deviations.
    """

    log_weight: jax.Array
    mean: jax.Array
    log_std: jax.Array


class Posterior(NamedTuple):
    """A mixture of Gaussians with full covariances, as a pytree.

    Attributes:
      log_weight: `[C]`, of weights that sum to one.
      component_mean: `[C, D]`.
      cholesky: `[C, D, D]`, lower; its product with its transpose is the precision.
      log_evidence: scalar, log p(observations) in nats.
      converged: `[C]` bool, whether Newton's steps arrived at the mode.
    """

    log_weight: jax.Array
    component_mean: jax.Array
    cholesky: jax.Array
    log_evidence: jax.Array
    converged: jax.Array

    @property
    def mean(self) -> jax.Array:
        """The mean of z, `[D]`."""
        return jnp.exp(self.log_weight) @ self.component_mean

    @property
    def covariance(self) -> jax.Array:
        """The covariance of z, `[D, D]`."""
        weight = jnp.exp(self.log_weight)
        identity = jnp.eye(self.cholesky.shape[-1], dtype=self.cholesky.dtype)
        within = jax.vmap(lambda c: cho_solve((c, True), identity))(self.cholesky)
        apart = self.component_mean - self.mean
        between = jnp.einsum("c,cd,ce->de", weight, apart, apart)
        return jnp.einsum("c,cde->de", weight, within) + between

    @property
    def std(self) -> jax.Array:
        """The standard deviation of each dimension of z, `[D]`."""
        return jnp.sqrt(jnp.diagonal(self.covariance))


def of_prior(prior: Mixture) -> Posterior:
    """Returns the posterior of a person who has told nothing."""
    mean, inverse_std = at_least_float32(prior.mean), jnp.exp(-prior.log_std)
    return Posterior(
        log_weight=jax.nn.log_softmax(at_least_float32(prior.log_weight)),
        component_mean=mean,
        cholesky=jax.vmap(jnp.diag)(at_least_float32(inverse_std)),
        log_evidence=jnp.zeros((), mean.dtype),
        converged=jnp.ones(len(mean), bool),
    )


def sample(posterior: Posterior, key: jax.Array, num_samples: int) -> jax.Array:
    """Draws z, `[K, D]`; not differentiable by the weights of components."""
    which_key, key = jax.random.split(key)
    which = jax.random.categorical(
        which_key, posterior.log_weight, shape=(num_samples,)
    )
    shape = num_samples, posterior.component_mean.shape[-1]
    noise = jax.random.normal(key, shape, posterior.component_mean.dtype)
    # The precision is L L', so that L'^-1 noise has the covariance.
    moved = jax.vmap(lambda c, e: solve_triangular(c, e, lower=True, trans=1))(
        posterior.cholesky[which], noise
    )
    return posterior.component_mean[which] + moved


def mean_or_samples(
    distribution: DiagonalGaussian | Posterior,
    key: jax.Array,
    num_samples: int,
    *,
    deterministic: bool,
) -> jax.Array:
    """Returns the values of z that a prediction averages over.

    Args:
      distribution: over `[D]`, unbatched.
      key: a JAX random key, unused if `deterministic`.
      num_samples: K, unused if `deterministic`.
      deterministic: whether to return the mean alone, with K = 1.

    Returns:
      `[K, D]`.
    """
    chex.assert_rank(distribution.mean, 1)
    if deterministic:
        return at_least_float32(distribution.mean)[None]
    if isinstance(distribution, Posterior):
        return sample(distribution, key, num_samples)
    return gaussian.sample(distribution, key, num_samples)


def log_prob(posterior: Posterior, z: jax.Array) -> jax.Array:
    """Returns the log-density of z `[D]` in nats."""
    half = jnp.einsum("cij,ci->cj", posterior.cholesky, z - posterior.component_mean)
    log_det = jax.vmap(half_log_det)(posterior.cholesky)
    own = -0.5 * jnp.sum(half**2 + jnp.log(2 * jnp.pi), axis=-1) + log_det
    return logsumexp(posterior.log_weight + own)


def kl(q: Posterior, p: Posterior, key: jax.Array, num_samples: int) -> jax.Array:
    """Estimates KL(q || p) in nats from K samples of q."""
    z = sample(q, key, num_samples)
    return jnp.mean(jax.vmap(lambda z: log_prob(q, z) - log_prob(p, z))(z))


def kl_parts(
    q: DiagonalGaussian | Posterior,
    p: DiagonalGaussian | Posterior,
    key: jax.Array,
    num_samples: int,
) -> jax.Array:
    """Returns terms whose sum is KL(q || p) in nats, of two of one type.

    Returns:
      `[D]` for diagonal Gaussians, one for each dimension; otherwise `[1]`, estimated.
    """
    if isinstance(q, Posterior):
        return kl(q, p, key, num_samples)[None]
    return gaussian.kl_per_dimension(q, p)


def entropy(posterior: Posterior, key: jax.Array, num_samples: int) -> jax.Array:
    """Estimates the differential entropy in nats from K samples."""
    z = sample(posterior, key, num_samples)
    return -jnp.mean(jax.vmap(lambda z: log_prob(posterior, z))(z))


def utility(
    posterior: Posterior, features: jax.Array, offset: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance of utilities under each component, `[C, M]` each.

    Args:
      posterior: over `[D]`.
      features: `[M, D]`.
      offset: `[M]`.
    """
    mean = posterior.component_mean @ features.T + offset
    return mean, jax.vmap(variance, (None, 0))(features, posterior.cholesky)


def predict(
    posterior: Posterior,
    features: jax.Array,
    offset: jax.Array,
    *,
    low: jax.Array | float = 0.0,
    high: jax.Array | float = jnp.inf,
) -> jax.Array:
    """Computes log p(low < u + e <= high | what was told) in nats, by quadrature.

    Args:
      posterior: over `[D]`.
      features: `[M, D]`.
      offset: `[M]`.
      low: broadcast to `[M]`; u above 0 is a choice, see `fsa.latent.observations`.
      high: broadcast to `[M]`.

    Returns:
      `[M]`.
    """
    chex.assert_rank([features, offset], [2, 1])
    nodes, log_weights = quadrature()
    mean, spread = utility(posterior, features, offset)
    u = mean[..., None] + jnp.sqrt(spread)[..., None] * nodes
    low, high = (jnp.broadcast_to(x, offset.shape)[:, None] for x in (low, high))
    log_p = observations.log_prob(u, low, high) + log_weights
    return logsumexp(log_p + posterior.log_weight[:, None, None], axis=(0, 2))


def quadrature(num_points: int = _QUADRATURE_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Returns nodes and log-weights `[Q]` of Gauss-Hermite quadrature over N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_points)
    return (
        nodes.astype(np.float32),
        np.log(weights / weights.sum()).astype(np.float32),
    )


def variance(features: jax.Array, cholesky: jax.Array) -> jax.Array:
    """Returns the variance `[M]` of features `[M, D]` times z, of one component."""
    half = solve_triangular(cholesky, features.T, lower=True)
    # Kept above 0, where the derivative of its root is infinite: padding has none.
    return jnp.maximum(jnp.sum(half**2, axis=0), 1e-6)


def half_log_det(cholesky: jax.Array) -> jax.Array:
    """Returns half the log-determinant of a matrix by its Cholesky factor `[D, D]`."""
    return jnp.sum(jnp.log(jnp.diagonal(cholesky)))
