"""How much the answer to a question is expected to tell, before it is asked.

A question is about one option or a pair, and its answer is an interval of a linear
utility u, see `fsa.latent.observations`; `cuts` are the ends between the answers:

| question                         | features, offset      | cuts          |
|----------------------------------|-----------------------|---------------|
| a or b?                          | of a minus those of b | 0             |
| a or b, or are they equally good | of a minus those of b | -w, w         |
| is a liked?                      | of a minus a neutral  | 0             |
| how is a rated?                  | of a                  | t_1, t_2, ... |

What an answer y tells about z is their mutual information, in nats,

    H(E p(y | z)) - E H(p(y | z)):

how much less is known about y than would be with z known. That is large where the
answer cannot be predicted *because* z is not known, and small where it is a matter of
chance (Houlsby et al. 2011, "Bayesian active learning for classification and preference
learning").

Functions take one unbatched person; callers `jax.vmap` over people.

Shapes: M questions, A answers, D latent dimensions, K samples of z, O options.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr, logsumexp

from fsa.latent import mixture, observations
from fsa.latent.mixture import Posterior

# The trapezium rule over this many points, from so many standard deviations below the
# mean to as many above. Where u has a standard deviation of 10 it errs by 1e-7, and
# Gauss-Hermite quadrature of 64 points by 8e-3: entropy is a narrow function of u.
_POINTS, _WIDTH = 101, 6.0


def information_gain(
    posterior: Posterior,
    features: jax.Array,
    offset: jax.Array,
    *,
    cuts: Sequence[float] | jax.Array = (0.0,),
) -> jax.Array:
    """Computes what the answer to a question is expected to tell about z, in nats.

    Args:
      posterior: over `[D]`.
      features: `[M, D]`.
      offset: `[M]`.
      cuts: `[A - 1]`, ascending; by default those of a choice between two options.

    Returns:
      `[M]`, from 0 to log A; that of a pair does not depend on its order.
    """
    chex.assert_rank([features, offset], [2, 1])
    nodes = np.linspace(-_WIDTH, _WIDTH, _POINTS, dtype=np.float32)
    log_weights = jax.nn.log_softmax(-0.5 * nodes**2)
    mean, variance = mixture.utility(posterior, features, offset)
    u = mean[..., None] + jnp.sqrt(variance)[..., None] * nodes
    log_prob = answers(u, cuts)
    log_weight = posterior.log_weight[:, None, None] + log_weights
    return _mutual_information(log_prob, log_weight, axis=(1, 3))


def answers(u: jax.Array, cuts: Sequence[float] | jax.Array = (0.0,)) -> jax.Array:
    """Computes log p(answer | u) in nats.

    Args:
      u: `[...]`.
      cuts: `[A - 1]`, ascending.

    Returns:
      `[A, ...]`, from the answer below the first cut to that above the last one.
    """
    cuts = jnp.asarray(cuts, u.dtype)
    chex.assert_rank(cuts, 1)
    ends = jnp.concatenate([jnp.array([-jnp.inf]), cuts, jnp.array([jnp.inf])])
    return jax.vmap(lambda low, high: observations.log_prob(u, low, high))(
        ends[:-1], ends[1:]
    )


def gain_of_samples(log_prob: jax.Array) -> jax.Array:
    """Computes what an answer is expected to tell about z, from K samples of z.

    For models of any kind. The estimate is too small by about (A - 1) / 2K at most, as
    the entropy of a mean of samples is below that of the expectation.

    Args:
      log_prob: `[A, K, M]`, log p(answer | z) in nats.

    Returns:
      `[M]` in nats.
    """
    chex.assert_rank(log_prob, 3)
    return _mutual_information(log_prob, -jnp.log(log_prob.shape[1]), axis=1)


def gain_about(group: jax.Array, log_prob: jax.Array) -> jax.Array:
    """Computes what an answer is expected to tell about which group z belongs to.

    That is the mutual information of the answer and the group: p(answer | group) is the
    mean over the samples of the group. It is at most what the answer tells about z.
    With G groups it is too large by about G (A - 1) / 2K at most, so that groups should
    be few: with a sample in each, it is `gain_of_samples`.

    Args:
      group: `[K]` int, from 0 to K - 1, such as `same_best` of the rewards of options.
      log_prob: `[A, K, M]`, log p(answer | z) in nats.

    Returns:
      `[M]` in nats.
    """
    chex.assert_rank([group, log_prob], [1, 3])
    size = len(group)
    member = group == jnp.arange(size)[:, None]
    count = member.sum(axis=1)
    share = member / jnp.maximum(count, 1)[:, None]
    of_group = jnp.einsum("gk,akm->agm", share, jnp.exp(log_prob))
    expected = jnp.exp(log_prob).mean(axis=1)
    within = jnp.einsum("g,agm->m", count / size, entr(of_group))
    return jnp.maximum(entr(expected).sum(axis=0) - within, 0)


def same_best(rewards: jax.Array) -> jax.Array:
    """Groups samples of z by the option that is the best, `[K]`.

    Args:
      rewards: `[K, O]`.
    """
    chex.assert_rank(rewards, 2)
    return _grouped(jnp.argmax(rewards, axis=1)[:, None])


def same_order(rewards: jax.Array) -> jax.Array:
    """Groups samples of z by the order of all options, `[K]`.

    Args:
      rewards: `[K, O]`.
    """
    chex.assert_rank(rewards, 2)
    return _grouped(jnp.argsort(rewards, axis=1))


def _grouped(labels: jax.Array) -> jax.Array:
    """Returns a number `[K]` for each row of labels `[K, L]`, equal for equal rows."""
    _, group = jnp.unique(labels, axis=0, return_inverse=True, size=len(labels))
    return group.reshape(-1)


def _mutual_information(log_prob, log_weight, axis) -> jax.Array:
    """Returns H(E p) - E H(p) of answers `[A, ...]`, with the mean over some axes."""
    expected = logsumexp(log_prob + log_weight, axis=axis)
    entropy = -jnp.sum(jnp.exp(expected) * expected, axis=0)
    axes = (0, *axis) if isinstance(axis, tuple) else (0, axis)
    weighted = jnp.exp(log_prob + log_weight)
    return jnp.maximum(entropy + jnp.sum(weighted * log_prob, axis=axes), 0)
