"""The reward models of this library as methods: BTL, DPL, NP-BTL, VPL and `bayes`.

They have the sizes and objectives of `fsa.recipes.presets.people`, and are trained as
all methods are.

Shapes: N context choices, M target choices, K samples of z.
"""

import dataclasses
import functools
from typing import Any

import jax

from fsa.episodes import Choices, Episode
from fsa.models import linear_reward, reward_models
from fsa.models.reward_models import AnyRewardModel
from fsa.recipes import presets
from fsa.recipes.run import model_arguments
from fsa.rivals import learned
from fsa.rivals.method import TrainingPeople
from fsa.training import reward_loss


@dataclasses.dataclass(frozen=True)
class RewardModelMethod(learned.Learned):
    """A reward model.

    Attributes:
      preset: its name in `fsa.recipes.presets.MODELS`.
      context: `model.context` of the preset, for those that have one.
      train_samples: K in training, for objectives that draw z.
      num_samples: K of predictions.
    """

    preset: str = "bayes"
    context: str = linear_reward.CHOICES
    train_samples: int = 4
    num_samples: int = 16

    def init(self, people: TrainingPeople, key: jax.Array) -> Any:
        """Makes the variables of the model."""
        return reward_loss.init_variables(self.model, people.task, key)

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
        name = self._config["objective"]["name"]
        return reward_models.predict_from(
            self.model,
            values,
            person,
            target,
            # The same draws for everybody, so that a prediction can be made again.
            jax.random.key(0),
            num_samples=self.num_samples,
            deterministic=name == "deterministic",
        )

    @functools.cached_property
    def model(self) -> AnyRewardModel:
        """The Flax module."""
        arguments = model_arguments(self._config, 0)
        return reward_models.make({**arguments, "hidden": self.hidden})

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        config = presets.people(self.preset)
        config.model.context = self.context
        return config.to_dict()
