"""Simulated users, whose hidden preference and Bayes-optimal predictor are known.

* `TwoTypes`: the synthetic task of Kobalczyk et al. 2024 (section 4.1), with choices
  that follow the reward exactly or through Bradley-Terry-Luce noise.
* `Continuum`: users z ~ N(0, I_4) who weigh nonlinear features of an item, so that
  rewards are linear in z.
* `IdealPoint`: users z ~ N(0, I_4) who like what is near z, so that rewards are not.

All episodes are generated on the device from a key. Shapes: N context choices, M target
choices, F features, S samples of an importance sampler.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from fsa.data.tasks.task import TEST, TRAIN, VALID, TestEpisode, reversed_test_episode
from fsa.episodes import Choices, Episode, Options
from fsa.latent import small_matrices

_SPLITS = {TRAIN: 0, VALID: 1, TEST: 2}


@dataclasses.dataclass(frozen=True)
class _Simulated:
    """The common base of simulated tasks.

    Attributes:
      batch_size: users of a step.
      max_context: N in training; n ~ U{0..N} for each user.
      num_targets: M in training.
      test_context: N at test.
      test_targets: M at test.
      num_users: number of fresh users of the splits "valid" and "test".
    """

    batch_size: int
    max_context: int
    num_targets: int
    test_context: int
    test_targets: int
    num_users: Mapping[str, int]

    num_items = 0
    constants = ()

    def training_users(self, step: int) -> np.ndarray:
        """Returns 0 to B - 1: simulated training users have no further identity."""
        return np.arange(self.batch_size, dtype=np.int32)

    def fetch(self, split: str, users: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Returns the numbers of users, of whom nothing is stored."""
        return users[own]

    def users(self, split: str) -> np.ndarray:
        """Returns the numbers of the fresh users of `split`."""
        return np.arange(self.num_users[split], dtype=np.int32)

    def _sizes(self, key: jax.Array, train: bool):
        """Returns (n, N, M) of an episode."""
        if not train:
            return self.test_context, self.test_context, self.test_targets
        n = jax.random.randint(key, (), 0, self.max_context + 1)
        return n, self.max_context, self.num_targets


def _options(features: jax.Array) -> Options:
    return Options(features, jnp.full(features.shape[:-1], -1, jnp.int32))


def _choices(first, second, first_wins, mask) -> Choices:
    """Makes choices of pairs and their winners; features of padding are 0."""
    chosen = jnp.where(first_wins[:, None], first, second)
    rejected = jnp.where(first_wins[:, None], second, first)
    chosen, rejected = (jnp.where(mask[:, None], x, 0) for x in (chosen, rejected))
    return Choices(_options(chosen), _options(rejected), mask)


def _take(choices: Choices, start: int, stop: int) -> Choices:
    return jax.tree.map(lambda x: x[start:stop], choices)


