"""How sure a model that is linear in z is of the rewards of options to a person.

Shapes: O options.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fsa.episodes import Feedback, Options
from fsa.latent import Posterior, mixture
from fsa.models.linear_reward import LinearRewardModel

# The ends of a 90% interval.
_ENDS = (0.05, 0.95)


@functools.partial(jax.jit, static_argnums=0)
def against_others(
    model: LinearRewardModel,
    variables: Any,
    q: Posterior,
    options: Options,
    group: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Computes each option's reward minus the mean of the others, in nats.

    Args:
      model: a model that is linear in z.
      variables: its Flax variables.
      q: the posterior of z.
      options: O options, padded.
      group: `[O]` int from 0 to O - 1; the others are those of the same group. Padding
        is a group of its own.

    Returns:
      The expected values `[O]`, and the ends `[2, O]` of their 90% intervals.
    """
    utility = model.apply(variables, options, method=model.features)

    def total(x):
        return jax.ops.segment_sum(x, group, num_segments=len(group))[group]

    # Padding may be alone.
    num_others = jnp.maximum(total(jnp.ones(len(group))) - 1, 1)

    def minus_others(x):
        return x - ((total(x) - x).T / num_others).T

    features, offset = map(minus_others, utility)
    ends = mixture.quantiles(q, features, offset, jnp.array(_ENDS))
    return features @ q.mean + offset, ends


@functools.partial(jax.jit, static_argnums=0)
def compare(
    model: LinearRewardModel, variables: Any, context: Feedback, options: Options
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compares two options.

    Returns:
      The log-probability that the first is chosen; the expected difference of their
      rewards; and the ends `[2]` of its 90% interval.
    """
    q = model.apply(variables, context, method=model.encode)
    utility = model.apply(variables, options, method=model.features)
    features, offset = (x[:1] - x[1:] for x in utility)
    ends = mixture.quantiles(q, features, offset, jnp.array(_ENDS))
    log_prob = mixture.predict(q, features, offset)
    return log_prob[0], (features @ q.mean + offset)[0], ends[:, 0]
