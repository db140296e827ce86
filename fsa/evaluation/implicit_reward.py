"""Does a policy follow people it never met? By its implicit reward.

Shapes: U users, E episodes of a user, C context sizes, M target choices, D latent
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
from tqdm import tqdm

from fsa import episodes, latent
from fsa.data.sources import sampled
from fsa.data.sources.attributes import ATTRIBUTES
from fsa.data.tasks.pairs import PairBatch, PairTask
from fsa.episodes import Choices
from fsa.evaluation.scores import Predictions, user_means
from fsa.models.policy import INFERRED, Policy
from fsa.models.reward import RewardModel
from fsa.parallel import sharding


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyPredictor:
    """Predicts choices by a policy's implicit reward, or by its reward model.

    The implicit reward is beta * log pi(y | x, z) / pi_ref(y | x) (Rafailov et al.
    2023, equation 5), and choices follow it by Bradley-Terry-Luce.

    Attributes:
      policy: what is scored.
      task: whose users.
      split: "valid" or "test".
      num_context: context sizes, at most the task's test context.
      episodes_per_user: E.
      beta: that the policy was trained with.
      by_reward: use the reward model, which the policy has for its encoder.
      diagnose: also predict after contexts with every label reversed.
      users_at_once: a matter of memory.
      mesh: where variables and language model lie, to spread users over as well; then
        to be called by all processes.
      progress: show a bar.
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
    mesh: Mesh | None = None
    progress: bool = True

    def __call__(self, variables, base: Any) -> Predictions:
        """Predictions of a policy with these variables over this language model."""
        users = self.task.users(self.split)
        parts = 1 if self.mesh is None else sharding.num_parts(self.mesh.shape)
        size = -(-self.users_at_once // parts) * parts
        starts = range(0, len(users), size)
        episode_rows = []
        with tqdm(
            total=len(starts) * self.episodes_per_user,
            desc="Implicit rewards",
            unit="batch",
            disable=not self.progress,
        ) as bar:
            for episode in range(self.episodes_per_user):
                examples = []
                for first in starts:
                    some = users[first : first + size]
                    examples.append(self._some(variables, base, some, size, episode))
                    bar.update()
                episode_rows.append(_join(examples, axis=0))
        return _stack_episodes(episode_rows)

    def _some(self, variables, base, users, size, episode) -> Predictions:
        full = np.resize(users, size)
        batch = self.task.test_batch(self.split, full, episode)
        batch = sharding.place_examples(batch, self.mesh)
        found = sharding.fetch(self._run(variables, base, batch))
        return jax.tree.map(lambda x: x[: len(users)], found)

    @functools.cached_property
    def _run(self):
        def run(variables, base, batch: PairBatch) -> Predictions:
            gathered = self.policy.gathered(variables)
            of_user = functools.partial(self._user, gathered, base)
            return sharding.vmap_examples(of_user)(batch)

        return jax.jit(sharding.on_mesh(run, self.mesh))

    def _user(self, variables, base, example: PairBatch) -> Predictions:
        """One episode of one user, at all context sizes."""
        context, target = example.episode.context, example.episode.target
        sizes = jnp.asarray(self.num_context)

        def first(context: Choices, n) -> Choices:
            kept = context.mask & (jnp.arange(context.mask.shape[0]) < n)
            return context._replace(mask=kept)

        def contexts(context):
            return jax.vmap(lambda n: first(context, n))(sizes)

        def log_prob(context: Choices) -> jax.Array:
            z = self.policy.latent_of(variables, context, example.episode.group)
            if self.by_reward:
                return self.policy.reward_model.apply(
                    self.policy.reward_variables(variables),
                    target,
                    z[None],
                    method=RewardModel.log_prob,
                )[0]
            return jax.nn.log_sigmoid(self._margin(variables, base, z, example))

        seen, turned = contexts(context), contexts(episodes.reverse(context))
        mean = kl = None
        if self.policy.latent == INFERRED:
            q = jax.vmap(lambda c: self.policy.encode(variables, c))(seen)
            prior = self.policy.encode(variables, first(context, 0))
            mean, kl = q.mean, latent.kl_per_dimension(q, prior)
        return Predictions(
            # One after the other, since each reads every target's responses.
            log_prob=jax.lax.map(log_prob, seen),
            flipped=jax.lax.map(log_prob, turned) if self.diagnose else None,
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
        """Implicit reward of the chosen minus that of the rejected, `[M]`."""
        log_probs = self.policy.pair_log_probs(variables, base, z, example.responses)
        ratio = log_probs - example.reference
        return self.beta * (ratio[:, 0] - ratio[:, 1])


def _join(examples: list[Predictions], axis: int) -> Predictions:
    return jax.tree.map(lambda *x: np.concatenate(x, axis), *examples)


def _stack_episodes(examples: list[Predictions]) -> Predictions:
    """From one prediction an episode to the axes `[U, E, ...]`."""
    joined = jax.tree.map(lambda *x: np.stack(x, axis=1), *examples)
    return joined._replace(group=examples[0].group)


def margins(predictions: Predictions, task: PairTask) -> dict[str, list[float]]:
    """Mean margin of the implicit reward in nats at each n, of each group's users."""
    # log sigmoid(margin), inverted.
    gaps = predictions.log_prob - np.log(-np.expm1(predictions.log_prob - 1e-12))
    means = user_means(gaps, predictions.mask)
    return {
        name: means[predictions.group == index].mean(0).tolist()
        for index, name in enumerate(task.groups)
        if (predictions.group == index).any()
    }


def bayes_optimal(
    task: PairTask, attributes: Sequence[str], num_context: Sequence[int], slope: float
) -> sampled.BayesOptimal:
    """The ceiling for simulated users whose weights are uniform on a sphere.

    Args:
      task: whose test users weigh these attributes.
      attributes: names, see `attributes.py`.
      num_context: context sizes, up to the task's test context.
      slope: of their choices.
    """
    measures = [ATTRIBUTES[name].measure for name in attributes]
    values = np.array([[f(text) for f in measures] for text in task.data.texts])

    def differences(user):
        pairs = np.concatenate(task.test_items("test", user))
        return values[pairs[:, 0]] - values[pairs[:, 1]]

    found = [differences(user) for user in task.users("test")]
    return sampled.bayes_optimal(found, num_context, slope=slope)


def probe(task: PairTask, *, ridge: float = 1.0) -> dict[str, float]:
    """What a linear function of embeddings can see of each group's choices.

    Ridge regression of the labels on standardised differences of embeddings, fitted to
    the choices of each group's training users and scored on its validation users: an
    attribute that this cannot see will not be steered.

    Args:
      task: its embeddings and choices.
      ridge: penalty on the weights, relative to the number of choices.

    Returns:
      {group: accuracy on held-out choices}.
    """
    gaps, groups = task.differences("train")
    held_out, held_out_groups = task.differences("valid")
    _, std = task.statistics()
    found = {}
    for index, name in enumerate(task.groups):
        x = gaps[groups == index] / std
        y = held_out[held_out_groups == index] / std
        if not (len(x) and len(y)):
            continue
        # Every choice counts in both directions, so there is no intercept.
        penalty = ridge * len(x) * np.eye(x.shape[1]) / x.shape[1]
        weight = np.linalg.solve(x.T @ x + penalty, x.sum(0))
        found[name] = float(np.mean(y @ weight > 0))
    return found
