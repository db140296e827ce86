"""PReF: base rewards, and weights of each person by maximum a posteriori.

Shenfeld, Faltings, Agrawal and Pacchiano 2025 ("Language model personalization via
reward factorization", arXiv 2503.06358): r_u(x) = lambda_u . phi(x); the weights of
training people and phi are learned together by regularised maximum likelihood, and a
new person's weights by regularised logistic regression. Left out: the start from a
singular value decomposition and the choice of questions. A new person's weights have
the mean and the covariance of training people's, while the paper shrinks them to 0.

Shapes: K base rewards, N context choices, M target choices, U training people.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsa import episodes
from fsa.episodes import Choices, Episode
from fsa.rivals import basis, learned, weights
from fsa.rivals.method import TrainingPeople
from fsa.rivals.weights import Gaussian
from fsa.training.reward_loss import example_episode, init_module


class Values(NamedTuple):
    """What was learned.

    Attributes:
      variables: of the base rewards.
      prior: of a new person's weights `[K]`.
    """

    variables: Any
    prior: Gaussian


@dataclasses.dataclass(frozen=True)
class Pref(learned.Learned):
    """Base rewards by features, with weights of each person.

    Attributes:
      size: K, of which the first has the weight 1 for everybody.
      shrink: precision of a weight a priori, in training.
    """

    size: int = 9
    shrink: float = 1.0

    def init(self, people: TrainingPeople, key: jax.Array) -> Any:
        """Makes the base rewards, and small random weights `[U, K - 1]`."""
        basis_key, key = jax.random.split(key)
        options = example_episode(people.task).context.chosen
        variables = init_module(self.module, people.task, basis_key, options)
        shape = learned.num_training_users(people), self.size - 1
        table = 0.1 * jax.random.normal(key, shape) / basis.FASTER
        return basis.with_people(variables, people, table)

    def loss(self, variables, user, episode: Episode, key) -> jax.Array:
        """Computes the regularised negative log-likelihood of a choice."""
        choices = episodes.concatenate(episode.context, episode.target)
        features, offset = self._utilities(variables, choices)
        w = basis.FASTER * variables["params"]["people"][user]
        fit = weights.log_likelihood(features @ w + offset, choices.mask)
        count = jnp.maximum(choices.mask.sum(), 1)
        return (0.5 * self.shrink * w @ w - fit) / count

    def finish(self, variables: Any) -> list[Values]:
        """Takes the mean and covariance of training people's weights as the prior."""
        table = basis.FASTER * variables["params"]["people"]
        trained = variables["people"]["trained"]
        mean = trained @ table / trained.sum()
        apart = (table - mean) * trained[:, None]
        covariance = apart.T @ apart / trained.sum() + 1e-3 * jnp.eye(table.shape[1])
        prior = Gaussian(mean, covariance)
        return [Values(basis.without_people(variables), prior)]

    def adapt(self, values: Values, context: Choices) -> jax.Array:
        """Fits a person's weights `[K - 1]`."""
        features, offset = self._utilities(values.variables, context)
        return weights.most_probable(features, offset, context.mask, values.prior).mean

    def predict(self, values: Values, person, target: Choices) -> jax.Array:
        """Predicts by the most probable weights."""
        features, offset = self._utilities(values.variables, target)
        return jax.nn.log_sigmoid(features @ person + offset)

    @property
    def module(self) -> nn.Module:
        """The base rewards, K of each option."""
        return basis.Basis(self.hidden, self.size)

    def _utilities(self, variables, choices: Choices):
        """Returns what weights multiply, `[N, K - 1]`, and what they do not, `[N]`."""
        found = basis.differences(self.module, variables, choices)
        return found[:, 1:], found[:, 0]