@dataclasses.dataclass(frozen=True)
class TwoTypes(_Simulated):
    """Users of two hidden types, who agree on half of the pairs.

    Options are y ~ U[0, 1]. The reward of type 0 is y below 0.5 and 2y above; that of
    type 1 is y below 0.5 and 1 - y above. Both types are equally frequent.

    Attributes:
      slope: of the Bradley-Terry-Luce choice, p(a > b) = sigmoid(slope (r_a - r_b));
        None for the paper's choices, which follow the reward exactly.
    """

    slope: float | None = None

    num_features = 1
    groups = ("type 0", "type 1")
    flips_are_types = True

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and standard deviation of U[0, 1], `[1]` each."""
        return np.array([0.5]), np.array([math.sqrt(1 / 12)])

    @staticmethod
    def reward(y: jax.Array, user_type: jax.Array) -> jax.Array:
        """Returns r(y) for a type, 0 or 1, elementwise."""
        above = jnp.where(user_type == 0, 2 * y, 1 - y)
        return jnp.where(y < 0.5, y, above)

    def choice_log_prob(
        self, chosen: jax.Array, rejected: jax.Array, user_type: jax.Array
    ) -> jax.Array:
        """Returns log p(chosen > rejected | type), elementwise; -inf if impossible."""
        gap = self.reward(chosen, user_type) - self.reward(rejected, user_type)
        if self.slope is None:
            # Equal rewards are chosen with probability 1/2.
            return jnp.where(gap > 0, 0.0, jnp.where(gap < 0, -jnp.inf, -math.log(2)))
        return jax.nn.log_sigmoid(self.slope * gap)

    def train_episode(self, constants, user, key) -> Episode:
        """Draws a fresh user with n ~ U{0..N}; `constants` and `user` are unused."""
        return self._draw(key, train=True).episode

    def test_episode(self, constants, split, user, key) -> TestEpisode:
        """Draws the fresh user number `user` of `split`."""
        key = jax.random.fold_in(jax.random.fold_in(key, _SPLITS[split]), user)
        return self._draw(key, train=False)

    def _draw(self, key, train) -> TestEpisode:
        size_key, type_key, option_key, noise_key = jax.random.split(key, 4)
        n, max_context, num_targets = self._sizes(size_key, train)
        user_type = jax.random.bernoulli(type_key).astype(jnp.int32)
        size = max_context + num_targets
        y = jax.random.uniform(option_key, (2, size, 1))
        luck = jax.random.uniform(noise_key, (size,))
        mask = (jnp.arange(size) < n) | (jnp.arange(size) >= max_context)

        def decide(who):
            wins = luck < jnp.exp(self.choice_log_prob(*y[..., 0], who))
            return _choices(*y, wins, mask)

        choices, other = decide(user_type), decide(1 - user_type)
        # Types disagree where their rewards do, not where their luck differs.
        order = [self.reward(y[0], t) > self.reward(y[1], t) for t in (0, 1)]
        differs = (order[0] != order[1])[:, 0] & mask
        episode = Episode(
            context=_take(choices, 0, max_context),
            target=_take(choices, max_context, size),
            group=user_type,
        )
        log_odds = None
        if self.slope is not None:
            chosen, rejected = (
                self.reward(options.features[:, 0], user_type)
                for options in episode.target[:2]
            )
            log_odds = self.slope * (chosen - rejected)
        return TestEpisode(
            episode=episode,
            flipped=_take(other, 0, max_context),
            context_differs=differs[:max_context],
            target_differs=differs[max_context:],
            log_odds=log_odds,
        )

    def bayes_log_prob(self, episode: Episode, key: jax.Array):
        """Computes the prediction exactly, as a mixture of the two types.

        The weight of a type is the likelihood of the context.
        """

        def log_probs(choices):  # [2, N]
            types = jnp.arange(2)[:, None]
            chosen, rejected = choices.chosen.features, choices.rejected.features
            return self.choice_log_prob(chosen[:, 0], rejected[:, 0], types)

        context = jnp.where(episode.context.mask, log_probs(episode.context), 0.0)
        log_weights = jax.nn.log_softmax(context.sum(axis=1))
        predicted = logsumexp(log_weights[:, None] + log_probs(episode.target), axis=0)
        return predicted, jnp.inf


@dataclasses.dataclass(frozen=True)
class _Continuous(_Simulated):
    """The common base of tasks whose users are z ~ N(0, I_4).

    Items are x ~ U[-1, 1]^8. A fixed random tanh network, whose outputs are
    standardised over items, embeds them; choices follow Bradley-Terry-Luce.

    Attributes:
      personal: scale of the part of the reward that depends on z.
      map_seed: seed of the network, which is part of the task.
    """

    personal: float = 2.0
    map_seed: int = 0

    num_outputs: ClassVar[int]  # of the network
    num_features = 8
    latent_dim = 4
    groups = ("all",)
    flips_are_types = False

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and standard deviation of U[-1, 1]^8, `[8]` each."""
        return np.zeros(8), np.full(8, math.sqrt(1 / 3))

    def embed(self, x: jax.Array) -> Any:
        """Returns what `reward` needs of items x `[..., 8]`, arrays `[..., ?]`."""
        raise NotImplementedError

    def reward(self, embedded: Any, z: jax.Array) -> jax.Array:
        """Returns the reward `[...]` of embedded items to user z `[4]`."""
        raise NotImplementedError

    @functools.cached_property
    def _map(self):
        """Weights of the random network, with standardised outputs."""
        rng = np.random.default_rng(self.map_seed)
        hidden = 32
        first = rng.normal(size=(self.num_features, hidden)) * 1.5
        bias = rng.uniform(-1, 1, size=hidden)
        second = rng.normal(size=(hidden, self.num_outputs)) / math.sqrt(hidden)
        x = rng.uniform(-1, 1, size=(100_000, self.num_features))
        raw = np.tanh(x @ first + bias) @ second
        return tuple(
            np.asarray(w, np.float32)
            for w in (first, bias, second / raw.std(0), raw.mean(0) / raw.std(0))
        )

    def _network(self, x: jax.Array) -> jax.Array:
        first, bias, second, center = self._map
        return jnp.tanh(x @ first + bias) @ second - center

    def train_episode(self, constants, user, key) -> Episode:
        """Draws a fresh user with n ~ U{0..N}; `constants` and `user` are unused."""
        return self._draw(key, train=True)[0]

    def test_episode(self, constants, split, user, key) -> TestEpisode:
        """Draws fresh user `user` of `split`; flipped has every choice reversed."""
        key = jax.random.fold_in(jax.random.fold_in(key, _SPLITS[split]), user)
        episode, log_odds = self._draw(key, train=False)
        return reversed_test_episode(episode)._replace(log_odds=log_odds)

    def _draw(self, key, train) -> tuple[Episode, jax.Array]:
        """Returns an episode, and the true log odds of its target choices."""
        size_key, user_key, option_key, noise_key = jax.random.split(key, 4)
        n, max_context, num_targets = self._sizes(size_key, train)
        z = jax.random.normal(user_key, (self.latent_dim,))
        size = max_context + num_targets
        x = jax.random.uniform(
            option_key, (2, size, self.num_features), minval=-1.0, maxval=1.0
        )
        rewards = self.reward(self.embed(x), z)
        luck = jax.random.uniform(noise_key, (size,))
        gap = rewards[0] - rewards[1]
        wins = luck < jax.nn.sigmoid(gap)
        mask = (jnp.arange(size) < n) | (jnp.arange(size) >= max_context)
        choices = _choices(*x, wins, mask)
        episode = Episode(
            context=_take(choices, 0, max_context),
            target=_take(choices, max_context, size),
            group=jnp.int32(0),
        )
        return episode, jnp.where(wins, gap, -gap)[max_context:]

    def bayes_log_prob(
        self,
        episode: Episode,
        key: jax.Array,
        *,
        first_samples: int = 4096,
        num_samples: int = 4096,
    ) -> tuple[jax.Array, jax.Array]:
        """Estimates by two rounds of importance sampling; errors fall as 1/sqrt(ESS).

        Draws from the prior, weighted by the likelihood of the context, give the
        moments of a Gaussian proposal; draws from the proposal, weighted again,
        estimate the posterior (adaptive importance sampling, Bugallo et al. 2017). The
        proposal is widened, so that the posterior has lighter tails.

        Returns:
          log p(target | C) `[M]` and the effective sample size, a scalar.
        """

        def log_prob(choices):  # a function of z [S, 4] -> [S, N]
            chosen = self.embed(choices.chosen.features)
            rejected = self.embed(choices.rejected.features)
            return jax.vmap(
                lambda z: jax.nn.log_sigmoid(
                    self.reward(chosen, z) - self.reward(rejected, z)
                )
            )

        context, target = log_prob(episode.context), log_prob(episode.target)

        def log_likelihood(z):  # [S, 4] -> [S]
            return jnp.sum(context(z), axis=1, where=episode.context.mask)

        first_key, second_key = jax.random.split(key)
        z = jax.random.normal(first_key, (first_samples, self.latent_dim))
        weights = jax.nn.softmax(log_likelihood(z))
        mean = weights @ z
        covariance = (weights[:, None] * (z - mean)).T @ (z - mean)
        # The floor keeps the proposal wide if few draws were effective.
        covariance = 1.5 * covariance + 1e-2 * jnp.eye(self.latent_dim)
        factor, _ = small_matrices.cholesky(covariance)
        noise = jax.random.normal(second_key, (num_samples, self.latent_dim))
        z = mean + noise @ factor.T
        log_weights = jax.nn.log_softmax(
            log_likelihood(z) - 0.5 * jnp.sum(z**2, axis=1) + 0.5 * jnp.sum(noise**2, 1)
        )
        effective = jnp.exp(-logsumexp(2 * log_weights))
        return logsumexp(log_weights[:, None] + target(z), axis=0), effective


