"""What a person tells of their preferences, in one form: choices, ties, likes, ratings.

A person's utility of an option is linear in their latent z. Whatever they tell is then
an interval of u = features . z + offset, of one option or of the difference of two:
with noise e of the standard logistic distribution, `low < u + e <= high`.

| what is told                      | features, offset      | low    | high      |
|-----------------------------------|-----------------------|--------|-----------|
| a was chosen over b               | of a minus those of b | 0      | inf       |
| the same, where ties were allowed | of a minus those of b | w      | inf       |
| a and b are equally good          | of a minus those of b | -w     | w         |
| a is liked                        | of a minus a neutral  | 0      | inf       |
| a is disliked                     | of a minus a neutral  | -inf   | 0         |
| a is rated k                      | of a                  | t_k    | t_(k + 1) |

The first row is the Bradley-Terry-Luce model, those with w are Rao & Kupper (1967) with
theta = exp(w), and the last is the ordered logit (McCullagh 1980). The log-likelihood
is concave in u, and hence in z.

Functions take one unbatched person; callers `jax.vmap` over people.

Shapes: N observations, D latent dimensions, and `...` for any axes.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from fsa.latent.gaussian import at_least_float32


class Observations(NamedTuple):
    """A padded set of observations of one person, as a pytree.

    Attributes:
      features: `[N, D]`.
      offset: `[N]`.
      low: `[N]`, may be -inf.
      high: `[N]`, above `low`; may be inf.
      weight: `[N]`, how often an observation counts; 0 for padding.
    """

    features: jax.Array
    offset: jax.Array
    low: jax.Array
    high: jax.Array
    weight: jax.Array

    @classmethod
    def of(
        cls,
        features: jax.Array,
        offset: jax.Array,
        weight: jax.Array,
        *,
        low: jax.Array | float = 0.0,
        high: jax.Array | float = jnp.inf,
    ) -> "Observations":
        """Makes observations; by default choices, of which u is that of the chosen one.

        Args:
          features: `[N, D]`.
          offset: `[N]`.
          weight: `[N]`, or a mask.
          low: broadcast to `[N]`.
          high: broadcast to `[N]`.
        """
        chex.assert_rank([features, offset, weight], [2, 1, 1])
        chex.assert_equal_shape_prefix([features, offset, weight], 1)
        features, offset, weight = map(at_least_float32, (features, offset, weight))
        low, high = (
            jnp.broadcast_to(jnp.asarray(x, offset.dtype), offset.shape)
            for x in (low, high)
        )
        return cls(features, offset, low, high, weight)

    def utility(self, z: jax.Array) -> jax.Array:
        """Returns u `[N]` at z `[D]`."""
        return self.features @ z + self.offset

    def log_prob(self, z: jax.Array) -> jax.Array:
        """Returns the log-probability of all observations at z `[D]`, in nats."""
        return self.weight @ log_prob(self.utility(z), self.low, self.high)


def concatenate(*parts: Observations) -> Observations:
    """Joins several sets, one after the other."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def log_prob(u: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Returns log p(low < u + e <= high) in nats.

    The probability sigmoid(high - u) - sigmoid(low - u) is also the product
    sigmoid(u - low) sigmoid(high - u) (1 - exp(low - high)), which loses no digits.

    Args:
      u: `[...]`.
      low: broadcast against `u`, may be -inf.
      high: above `low`, broadcast against `u`, may be inf.

    Returns:
      `[...]`, at most 0.
    """
    u, low, high = map(at_least_float32, (u, low, high))
    return _log_above(u, low) + _log_above(-u, -high) + _log_width(low, high)


def _log_above(u: jax.Array, low: jax.Array) -> jax.Array:
    """Returns log sigmoid(u - low), 0 at low = -inf, where derivatives would be NaN."""
    bounded = jnp.isfinite(low)
    gap = u - jnp.where(bounded, low, 0)
    return jnp.where(bounded, jax.nn.log_sigmoid(gap), 0)


def _log_width(low: jax.Array, high: jax.Array) -> jax.Array:
    both = jnp.isfinite(low) & jnp.isfinite(high)
    width = jnp.where(both, high, 1) - jnp.where(both, low, 0)
    return jnp.where(both, jnp.log(-jnp.expm1(-width)), 0)


def slope_and_curvature(
    u: jax.Array, low: jax.Array, high: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the first, and minus the second, derivative of `log_prob` by u.

    The arguments are those of `log_prob`; both results are `[...]`.
    """
    below, above = jax.nn.sigmoid(low - u), jax.nn.sigmoid(u - high)
    return below - above, below * (1 - below) + above * (1 - above)


def num_ends(low: jax.Array, high: jax.Array) -> jax.Array:
    """Counts finite ends, each of which curves `log_prob` by at most 1/4; `[...]`."""
    return jnp.isfinite(low).astype(low.dtype) + jnp.isfinite(high)
