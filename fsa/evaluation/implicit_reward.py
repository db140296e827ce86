"""Predictions of a policy for held-out users, by its implicit reward.

They show whether a policy steers to people on whom it was not trained. Shapes: U users,
E episodes of a user, C context sizes, N context choices, M target choices, D latent
dimensions.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fsa import bars, episodes, latent
from fsa.data.sources import sampled
from fsa.data.sources.attributes import ATTRIBUTES
from fsa.data.tasks import order
from fsa.data.tasks.pairs import PairBatch, PairTask
from fsa.episodes import first_choices
from fsa.evaluation.predictions import Predictions
from fsa.evaluation.scores import user_means
from fsa.models.policy import INFERRED, Policy
from fsa.parallel.examples import over_examples, parts_of
from fsa.parallel.sharding import vmap_examples

# Samples of z of an estimated KL, where a posterior is no Gaussian.
_KL_SAMPLES = 64


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyPredictor:
    """Predicts choices by a policy's implicit reward, or by its reward model.

    The implicit reward is beta * log pi(y | x, z) / pi_ref(y | x) (Rafailov et al.
    2023, equation 5), and choices follow it by Bradley-Terry-Luce.

    Attributes:
      policy: the policy.
      task: the task that has the users.
      split: "valid" or "test".
      num_context: context sizes, at most the task's test context.
      episodes_per_user: E.
      beta: the beta of the policy's training.
      by_reward: whether to predict with the policy's reward model instead.
      diagnose: whether to predict after contexts with every choice reversed as well.
      users_at_once: how many users are predicted together; more need more memory.
      max_users: number of users of the split that are predicted, spread evenly over
        them, since those of a group may follow one another; None for all.
      mesh: the mesh on which variables and language model are placed, if any. Users
        are then spread over it, and all processes must make the call.
      progress: whether to show a progress bar.
    """

    policy: Policy
    task: PairTask
    split: str
    _: dataclasses.KW_ONLY
    num_context: tuple[int, ...]
    episodes_per_user: int
    beta: float
    by_reward: bool = False
    diagnose: bool = True
    users_at_once: int = 8
    max_users: int | None = None
    mesh: Mesh | None = None
    progress: bool = True

    def __call__(self, variables: Any, base: Any) -> Predictions:
        """Returns the predictions of a policy.

        Args:
          variables: the policy's variables.
          base: the language model's variables.
        """
        users = self.task.users(self.split)
        if self.max_users is not None:
            users = order.spread(users, self.max_users)
        size = self.batch_size
        starts = range(0, len(users), size)
        episodes_predicted = []
        total = len(users) * self.episodes_per_user
        with bars.Bar(total, "Predicting", "person", shown=self.progress) as bar:
            for episode in range(self.episodes_per_user):
                batches = []
                for first in starts:
                    some = users[first : first + size]
                    batches.append(self._batch(variables, base, some, size, episode))
                    bar.advance(len(some))
                episodes_predicted.append(_concatenate(batches))
        return _stack_episodes(episodes_predicted)

    @property
    def batch_size(self) -> int:
        """Number of users that are predicted together, of all devices."""
        parts = parts_of(self.mesh)
        return -(-self.users_at_once // parts) * parts

    @property
    def jitted(self) -> Any:
        """What predicts a batch, `(variables, base, batch)`; it can be lowered."""
        return self._run.jitted

    def _batch(self, variables, base, users, size, episode) -> Predictions:
        """Predicts one episode of some users, repeated up to a batch of `size`."""
        full = np.resize(users, size)
        batch = self.task.test_batch(self.split, full, episode)
        found = self._run(variables, base, batch)
        return jax.tree.map(lambda x: x[: len(users)], found)

    @functools.cached_property
    def _run(self):
        def run(variables, base, batch: PairBatch) -> Predictions:
            gathered = self.policy.gathered(variables)
            of_user = functools.partial(self._user, gathered, base)
            return vmap_examples(of_user)(batch)

        return over_examples(run, self.mesh)

    def _user(self, variables, base, example: PairBatch) -> Predictions:
        """Predicts one episode of one user, after contexts of all sizes."""
        context, target = example.episode.context, example.episode.target
        sizes = jnp.asarray(self.num_context)

        def contexts(context):
            return jax.vmap(lambda n: first_choices(context, n))(sizes)

        def log_prob(z: jax.Array) -> jax.Array:
            if self.by_reward:
                return self.policy.reward_model.apply(
                    self.policy.reward_variables(variables),
                    target,
                    z[None],
                    method="log_prob",
                )[0]
            return jax.nn.log_sigmoid(self._margin(variables, base, z, example))

        seen, reversed_ = contexts(context), contexts(episodes.reverse(context))
        mean = kl = None
        if self.policy.latent == INFERRED:
            # At once, with nobody last: to compile an inference takes seconds.
            nobody = jax.tree.map(lambda x: x[None], first_choices(context, 0))
            every = [seen, reversed_] if self.diagnose else [seen]
            every = jax.tree.map(lambda *x: jnp.concatenate(x), *every, nobody)
            q = jax.vmap(lambda c: self.policy.encode(variables, c))(every)
            latents, mean = q.mean[:-1], q.mean[: len(sizes)]
            prior = jax.tree.map(lambda x: x[-1], q)
            q = jax.tree.map(lambda x: x[: len(sizes)], q)
            key = jax.random.key(0)
            kl = jax.vmap(lambda q: latent.kl_parts(q, prior, key, _KL_SAMPLES))(q)
        else:
            z = self.policy.latent_of(variables, context, example.episode.group)
            latents = jnp.tile(z, (2 * len(sizes), 1))
        return Predictions(
            # One context size after the other: each needs every target's responses.
            log_prob=jax.lax.map(log_prob, latents[: len(sizes)]),
            flipped=jax.lax.map(log_prob, latents[len(sizes) :])
            if self.diagnose
            else None,
            bayes=None,
            effective_samples=None,
            mask=target.mask,
            informative=seen.mask.any(-1),
            target_differs=target.mask,
            latent_mean=mean,
            latent_kl=kl,
            group=example.episode.group,
        )

    def _margin(self, variables, base, z, example: PairBatch) -> jax.Array:
        """Returns the implicit reward of chosen minus rejected responses, `[M]`."""
        log_probs = self.policy.pair_log_probs(variables, base, z, example.responses)
        ratio = log_probs - example.reference
        return self.beta * (ratio[:, 0] - ratio[:, 1])


def _concatenate(batches: list[Predictions]) -> Predictions:
    """Joins predictions of several batches of users."""
    return jax.tree.map(lambda *x: np.concatenate(x), *batches)


def _stack_episodes(episodes_predicted: list[Predictions]) -> Predictions:
    """Stacks predictions `[U, ...]` of each episode to `[U, E, ...]`."""
    stacked = jax.tree.map(lambda *x: np.stack(x, axis=1), *episodes_predicted)
    return stacked._replace(group=episodes_predicted[0].group)


def margins(predictions: Predictions, task: PairTask) -> dict[str, list[float]]:
    """Averages the margin of the implicit reward over the users of each group.

    Args:
      predictions: of the task's users.
      task: names the groups.

    Returns:
      {group: means at each context size, in nats}.
    """
    # The inverse of log_prob = log sigmoid(margin).
    gaps = predictions.log_prob - np.log(-np.expm1(predictions.log_prob - 1e-12))
    means = user_means(gaps, predictions.mask)
    return {
        name: means[predictions.group == index].mean(0).tolist()
        for index, name in enumerate(task.groups)
        if (predictions.group == index).any()
    }


def language_model_accuracy(task: PairTask) -> dict[str, float]:
    """Scores the language model itself, without an adapter, on the test choices.

    It is right where it gives the chosen response the larger probability; a tie is
    half right.

    Returns:
      {group: accuracy}, a mean over users.
    """
    users = task.users("test")
    groups = task.data.users["test"].group[users]
    log_prob = task.responses.log_prob
    found = []
    for user in users:
        gaps = np.diff(log_prob[task.test_items("test", user)[1]], axis=1)
        found.append(np.mean((1 - np.sign(gaps)) / 2))
    return {
        name: float(np.mean(np.array(found)[groups == index]))
        for index, name in enumerate(task.groups)
        if (groups == index).any()
    }


def bayes_optimal(
    task: PairTask, attributes: Sequence[str], num_context: Sequence[int], slope: float
) -> sampled.BayesOptimal:
    """Scores the Bayes-optimal predictor of simulated users.

    The users' weights on the attributes are uniform on a sphere.

    Args:
      task: has the test users, who weigh these attributes.
      attributes: names, see `fsa.data.sources.attributes`.
      num_context: context sizes, up to the task's test context.
      slope: slope of the users' choice probabilities.
    """
    measures = [ATTRIBUTES[name].measure for name in attributes]
    values = np.array([[f(text) for f in measures] for text in task.data.texts])

    def differences(user):
        pairs = np.concatenate(task.test_items("test", user))
        return values[pairs[:, 0]] - values[pairs[:, 1]]

    found = [differences(user) for user in task.users("test")]
    return sampled.bayes_optimal(found, num_context, slope=slope)
