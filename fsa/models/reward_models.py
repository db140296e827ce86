"""What the models of rewards have in common: they are built, trained and used alike.

`RewardModel` infers z by an encoder of contexts, `LinearRewardModel` by Bayes' rule.
Both have the methods `encode`, `reward` and `log_prob`.

Shapes: M target choices, K samples of z. Functions take one unbatched user; callers
vmap.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from fsa import latent, losses
from fsa.episodes import Choices, Episode
from fsa.latent import DiagonalGaussian, Posterior
from fsa.models import linear_reward, reward
from fsa.models.linear_reward import LinearRewardModel
from fsa.models.reward import RewardModel

AnyRewardModel = RewardModel | LinearRewardModel

# How z enters the reward.
LINEAR = "linear"
CONDITIONINGS = (*reward.CONDITIONINGS, LINEAR)

OBJECTIVES = (*reward.OBJECTIVES, *linear_reward.OBJECTIVES)


def attributes(conditioning: str) -> set[str]:
    """Returns the names of what a model is built from, by how z enters its reward."""
    model = LinearRewardModel if conditioning == LINEAR else RewardModel
    return {field.name for field in dataclasses.fields(model)}


def all_attributes() -> set[str]:
    """Returns the names of what any model is built from."""
    return set.union(*map(attributes, CONDITIONINGS))


def make(arguments: Mapping[str, Any]) -> AnyRewardModel:
    """Builds a model from its arguments and `conditioning`, as checkpoints do."""
    arguments = dict(arguments)
    if arguments.get("conditioning") == LINEAR:
        del arguments["conditioning"]
        # JSON has lists where models have tuples.
        levels = tuple(arguments.pop("levels", ()))
        return LinearRewardModel(**arguments, levels=levels)
    return RewardModel(**arguments)


def episode_loss(
    model: AnyRewardModel,
    variables: Any,
    episode: Episode,
    key: jax.Array,
    *,
    objective: str,
    num_samples: int,
    beta: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the few-shot objective of one user, see `fsa.models.reward`."""
    if isinstance(model, LinearRewardModel):
        return linear_reward.episode_loss(
            model, variables, episode, key, objective=objective
        )
    return reward.episode_loss(
        model,
        variables,
        episode,
        key,
        objective=objective,
        num_samples=num_samples,
        beta=beta,
    )


def predict(
    model: AnyRewardModel,
    variables: Any,
    episode: Episode,
    key: jax.Array,
    *,
    num_samples: int,
    deterministic: bool = False,
) -> jax.Array:
    """Computes log p(target | C) of one user: probabilities averaged over z ~ q(z | C).

    Args:
      model: any reward model.
      variables: its Flax variables.
      episode: one user's, unbatched.
      key: a JAX random key; unused by a model that is linear in z, which needs no
        samples, as are the arguments that follow.
      num_samples: K.
      deterministic: whether to use z = E[z | C] alone, for models trained that way.

    Returns:
      `[M]` in nats; the values at padded targets have no meaning.
    """
    q = model.apply(variables, episode.context, method=model.encode)
    return predict_from(
        model,
        variables,
        q,
        episode.target,
        key,
        num_samples=num_samples,
        deterministic=deterministic,
    )


def predict_from(
    model: AnyRewardModel,
    variables: Any,
    q: DiagonalGaussian | Posterior,
    target: Choices,
    key: jax.Array,
    *,
    num_samples: int,
    deterministic: bool = False,
) -> jax.Array:
    """Does what `predict` does, from what was inferred of a user: q(z | C)."""
    if isinstance(model, LinearRewardModel):
        return model.apply(variables, q, target, method=model.predict)
    z = latent.mean_or_samples(q, key, num_samples, deterministic=deterministic)
    log_probs = model.apply(variables, target, z, method=model.log_prob)
    return losses.marginal_log_prob(log_probs)
