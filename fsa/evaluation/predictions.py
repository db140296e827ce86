"""Predictions of a reward model for held-out users, after contexts of several sizes.

The contexts of a user's episode are prefixes of one another and face the same targets,
so differences between sizes are not differences between targets. Shapes: U users, E
episodes of a user, C context sizes, N context choices, M target choices, D latent
dimensions.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fsa import bars, latent
from fsa.data.tasks.task import Task, TestEpisode, number_of
from fsa.episodes import Choices, Episode, first_choices
from fsa.latent import DiagonalGaussian, Posterior
from fsa.models.linear_reward import LinearRewardModel
from fsa.models.reward_models import AnyRewardModel, predict_from
from fsa.parallel.examples import over_examples, parts_of, place_everywhere

# In how many calls users are predicted where a bar is shown.
_PARTS = 20

# The ends of a 90% interval.
_LEVELS = (0.05, 0.95)


# Most users who are predicted in one call.
_MOST_TOGETHER = 2**13


class Predictions(NamedTuple):
    """Log-probabilities of every target choice, as NumPy arrays.

    Attributes:
      log_prob: `[U, E, C, M]`, log p(target | context) in nats.
      flipped: `[U, E, C, M]`, the same after the flipped context, with the same noise,
        or None.
      bayes: `[U, E, C, M]` of the Bayes-optimal predictor, or None.
      effective_samples: `[U, E, C]` of the Bayes estimate (inf if exact), or None.
      mask: `[U, E, M]`, which targets are real.
      informative: `[U, E, C]`, whether the flipped context differs from the context.
      target_differs: `[U, E, M]`, targets that the other type decides differently.
      latent_mean: `[U, E, C, D]`, of q(z | context), or None for a model without z.
      latent_kl: `[U, E, C, D]`, KL(q(z | context) || q(z | nothing)) in nats of each
        dimension; `[U, E, C, 1]` where dimensions depend on one another; or None.
      group: `[U]`.
      interval: `[U, E, C, M, 2]`, ends of the 90% interval of the log odds of each
        target choice, by what is not known about the person; or None.
      log_odds: `[U, E, M]`, the true ones, or None.
      converged: `[U, E, C]`, whether the steps by which z is inferred arrived, see
        `fsa.latent.Posterior`; None for a model that takes no steps.
    """

    log_prob: np.ndarray
    flipped: np.ndarray | None
    bayes: np.ndarray | None
    effective_samples: np.ndarray | None
    mask: np.ndarray
    informative: np.ndarray
    target_differs: np.ndarray
    latent_mean: np.ndarray | None
    latent_kl: np.ndarray | None
    group: np.ndarray
    interval: np.ndarray | None = None
    log_odds: np.ndarray | None = None
    converged: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class FewShotPredictor:
    """Predicts the targets of all users of a split; compiled once, called often.

    Attributes:
      model: the reward model.
      task: the task that draws the users' episodes.
      split: "valid" or "test".
      num_context: context sizes, at most the task's test context.
      episodes_per_user: E.
      num_samples: samples of z for each prediction.
      deterministic: whether to use the posterior mean of z alone.
      key: a JAX random key; the same key draws the same episodes.
      diagnose: whether to predict after flipped contexts as well, and with the
        Bayes-optimal predictor if the task has one; otherwise those fields are None.
      examples_at_once: how many episodes a device predicts together; more need more
        memory.
      progress: whether to show a bar.
      mesh: a mesh over which users are split, if any; all processes must call then.
    """

    model: AnyRewardModel
    task: Task
    split: str
    _: dataclasses.KW_ONLY
    num_context: tuple[int, ...]
    episodes_per_user: int
    num_samples: int
    deterministic: bool
    key: jax.Array
    diagnose: bool = True
    examples_at_once: int = 128
    progress: bool = False
    mesh: Mesh | None = None

    def __call__(
        self,
        variables: Any,
        *,
        users: np.ndarray | None = None,
        constants: Any = None,
    ) -> Predictions:
        """Returns the predictions of a model with these Flax variables.

        Args:
          variables: the variables.
          users: `[U]` int32, the users to predict; by default all of the split who have
            enough choices.
          constants: the task's constants, if their values are others than the task's.
        """
        users = self._users if users is None else users
        constants = self.task.constants if constants is None else constants
        variables = place_everywhere(variables, self.mesh)
        constants = place_everywhere(constants, self.mesh)
        # Padded to full batches: a remainder would double the time to compile.
        at_once = self._at_once * parts_of(self.mesh)
        together = -(-len(users) // _PARTS) if self.progress else len(users)
        size = at_once * -(-min(together, _MOST_TOGETHER) // at_once)
        parts = []
        with bars.Bar(len(users), "Predicting", "person", shown=self.progress) as bar:
            for own, fetched in self._fetched(users, size):
                out = self._run(variables, constants, fetched)
                out = jax.tree.map(lambda x, own=own: x[: len(own)], out)
                # Pairs drawn from ratings may leave a user without any target.
                scored = out.mask.any((1, 2))
                parts.append(jax.tree.map(lambda x, s=scored: x[s], out))
                bar.advance(len(own))
        out = _joined(parts)
        return out._replace(group=out.group[:, 0])

    def _fetched(
        self, users: np.ndarray, size: int
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yields users and what draws need of them, filled up to `size` by the last.

        Users on disk are read while earlier ones are predicted.
        """

        def fetch(first):
            own = users[first : first + size]
            full = np.pad(own, (0, size - len(own)), mode="edge")
            return own, self.task.fetch(self.split, full, np.arange(size))

        parts = grain.MapDataset.range(0, len(users), size).map(fetch)
        return iter(parts.to_iter_dataset(grain.ReadOptions(1, 1)))

    @functools.cached_property
    def _users(self) -> np.ndarray:
        return self.task.users(self.split)

    @property
    def _at_once(self) -> int:
        return max(1, self.examples_at_once // self.episodes_per_user)

    @functools.cached_property
    def _run(self):
        def run(variables, constants, users):
            episodes = jnp.arange(self.episodes_per_user)

            def of_user(user):
                return jax.vmap(
                    lambda episode: self._score(variables, constants, user, episode)
                )(episodes)

            return jax.lax.map(of_user, users, batch_size=self._at_once)

        return over_examples(run, self.mesh, apart=True)

    def draw(
        self, constants: Any, user: jax.Array, episode: jax.Array
    ) -> tuple[TestEpisode, jax.Array]:
        """Draws an episode that is predicted, and the key of its predictions.

        Args:
          constants: the task's constants.
          user: int scalar, or what the task fetched of the user.
          episode: int scalar, below E.
        """
        draw_key, key = jax.random.split(jax.random.fold_in(self.key, episode))
        test = self.task.test_episode(constants, self.split, user, draw_key)
        return test, jax.random.fold_in(key, number_of(user))

    def infer(self, variables: Any, context: Choices) -> DiagonalGaussian | Posterior:
        """Infers q(z | context) by the model."""
        return self.model.apply(variables, context, method=self.model.encode)

    def log_prob(
        self,
        variables: Any,
        q: DiagonalGaussian | Posterior,
        target: Choices,
        key: jax.Array,
    ) -> jax.Array:
        """Predicts targets from what was inferred of a user, `[M]` in nats."""
        return predict_from(
            self.model,
            variables,
            q,
            target,
            key,
            num_samples=self.num_samples,
            deterministic=self.deterministic,
        )

    def _score(self, variables, constants, user, episode) -> Predictions:
        """Predicts one episode of one user, after contexts of all sizes."""
        test, key = self.draw(constants, user, episode)
        scored = jax.vmap(lambda n: self._score_at(variables, test, n, key))(
            jnp.asarray(self.num_context)
        )
        return Predictions(
            **scored,
            mask=test.episode.target.mask,
            target_differs=test.target_differs,
            group=test.episode.group,
            log_odds=test.log_odds,
        )

    def _score_at(self, variables, test: TestEpisode, n, key) -> dict:
        """Computes the fields of `Predictions` that depend on the context size n."""

        def after(context: Choices) -> Episode:
            return test.episode._replace(context=first_choices(context, n))

        episode = after(test.episode.context)
        fields = dict.fromkeys(
            ("flipped", "bayes", "effective_samples", "latent_mean", "latent_kl")
        )
        linear, target = isinstance(self.model, LinearRewardModel), episode.target
        q = self.infer(variables, episode.context)
        fields["log_prob"] = self.log_prob(variables, q, target, key)
        fields["converged"] = q.all_converged if linear else None
        fields["informative"] = jnp.any(test.context_differs & episode.context.mask)
        if self.model.latent_dim:
            prior = self.infer(variables, first_choices(episode.context, 0))
            fields["latent_mean"] = q.mean
            fields["latent_kl"] = latent.kl_parts(q, prior, key, self.num_samples)
        if self.diagnose:
            flipped = self.infer(variables, after(test.flipped).context)
            fields["flipped"] = self.log_prob(variables, flipped, target, key)
            if linear:
                ends = self.model.apply(
                    variables, q, target, _LEVELS, method=self.model.quantiles
                )
                fields["interval"] = ends.T
            if best := self.task.bayes_log_prob(episode, key):
                fields["bayes"], fields["effective_samples"] = best
        return fields


def _joined(parts: list[Predictions]) -> Predictions:
    """Concatenates predictions of users field by field, and empties the list.

    So no more than one field is held twice.
    """
    leaves, structures = zip(*map(jax.tree.flatten, parts), strict=True)
    parts.clear()
    columns = [list(column) for column in zip(*leaves, strict=True)]
    del leaves
    for i, column in enumerate(columns):
        columns[i] = np.concatenate(column)
        column.clear()
    return jax.tree.unflatten(structures[0], columns)
