"""Diagonal Gaussians over the latent preference z.

Everything is computed and returned in at least float32, so that a bfloat16 encoder
loses no further digits. A wrong shape or type is refused by `chex` when the function is
traced.

Shapes: D latent dimensions, K samples, N factors of a product, and `...` for any
leading axes.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class DiagonalGaussian(NamedTuple):
    """A diagonal Gaussian N(mean, diag(exp(log_std))^2), as a pytree.

    Attributes:
      mean: `[..., D]`.
      log_std: `[..., D]`, natural logarithm of the standard deviation.
    """

    mean: jax.Array
    log_std: jax.Array


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts half-precision and integer arrays to float32; others stay as they are."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def standard_normal(dim: int) -> DiagonalGaussian:
    """Returns N(0, I) over `dim` dimensions."""
    return DiagonalGaussian(jnp.zeros(dim), jnp.zeros(dim))


def sample(
    distribution: DiagonalGaussian, key: jax.Array, num_samples: int
) -> jax.Array:
    """Draws z by reparameterisation (Kingma & Welling 2014, section 2.4).

    Args:
      distribution: over `[D]`, unbatched.
      key: a JAX random key.
      num_samples: K.

    Returns:
      `[K, D]`, differentiable in mean and log_std.
    """
    chex.assert_rank(distribution, 1)
    chex.assert_equal_shape(distribution)
    mean, log_std = map(at_least_float32, distribution)
    noise = jax.random.normal(key, (num_samples, *mean.shape), mean.dtype)
    return mean + jnp.exp(log_std) * noise


def log_prob(distribution: DiagonalGaussian, z: jax.Array) -> jax.Array:
    """Returns the log-density of z in nats.

    Args:
      distribution: over `[..., D]`.
      z: `[..., D]`, whose leading axes are broadcast against the distribution's.

    Returns:
      `[...]`, summed over the D dimensions.
    """
    chex.assert_equal_shape(distribution)
    chex.assert_shape(z, (..., *distribution.mean.shape[-1:]))
    mean, log_std = map(at_least_float32, distribution)
    standardized = (z - mean) * jnp.exp(-log_std)
    return -0.5 * jnp.sum(standardized**2 + 2 * log_std + jnp.log(2 * jnp.pi), axis=-1)


def kl_per_dimension(q: DiagonalGaussian, p: DiagonalGaussian) -> jax.Array:
    """Returns KL(q || p) of each dimension in nats, `[..., D]`.

    Args:
      q: over `[..., D]`.
      p: over `[..., D]`, whose leading axes are broadcast against those of q.
    """
    chex.assert_equal_shape(q)
    chex.assert_equal_shape(p)
    chex.assert_equal_shape_suffix([q.mean, p.mean], 1)
    q_mean, q_log_std = map(at_least_float32, q)
    p_mean, p_log_std = map(at_least_float32, p)
    log_ratio = q_log_std - p_log_std
    # expm1 keeps the digits of the difference between nearly equal variances.
    spread = 0.5 * jnp.expm1(2 * log_ratio) - log_ratio
    return spread + 0.5 * ((q_mean - p_mean) * jnp.exp(-p_log_std)) ** 2


def kl(q: DiagonalGaussian, p: DiagonalGaussian) -> jax.Array:
    """Returns KL(q || p) in nats, summed over the D dimensions to `[...]`."""
    return jnp.sum(kl_per_dimension(q, p), axis=-1)


def product(
    factors: DiagonalGaussian, mask: jax.Array, prior: DiagonalGaussian
) -> DiagonalGaussian:
    """Returns the normalised product of a prior and any number of Gaussian factors.

    Precisions add, and means are averaged with precisions as weights (Hinton 2002). If
    every factor is masked, the result is the prior.

    Args:
      factors: mean and log_std `[N, D]`.
      mask: `[N]`, true where a factor counts.
      prior: mean and log_std `[D]`.

    Returns:
      A distribution over `[D]`.
    """
    chex.assert_rank([*factors, mask, *prior], [2, 2, 1, 1, 1])
    chex.assert_type(mask, bool)
    chex.assert_equal_shape(prior)
    chex.assert_shape(list(factors), (*mask.shape, *prior.mean.shape))
    mean, log_std = map(at_least_float32, factors)
    prior_mean, prior_log_std = map(at_least_float32, prior)
    precision = jnp.where(mask[:, None], jnp.exp(-2 * log_std), 0.0)
    mean = jnp.where(mask[:, None], mean, 0.0)
    prior_precision = jnp.exp(-2 * prior_log_std)
    total = prior_precision + precision.sum(axis=0)
    weighted = prior_precision * prior_mean + (precision * mean).sum(axis=0)
    return DiagonalGaussian(weighted / total, -0.5 * jnp.log(total))
