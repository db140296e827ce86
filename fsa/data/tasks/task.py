"""The interface of tasks, for simulated users and for those of a dataset.

Shapes: B examples of a global batch, N most context choices, M most target choices, F
features, I items.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from fsa import episodes
from fsa.episodes import Choices, Episode
from fsa.errors import InputError

TRAIN, VALID, TEST = "train", "valid", "test"


class TestEpisode(NamedTuple):
    """An episode to be scored, with a second context that tests whether z is used.

    The context's real choices come first, so contexts of every smaller size are its
    prefixes and face the same targets.

    Attributes:
      episode: the user's own choices.
      flipped: context `[N]`, the same pairs as a user of another type decides them; if
        there is no other type, every choice reversed.
      context_differs: `[N]`, real context pairs that the two decide differently.
      target_differs: `[M]`, real target pairs that the two decide differently.
      log_odds: `[M]`, true log odds of each target choice, given the user; None if they
        are not known.
    """

    episode: Episode
    flipped: Choices
    context_differs: jax.Array
    target_differs: jax.Array
    log_odds: jax.Array | None = None


def check_somebody(split: str, num_users: int) -> None:
    """Raises an InputError, which names the split, if nobody is in it."""
    if not num_users:
        raise InputError(
            f"nobody is in the split {split}; prepare the dataset again with more "
            "people, another `split_seed`, or a column `split` in the table"
        )


def reversed_test_episode(episode: Episode) -> TestEpisode:
    """Makes a test episode of users without types: every context choice is reversed."""
    return TestEpisode(
        episode=episode,
        flipped=episodes.reverse(episode.context),
        context_differs=episode.context.mask,
        target_differs=episode.target.mask,
    )


def feature_statistics(
    features: np.ndarray, items: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and standard deviation over different items, `[F]` each.

    Args:
      features: `[I, F]`.
      items: indices of the items that count; repeated ones count once.
    """
    seen = features[np.unique(items)]
    std = seen.std(axis=0)
    # A constant dimension carries no information; dividing by 1 keeps it at 0.
    return seen.mean(axis=0), np.where(std < 1e-6, 1.0, std)


class UserRecord(NamedTuple):
    """A user whose lists are not among the constants, since they were read from disk.

    Attributes:
      number: int32 scalar, of the user in the split.
      group: int32 scalar.
      length: int32 scalar, number of entries.
      lists: the lists that episodes are drawn from, `[W]` each, padded.
    """

    number: Any
    group: Any
    length: Any
    lists: tuple[Any, Any]


def equally_wide(batches: Sequence[UserRecord]) -> list[UserRecord]:
    """Pads the lists of batches of users `[B, W]` to the largest W."""
    width = max(batch.lists[0].shape[1] for batch in batches)

    def padded(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, width - x.shape[1])))

    return [b._replace(lists=tuple(map(padded, b.lists))) for b in batches]


def number_of(user: Any) -> jax.Array:
    """Returns the number of a user, who may be given by it or by a `UserRecord`."""
    return user.number if isinstance(user, UserRecord) else user


class Task(Protocol):
    """Draws episodes as pure functions of a key.

    A draw takes a user as `fetch` returns it.

    Attributes:
      num_features: F.
      num_items: I, items with an identity that a model may embed; 0 if items never
        recur.
      groups: names of the groups of users, which reports list separately.
      flips_are_types: whether `TestEpisode.flipped` is the context of a real other type
        of user, so that predictions ought to flip, or merely has every label reversed.
      constants: arrays that all examples share; they are arguments of the draws, so
        that jit does not compile them into the program.
    """

    num_features: int
    num_items: int
    groups: tuple[str, ...]
    flips_are_types: bool
    constants: Any

    def training_users(self, step: int) -> np.ndarray:
        """Returns the users of global batch `step`, `[B]` int32."""

    def fetch(self, split: str, users: np.ndarray, own: np.ndarray) -> Any:
        """Returns what draws need of some users of a batch: numbers, or `UserRecord`s.

        Args:
          split: whose users they are.
          users: `[B]` int32, the users of the batch.
          own: positions in the batch, of those whom this process needs.
        """

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and standard deviation of the training features, `[F]` each."""

    def train_episode(self, constants: Any, user: Any, key: jax.Array) -> Episode:
        """Draws an episode of a training user."""

    def users(self, split: str) -> np.ndarray:
        """Returns the users of a split who can be scored, int32."""

    def test_episode(
        self, constants: Any, split: str, user: Any, key: jax.Array
    ) -> TestEpisode:
        """Draws an episode to score a user of `split`."""

    def bayes_log_prob(
        self, episode: Episode, key: jax.Array
    ) -> tuple[jax.Array, jax.Array] | None:
        """Computes the Bayes-optimal prediction, if it is known.

        Returns:
          log p(target | C) `[M]` and the effective sample size of its estimate (inf
          for an exact one), or None if it is not known.
        """
