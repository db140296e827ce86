"""Gradient adaptation at test time: a reward network is trained on a person's choices.

The network's last two layers follow the gradient of a person's choices for a few steps.
Their start, the rest of the network, and the size of a step of each array are learned
through these steps: MAML (Finn, Abbeel and Levine 2017, eq. 1) with learned rates (Li,
Zhou, Chen and Li 2017, eq. 3). It stands for "P-TTT" of published comparisons of
personalised reward models, whose paper we could not find.

Shapes: H hidden width, N context choices, M target choices.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsa import losses
from fsa.episodes import Choices, Episode, Options
from fsa.models.encoder import MLP, OptionEncoder
from fsa.rivals import learned, weights
from fsa.rivals.method import TrainingPeople
from fsa.training.reward_loss import example_episode, init_module


class _Reward(nn.Module):
    hidden: int

    def setup(self):
        self.options = OptionEncoder(self.hidden)
        self.head = MLP([self.hidden, 1])

    def embed(self, options: Options) -> jax.Array:
        return nn.gelu(self.options(options))

    def __call__(self, options: Options) -> jax.Array:
        return self.head(self.embed(options))[..., 0]


@dataclasses.dataclass(frozen=True)
class TestTime(learned.Learned):
    """A reward network, of which a person has a head of their own.

    Attributes:
      adapt_steps: gradient steps of a person.
      first_rate: the size of a step at the start of training.
    """

    adapt_steps: int = 3
    first_rate: float = 0.1

    # Its name begins as those of tests do.
    __test__ = False

    def init(self, people: TrainingPeople, key: jax.Array) -> Any:
        """Makes the network and the logs of a step's sizes."""
        options = example_episode(people.task).context.chosen
        variables = init_module(self.module, people.task, key, options)
        params = dict(variables["params"])
        head = params.pop("head")
        rates = jax.tree.map(lambda _: jnp.log(jnp.float32(self.first_rate)), head)
        params = {"rest": params, "head": head, "log_rates": rates}
        return {**variables, "params": params}

    def loss(self, variables, user, episode: Episode, key) -> jax.Array:
        """Computes the mean NLL of the targets after adapting to the context."""
        target = episode.target
        person = self.adapt(variables, episode.context)
        return losses.mean_nll(self.predict(variables, person, target), target.mask)

    def adapt(self, values: Any, context: Choices) -> Any:
        """Returns a person's head."""
        rates = jax.tree.map(jnp.exp, values["params"]["log_rates"])
        count = jnp.maximum(context.mask.sum(), 1)
        embedded = self._embedded(values, context)

        def loss(head):
            utilities = self._utilities(head, *embedded)
            return -weights.log_likelihood(utilities, context.mask) / count

        head = values["params"]["head"]
        for _ in range(self.adapt_steps):
            slopes = jax.grad(loss)(head)
            head = jax.tree.map(lambda w, r, g: w - r * g, head, rates, slopes)
        return head

    def predict(self, values: Any, person: Any, target: Choices) -> jax.Array:
        """Predicts by the person's head."""
        return jax.nn.log_sigmoid(
            self._utilities(person, *self._embedded(values, target))
        )

    @property
    def module(self) -> nn.Module:
        """The whole network."""
        return _Reward(self.hidden)

    def _embedded(self, values, choices: Choices):
        own = {**values, "params": values["params"]["rest"]}
        return tuple(
            self.module.apply(own, options, method="embed")
            for options in (choices.chosen, choices.rejected)
        )

    def _utilities(self, head, chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        outputs = MLP([self.hidden, 1])
        rewards = (
            outputs.apply({"params": head}, x)[..., 0] for x in (chosen, rejected)
        )
        first, second = rewards
        return first - second
