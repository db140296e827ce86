"""Mixtures of Gaussians over z: the prior, the posterior, and what follows from them.

Functions take one unbatched person; callers `jax.vmap` over people.

Shapes: C components, D latent dimensions, M utilities, K samples of z, L levels, Q
quadrature points.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from fsa.latent import gaussian, observations
from fsa.latent.gaussian import DiagonalGaussian, at_least_float32

# Quadrature: points of each of five panels; the standard deviations that all reach, and
# those within which inner panels end, and the innermost one; and how far from an end of
# an interval, in u, its transition is over.
_PANEL_POINTS = 10
_REACH, _INNER, _CENTRE = 7.0, 4.0, 2.0
_TRANSITION = 6.0
# Of an interval that holds a quantile: more change nothing in float32.
_HALVINGS = 40


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

    Of several people, all arrays have further leading axes.

    Attributes:
      log_weight: `[C]`, of weights that sum to one.
      component_mean: `[C, D]`.
      cholesky: `[C, D, D]`, lower; its product with its transpose is the precision.
      inverse: `[C, D, D]`, the inverse of `cholesky`.
      log_evidence: scalar, log p(observations) in nats.
      converged: `[C]` bool, whether Newton's steps arrived at the mode.
    """

    log_weight: jax.Array
    component_mean: jax.Array
    cholesky: jax.Array
    inverse: jax.Array
    log_evidence: jax.Array
    converged: jax.Array

    @property
    def all_converged(self) -> jax.Array:
        """Whether Newton's steps arrived at the mode of every component, bool."""
        return self.converged.all(axis=-1)

    @property
    def mean(self) -> jax.Array:
        """The mean of z, `[D]`."""
        return jnp.einsum(
            "...c,...cd->...d", jnp.exp(self.log_weight), self.component_mean
        )

    @property
    def covariance(self) -> jax.Array:
        """The covariance of z, `[D, D]`."""
        weight = jnp.exp(self.log_weight)
        half = self.inverse
        within = jnp.einsum("...c,...ced,...cef->...df", weight, half, half)
        apart = self.component_mean - self.mean[..., None, :]
        return within + jnp.einsum("...c,...cd,...ce->...de", weight, apart, apart)

    @property
    def std(self) -> jax.Array:
        """The standard deviation of each dimension of z, `[D]`."""
        return jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))


def of_prior(prior: Mixture) -> Posterior:
    """Returns the posterior of a person who has told nothing."""
    mean, log_std = at_least_float32(prior.mean), at_least_float32(prior.log_std)
    return Posterior(
        log_weight=jax.nn.log_softmax(at_least_float32(prior.log_weight)),
        component_mean=mean,
        cholesky=jax.vmap(jnp.diag)(jnp.exp(-log_std)),
        inverse=jax.vmap(jnp.diag)(jnp.exp(log_std)),
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
    moved = jnp.einsum("kij,ki->kj", posterior.inverse[which], noise)
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
    return mean, jax.vmap(variance, (None, 0))(features, posterior.inverse)


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
    mean, spread = utility(posterior, features, offset)
    std = jnp.sqrt(spread)
    low, high = (jnp.broadcast_to(x, offset.shape) for x in (low, high))
    nodes, log_weights = quadrature(mean, std, low, high)
    u = mean[..., None] + std[..., None] * nodes
    log_p = observations.log_prob(u, low[:, None], high[:, None]) + log_weights
    return logsumexp(log_p + posterior.log_weight[:, None, None], axis=(0, 2))


def quantiles(
    posterior: Posterior, features: jax.Array, offset: jax.Array, levels: jax.Array
) -> jax.Array:
    """Computes quantiles of utilities, such as the ends of an interval; no derivatives.

    Args:
      posterior: over `[D]`.
      features: `[M, D]`.
      offset: `[M]`.
      levels: `[L]`, each between 0 and 1; .05 and .95 are the ends of a 90% interval.

    Returns:
      `[L, M]`, the utility that is not exceeded with the probability of the level.
    """
    chex.assert_rank([features, offset], [2, 1])
    mean, spread = jax.lax.stop_gradient(utility(posterior, features, offset))
    std = jnp.sqrt(spread)
    weight = jax.lax.stop_gradient(jnp.exp(posterior.log_weight))
    levels = jnp.asarray(levels, mean.dtype)
    chex.assert_rank(levels, 1)
    # The quantile of a mixture lies between those of its components.
    own = mean + std * jax.scipy.special.ndtri(levels)[:, None, None]

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = jnp.einsum("c,clm->lm", weight, _normal_cdf(middle, mean, std))
        too_low = below < levels[:, None]
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (own.min(1), own.max(1)))
    return (low + high) / 2


