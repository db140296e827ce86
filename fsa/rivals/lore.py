"""LoRe: a person's reward is a convex combination of a few base rewards.

Bose, Xiong, Chi, Du, Xiao and Fazel 2025 ("LoRe: personalizing LLMs via low-rank reward
modeling", arXiv 2504.14439): r_u(x) = w_u . R(x) with w_u in the simplex; R and the
weights of training people are learned together by maximum likelihood, and a new
person's weights by maximum likelihood with R as it is. The public code descends from a
random start; this starts from training people's mean, which is what it predicts for a
person of whom nothing is known.

Shapes: K base rewards, N context choices, M target choices, U training people.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsa import episodes
from fsa.episodes import Choices, Episode
from fsa.rivals import basis, learned, weights
from fsa.rivals.method import TrainingPeople
from fsa.training.reward_loss import example_episode, init_module


@dataclasses.dataclass(frozen=True)
class Lore(learned.Learned):
    """Base rewards by features, with weights of each person that sum to 1.

    Attributes:
      size: K.
      adapt_steps: numbers of steps of Adam that fit a new person's weights, of which
        validation people choose one.
      adapt_rate: their learning rate.
    """

    size: int = 8
    adapt_steps: tuple[int, ...] = (5, 15, 50)
    adapt_rate: float = 0.1

    def init(self, people: TrainingPeople, key: jax.Array) -> Any:
        """Makes the base rewards, and random logits of the weights, `[U, K]`."""
        basis_key, key = jax.random.split(key)
        options = example_episode(people.task).context.chosen
        variables = init_module(self.module, people.task, basis_key, options)
        shape = learned.num_training_users(people), self.size
        table = jax.random.normal(key, shape) / basis.FASTER
        return basis.with_people(variables, people, table)

    def loss(self, variables, user, episode: Episode, key) -> jax.Array:
        """Computes the mean negative log-likelihood of the person's choices."""
        choices = episodes.concatenate(episode.context, episode.target)
        logits = basis.FASTER * variables["params"]["people"][user]
        fit = weights.log_likelihood(
            self.utilities(variables, logits, choices), choices.mask
        )
        return -fit / jnp.maximum(choices.mask.sum(), 1)

    def finish(self, variables: Any) -> list[Any]:
        """Keeps the base rewards, and the mean logits of training people as `start`."""
        trained = variables["people"]["trained"]
        table = basis.FASTER * variables["params"]["people"]
        start = trained @ table / trained.sum()
        return [
            basis.without_people(variables, start=start, adapt_steps=jnp.int32(n))
            for n in self.adapt_steps
        ]

    def adapt(self, values: Any, context: Choices) -> jax.Array:
        """Fits the logits of a person's weights, `[K]`."""

        def loss(logits):
            utilities = self.utilities(values, logits, context)
            return -weights.log_likelihood(utilities, context.mask)

        start = values["params"]["start"]
        return weights.descend(
            loss, start, num_steps=values["params"]["adapt_steps"], rate=self.adapt_rate
        )

    def predict(self, values: Any, person: jax.Array, target: Choices) -> jax.Array:
        """Predicts by the fitted weights."""
        return jax.nn.log_sigmoid(self.utilities(values, person, target))

    @property
    def module(self) -> nn.Module:
        """The base rewards, K of each option."""
        return basis.Basis(self.hidden, self.size)

    def utilities(self, variables: Any, logits: jax.Array, choices: Choices):
        """Returns rewards of the chosen minus those of the rejected options, `[N]`."""
        features = basis.differences(self.module, variables, choices)
        return features @ jax.nn.softmax(logits)
