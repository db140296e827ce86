"""Episodes of real people's choices and ratings, drawn on the device.

The dataset is a few arrays: the features of items, and for each user the indices
of the items that were chosen, rejected and rated. They are copied to the device once,
so that a step needs nothing but the numbers of its users from the host.

Shapes: I items, U users of a split, L most choices of a user, J most ratings of a user,
N most context choices, M most target choices, F features, B examples of a batch.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsa import episodes
from fsa.data.dataset import Dataset
from fsa.data.tasks import order
from fsa.data.tasks.task import (
    TEST,
    TRAIN,
    VALID,
    TestEpisode,
    feature_statistics,
    reversed_test_episode,
)
from fsa.episodes import Choices, Episode
from fsa.errors import InputError

# Values of `train_on`. Choices are used as they are; ratings are paired to choices.
CHOICES, RATINGS = "choices", "ratings"

# The lists of a `UserTable` and what pads them on the device.
_PADDING = {"chosen": -1, "rejected": -1, "items": -1, "values": 0}


def popularity(data: Dataset, min_margin: float = 0.0) -> np.ndarray:
    """Computes how much training users like each item, `[I]` float32.

    The smoothed log odds log((wins + 1) / (losses + 1)). A rated item is compared with
    the user's other items of the same prompt whose values differ by more than
    `min_margin`, and its wins with this user are the share of comparisons that it wins;
    a chosen item wins once. So for votes that agree or disagree the odds are those of
    agreement, whatever the number of passes.
    """
    users = data.users[TRAIN]
    wins, losses = np.zeros((2, len(data.features)))
    for items, values in zip(users.items, users.values, strict=True):
        margin = values[:, None] - values
        same_prompt = data.item_prompt[items][:, None] == data.item_prompt[items]
        won = ((margin > min_margin) & same_prompt).sum(1)
        lost = ((margin < -min_margin) & same_prompt).sum(1)
        compared = np.maximum(won + lost, 1)
        np.add.at(wins, items, won / compared)
        np.add.at(losses, items, lost / compared)
    np.add.at(wins, users.chosen.flat, 1.0)
    np.add.at(losses, users.rejected.flat, 1.0)
    return np.log((wins + 1) / (losses + 1)).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class People:
    """Few-shot episodes from a dataset of real people's preferences.

    Attributes:
      data: items, features and users.
      batch_size: B.
      max_context: N in training; n ~ U{0..N} for each user.
      num_targets: M in training.
      test_context: N at test; users with fewer choices than N + 1 are not scored.
      test_targets: M at test, the most targets of one episode.
      min_choices: users with fewer are not trained on, since people who choose rarely
        may choose differently, and small contexts would be mostly theirs. At least 2.
      train_on: `RATINGS`, of which every episode draws fresh pairs, or `CHOICES`.
        Held-out users are scored on choices if their split has any.
      pairing_noise: see `episodes.pair_ratings`.
      max_gap: see `episodes.pair_ratings`.
      min_margin: see `episodes.pair_ratings`.
      seed: of the order of users.

    Raises:
      InputError: when no user of a split has enough choices, naming the numbers.
    """

    data: Dataset
    batch_size: int
    max_context: int
    num_targets: int
    test_context: int
    test_targets: int
    min_choices: int = 2
    train_on: str = RATINGS
    pairing_noise: float = 1.0
    max_gap: float | None = None
    min_margin: float = 0.0
    seed: int = 0

    flips_are_types = False

    def __post_init__(self):
        """Refuses a dataset that cannot fill its smallest episode."""
        splits = (TRAIN, VALID, TEST)
        if empty := [s for s in splits if not self.data.users[s].names]:
            raise InputError(
                f"nobody is in the split {empty[0]}, and people are needed in "
                f"{', '.join(splits)}; add people, or name their `split` in the table"
            )
        for split in splits:
            found, source = self.num_choices[split], self._source(split)
            if found.max(initial=0) < self._least(split):
                raise InputError(
                    f"{split} users have at most {found.max(initial=0)} {source} to "
                    f"choose between, and an episode needs {self._least(split)}; "
                    f"{self._way_out(split)} or add data"
                )

    def _way_out(self, split: str) -> str:
        """Returns what to change when a split's users cannot fill an episode."""
        if split != TRAIN:
            return "lower `test_context`"
        users = self.data.users[split]
        lists = {CHOICES: users.chosen, RATINGS: users.items}
        other = RATINGS if self.train_on == CHOICES else CHOICES
        if not len(lists[self.train_on].flat) and len(lists[other].flat):
            return f"set `train_on` to {other}"
        return "lower `min_choices`"

    @property
    def num_features(self) -> int:
        """Number of features of an option, F."""
        return self.data.features.shape[1]

    @property
    def num_items(self) -> int:
        """Number of items, I."""
        return len(self.data.features)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of users."""
        return self.data.groups

    @functools.cached_property
    def constants(self) -> dict[str, Any]:
        """Item features, prompts and popularity, and each split's users."""
        return {
            "features": jnp.asarray(self.data.features),
            "prompt": jnp.asarray(self.data.item_prompt),
            "popularity": jnp.asarray(popularity(self.data, self.min_margin)),
            "users": {
                split: {
                    name: jnp.asarray(getattr(users, name).pad(fill))
                    for name, fill in _PADDING.items()
                }
                | {"group": jnp.asarray(users.group)}
                for split, users in self.data.users.items()
            },
        }

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and deviation (std) of training users' items, `[F]` each."""
        users = self.data.users[TRAIN]
        seen = [lists.flat for lists in (users.chosen, users.rejected, users.items)]
        return feature_statistics(self.data.features, np.concatenate(seen))

    @functools.cached_property
    def _trained_on(self) -> np.ndarray:
        return self.users(TRAIN)

    def training_users(self, step: int) -> np.ndarray:
        """Returns the users of batch `step`, `[B]`; epochs are fresh permutations."""
        first = step * self.batch_size
        return order.visited(self._trained_on, first, self.batch_size, self.seed)

    def users(self, split: str) -> np.ndarray:
        """Returns the users of `split` with enough choices for an episode, int32."""
        enough = self.num_choices[split] >= self._least(split)
        return np.flatnonzero(enough).astype(np.int32)

    def _least(self, split: str) -> int:
        return self.min_choices if split == TRAIN else self.test_context + 1

    def _source(self, split: str) -> str:
        """Returns the source of a split's choices: CHOICES, or RATINGS to be paired."""
        if split == TRAIN:
            return self.train_on
        return CHOICES if len(self.data.users[split].chosen.flat) else RATINGS

    @functools.cached_property
    def num_choices(self) -> dict[str, np.ndarray]:
        """The number of choices of each user, `[U]`, by split; pairs ratings once."""
        # The same for every seed, so that all runs are scored on the same users.
        key = jax.random.key(0)

        @functools.partial(jax.jit, static_argnames="split")
        def count(constants, users, split):
            def one(user):
                own_key = jax.random.fold_in(key, user)
                return self._pairs(constants, split, user, own_key)[2].sum()

            return jax.lax.map(one, users, batch_size=256)

        def of(split: str) -> np.ndarray:
            table = self.data.users[split]
            if self._source(split) == CHOICES:
                return table.chosen.lengths
            users = jnp.arange(len(table.names))
            return np.asarray(count(self.constants, users, split))

        return {split: of(split) for split in (TRAIN, VALID, TEST)}

    def _pairs(self, constants, split, user, key):
        """Returns the items of one user's pairs, (chosen, rejected), and their mask."""
        users = constants["users"][split]
        if self._source(split) == CHOICES:
            chosen, rejected = users["chosen"][user], users["rejected"][user]
            return chosen, rejected, chosen >= 0
        items = users["items"][user]
        chosen, rejected, mask = episodes.pair_ratings(
            key,
            users["values"][user],
            constants["popularity"][items],
            constants["prompt"][items],
            items >= 0,
            noise=self.pairing_noise,
            max_gap=self.max_gap,
            min_margin=self.min_margin,
        )
        return items[chosen], items[rejected], mask

    def _episode(self, constants, split, user, key, num_context, sizes, first_target):
        pair_key, split_key = jax.random.split(key)
        chosen, rejected, mask = self._pairs(constants, split, user, pair_key)
        parts = episodes.split(
            split_key,
            mask,
            num_context,
            max_context=sizes[0],
            max_targets=sizes[1],
            first_target=first_target,
        )

        def choices(positions, mask) -> Choices:
            return episodes.gather(
                constants["features"], (chosen, rejected), positions, mask
            )

        return Episode(
            context=choices(parts.context, parts.context_mask),
            target=choices(parts.target, parts.target_mask),
            group=constants["users"][split]["group"][user],
        )

    def train_episode(self, constants, user, key) -> Episode:
        """Draws a split, and for ratings the pairs, of training user `user`."""
        size_key, key = jax.random.split(key)
        n = jax.random.randint(size_key, (), 0, self.max_context + 1)
        sizes = self.max_context, self.num_targets
        return self._episode(constants, TRAIN, user, key, n, sizes, None)

    def test_episode(self, constants, split, user, key) -> TestEpisode:
        """Draws a split of the user's choices; `flipped` has every choice reversed."""
        sizes = self.test_context, self.test_targets
        key = jax.random.fold_in(key, user)
        episode = self._episode(
            constants, split, user, key, self.test_context, sizes, self.test_context
        )
        return reversed_test_episode(episode)

    def bayes_log_prob(self, episode: Episode, key: jax.Array):
        """Returns None, since the prediction is not known for real people."""
        return None