def _normal_cdf(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Returns P(u <= x) `[C, L, M]` at x `[L, M]` under N(mean, std^2), `[C, M]`."""
    standard = (x - mean[:, None]) / std[:, None]
    return jax.scipy.special.ndtr(standard)


def quadrature(
    mean: jax.Array, std: jax.Array, low: jax.Array, high: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns points and log-weights of integrals of observations under Gaussians of u.

    Under a wide Gaussian an observation is nearly a step at each end of its interval,
    of which Gauss-Hermite quadrature sees little. Here Gauss-Legendre rules meet around
    these steps: before the first, between them and behind the second.

    Args:
      mean: `[...]`, of u.
      std: `[...]`, of u.
      low: `[...]`, the ends of the interval of u; one beyond 4 standard deviations is
        taken to be there.
      high: `[...]`.

    Returns:
      `[..., Q]` each: points of (u - mean) / std, without derivatives, and log-weights
      that sum to one.
    """
    mean, std, low, high = jax.lax.stop_gradient((mean, std, low, high))
    # An interval with a single end has its only step there.
    first = jnp.where(jnp.isfinite(low), low, high)
    second = jnp.where(jnp.isfinite(high), high, low)

    def standard(u, most=_INNER):
        return jnp.clip((u - mean) / std, -most, most)

    begin, end = standard(first - _TRANSITION), standard(second + _TRANSITION)
    # Under a narrow Gaussian there are no steps, and its peak is split.
    middle = jnp.clip(standard((first + second) / 2, _CENTRE), begin, end)
    reach = jnp.full_like(middle, _REACH)
    ends = [
        -reach,
        begin,
        jnp.clip(standard(first + _TRANSITION), begin, middle),
        jnp.clip(standard(second - _TRANSITION), middle, end),
        end,
        reach,
    ]
    ends = jnp.stack(ends, axis=-1)
    half, center = (
        (ends[..., 1:] - ends[..., :-1]) / 2,
        (ends[..., 1:] + ends[..., :-1]) / 2,
    )
    nodes, weights = np.polynomial.legendre.leggauss(_PANEL_POINTS)
    nodes, weights = nodes.astype(half.dtype), weights.astype(half.dtype)
    # Not -1, since there may be no utility at all.
    shape = (*half.shape[:-1], half.shape[-1] * _PANEL_POINTS)
    x = (center[..., None] + half[..., None] * nodes).reshape(shape)
    # A panel may be empty, and has a weight of 0.
    weight = (half[..., None] * weights).reshape(shape)
    return x, jax.nn.log_softmax(jnp.log(weight) - 0.5 * x**2)


def variance(features: jax.Array, inverse: jax.Array) -> jax.Array:
    """Returns the variance `[M]` of features `[M, D]` times z, of one component."""
    half = features @ inverse.T
    # Kept above 0, where the derivative of its root is infinite: padding has none.
    return jnp.maximum(jnp.sum(half**2, axis=1), 1e-6)


def half_log_det(cholesky: jax.Array) -> jax.Array:
    """Returns half the log-determinant of a matrix by its Cholesky factor `[D, D]`."""
    # Not jnp.diagonal, which branches by platform in every program that holds it.
    diagonal = jnp.sum(cholesky * jnp.eye(len(cholesky), dtype=cholesky.dtype), axis=1)
    return jnp.sum(jnp.log(diagonal))
