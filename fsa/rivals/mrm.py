"""MRM: weights over base rewards from a start that is learned by meta-learning.

Cai, Li, Yu, Zhu, Wang, Feng and Li 2026 ("One adapts to any: meta reward modeling for
personalized LLM alignment", arXiv 2601.18731): r_u(x) = w_u . phi(x), and w_u is the
start w_0 after a few gradient steps on the person's choices. The start and phi minimise
the loss of other choices after these steps, through the steps (MAML, Finn, Abbeel and
Levine 2017, eq. 1). People with large losses count more (the robust personalization
objective): by sigmoid((L - tau) / gamma) with tau a quantile of the batch's losses, as
in the public code. That code passes weights through a softmax; here they are free, so
that a base reward can be turned round, and the size of a step is learned too.

Shapes: K base rewards, B people of a batch, N context choices, M target choices.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsa import losses
from fsa.episodes import Choices, Episode
from fsa.rivals import basis, learned, weights
from fsa.rivals.method import TrainingPeople
from fsa.training.reward_loss import example_episode, init_module


@dataclasses.dataclass(frozen=True)
class Mrm(learned.Learned):
    """Base rewards by features, with weights that follow the gradient.

    Attributes:
      size: K.
      adapt_steps: gradient steps of a person.
      hard_share: share of people whose losses lie above tau.
      softness: gamma, in nats.
    """

    size: int = 16
    adapt_steps: int = 3
    hard_share: float = 0.5
    softness: float = 0.5

    def init(self, people: TrainingPeople, key: jax.Array) -> Any:
        """Makes the base rewards, the start `[K]`, and the log of a step's size."""
        basis_key, key = jax.random.split(key)
        options = example_episode(people.task).context.chosen
        variables = init_module(self.module, people.task, basis_key, options)
        start = jax.random.normal(key, (self.size,)) / jnp.sqrt(self.size)
        return basis.with_basis(variables, start=start, log_rate=jnp.zeros(()))

    def loss(self, variables, user, episode: Episode, key) -> jax.Array:
        """Computes the mean NLL of the targets after adapting to the context."""
        target = episode.target
        person = self.adapt(variables, episode.context)
        return losses.mean_nll(self.predict(variables, person, target), target.mask)

    def over_people(self, losses: jax.Array) -> jax.Array:
        """Weights people by how hard they are to predict."""
        threshold = jnp.quantile(losses, 1 - self.hard_share)
        return jnp.mean(jax.nn.sigmoid((losses - threshold) / self.softness) * losses)

    def adapt(self, values: Any, context: Choices) -> jax.Array:
        """Returns a person's weights `[K]`."""
        features = basis.differences(self.module, values, context)
        count = jnp.maximum(context.mask.sum(), 1)
        rate = jnp.exp(values["params"]["log_rate"])

        def loss(w):
            return -weights.log_likelihood(features @ w, context.mask) / count

        w = values["params"]["start"]
        for _ in range(self.adapt_steps):
            w = w - rate * jax.grad(loss)(w)
        return w

    def predict(self, values: Any, person: jax.Array, target: Choices) -> jax.Array:
        """Predicts by the person's weights."""
        features = basis.differences(self.module, values, target)
        return jax.nn.log_sigmoid(features @ person)

    @property
    def module(self) -> nn.Module:
        """The base rewards, K of each option."""
        return basis.Basis(self.hidden, self.size)