@dataclasses.dataclass(frozen=True)
class Continuum(_Continuous):
    """Users who weigh features: r(x, z) = personal * g(x) . z + shared * h(x).

    g and h are the outputs of the network.

    Attributes:
      shared: scale of the part that all users have in common.
    """

    shared: float = 1.0

    num_outputs = 5

    def utilities(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns personal g(x) `[..., 4]` and shared h(x) `[...]`, x `[..., 8]`."""
        outputs = self._network(x)
        return self.personal * outputs[..., :-1], self.shared * outputs[..., -1]

    embed = utilities

    def reward(self, embedded: Any, z: jax.Array) -> jax.Array:
        """Returns the reward `[...]` of embedded items to user z `[4]`."""
        personal, shared = embedded
        return personal @ z + shared


@dataclasses.dataclass(frozen=True)
class IdealPoint(_Continuous):
    """Users who like what is near them: r(x, z) = -personal * |h(x) - z|.

    h(x) in R^4 are the outputs of the network, and |.| is the Euclidean distance, whose
    square would be linear in z but for what all options share.
    """

    num_outputs = 4

    def embed(self, x: jax.Array) -> jax.Array:
        """Returns the point h(x) `[..., 4]` of items x `[..., 8]`."""
        return self._network(x)

    def reward(self, embedded: Any, z: jax.Array) -> jax.Array:
        """Returns the reward `[...]` of points `[..., 4]` to user z `[4]`."""
        return -self.personal * jnp.linalg.norm(embedded - z, axis=-1)
