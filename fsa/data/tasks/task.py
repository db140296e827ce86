"""What training and evaluation ask of a task, whether simulated or of real people.

Shapes: B rows of a global batch, N most context choices, M most target choices, F
features, I items.
"""

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from fsa import episodes
from fsa.episodes import Choices, Episode

TRAIN, VALID, TEST = "train", "valid", "test"


class TestEpisode(NamedTuple):
    """An episode to be scored, with what is needed to see whether z was used.

    The context's real choices come first, so contexts of every smaller size are its
    prefixes and face the same targets.

    Attributes:
      episode: the user's own choices.
      flipped: context `[N]`, the same pairs as another type of user decides them; where
        no other type exists, every choice reversed.
      context_differs: `[N]`, real context pairs that the two decide differently.
      target_differs: `[M]`, real target pairs that the two decide differently.
    """

    episode: Episode
    flipped: Choices
    context_differs: jax.Array
    target_differs: jax.Array


def reversed_test_episode(episode: Episode) -> TestEpisode:
    """For users without another type: every context choice reversed."""
    return TestEpisode(
        episode=episode,
        flipped=episodes.reverse(episode.context),
        context_differs=episode.context.mask,
        target_differs=episode.target.mask,
    )


class Task(Protocol):
    """Draws episodes as pure functions of a key.

    Attributes:
      num_features: F.
      num_items: I, items with an identity that a model may embed; 0 where none recur.
      groups: names of the groups of users that reports tell apart.
      flips_are_types: whether `TestEpisode.flipped` is a real other type of user, so
        that predictions ought to flip, or a mere reversal of every label.
      tables: arrays that every draw shares, passed along so that jit does not bake them
        into the program.
    """

    num_features: int
    num_items: int
    groups: tuple[str, ...]
    flips_are_types: bool
    constants: Any

    def training_users(self, step: int) -> np.ndarray:
        """The users of global batch `step`, `[B]` int32."""

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the training features, `[F]` each."""

    def train_episode(self, constants: Any, user: jax.Array, key: jax.Array) -> Episode:
        """One episode of training user `user`."""

    def users(self, split: str) -> np.ndarray:
        """The users of a split that can be scored, int32."""

    def test_episode(
        self, constants: Any, split: str, user: jax.Array, key: jax.Array
    ) -> TestEpisode:
        """One episode to score user `user` of `split`."""

    def bayes_log_prob(self, episode: Episode, key: jax.Array):
        """The Bayes-optimal prediction, where it is known.

        Returns:
          log p(target | C) `[M]` and the effective sample size of its estimate (inf
          where it is exact), or None where nobody knows.
        """
