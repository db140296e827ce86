"""The reward models of this library as methods: BTL, DPL, NP-BTL, VPL and `bayes`.

They have the sizes and objectives of `fsa.recipes.presets.people`, and are trained as
all methods are.

Shapes: N context choices, M target choices, K samples of z.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fsa import episodes, latent, losses
from fsa.episodes import Choices, Episode
from fsa.latent import mixture
from fsa.models import reward_models
from fsa.models.linear_reward import LinearRewardModel
from fsa.models.reward_models import AnyRewardModel
from fsa.recipes import presets
from fsa.recipes.run import model_arguments
from fsa.rivals import learned
from fsa.rivals.method import TrainingPeople


@dataclasses.dataclass(frozen=True)
class RewardModelMethod(learned.Learned):
    """A reward model.

    Attributes:
      preset: its name in `fsa.recipes.presets.MODELS`.
      train_samples: K in training, for objectives that draw z.
      num_samples: K of predictions.
    """

    preset: str = "bayes"
    train_samples: int = 4
    num_samples: int = 16

    def init(self, people: TrainingPeople, key: jax.Array) -> Any:
        """Makes the variables of the model."""
        options = learned.example_options(people)
        choices = Choices(options, options, jnp.ones(len(options.item), bool))
        episode = Episode(choices, choices, jnp.int32(0))
        return learned.init_module(self.model, people, key, episode)

    def loss(self, variables, user, episode: Episode, key) -> jax.Array:
        """Computes the objective of the preset, see `fsa.models.reward_models`."""
        objective = dict(self._config["objective"])
        loss, _ = reward_models.episode_loss(
            self.model,
            variables,
            episode,
            key,
            objective=objective["name"],
            num_samples=self.train_samples,
            beta=objective["beta"],
        )
        return loss

    def adapt(self, values: Any, context: Choices) -> Any:
        """Infers the posterior of z."""
        return self.model.apply(values, context, method=self.model.encode)

    def predict(self, values: Any, person: Any, target: Choices) -> jax.Array:
        """Averages probabilities over the posterior of z."""
        if isinstance(self.model, LinearRewardModel):
            return self.model.apply(values, person, target, method=_averaged)
        name = self._config["objective"]["name"]
        # The same draws for everybody, so that a prediction can be made again.
        z = latent.mean_or_samples(
            person,
            jax.random.key(0),
            self.num_samples,
            deterministic=name == "deterministic",
        )
        log_probs = self.model.apply(values, target, z, method=self.model.log_prob)
        return losses.marginal_log_prob(log_probs)

    @functools.cached_property
    def model(self) -> AnyRewardModel:
        """The Flax module."""
        arguments = model_arguments(self._config, 0)
        return reward_models.make({**arguments, "hidden": self.hidden})

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        return presets.people(self.preset).to_dict()


def _averaged(model: LinearRewardModel, posterior: Any, target: Choices) -> jax.Array:
    observed = model.observations(episodes.as_feedback(target))
    return mixture.predict(posterior, observed.features, observed.offset)
