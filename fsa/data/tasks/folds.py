"""People in folds: each is scored by models that people of other folds trained.

A dataset's validation people alone are often too few to compare anything on. Here the
training people take turns with them, so that all of them are scored (cross-validation
over people); test people take no part.

Shapes: U people of training and validation together, P others of a person, I items.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsa.data.dataset import Dataset
from fsa.data.tasks.people import People, popularity
from fsa.data.tasks.task import TRAIN, VALID, TestEpisode
from fsa.data.users import UserTable
from fsa.errors import InputError

# P: other people of the fold whose contexts are tried in place of a person's own.
_NUM_OTHERS = 8


def pool(data: Dataset) -> Dataset:
    """Puts all training and validation people in every split, test people in none.

    Raises:
      InputError: if somebody is in both, as after `fsa prepare --split_by=prompt`.
    """
    tables = [data.users[split] for split in (TRAIN, VALID)]
    if both := set(tables[0].names) & set(tables[1].names):
        raise InputError(
            f"user {min(both)!r}, and {len(both)} users in all, are in train and in "
            "valid; this needs users who are in one split"
        )
    together = UserTable.concatenate(tables)
    return dataclasses.replace(data, users=dict.fromkeys(data.users, together))


@dataclasses.dataclass(frozen=True, eq=False)
class FoldedPeople(People):
    """Episodes of people in folds; `data` is what `pool` returns.

    The flipped context of a test episode is not the person's own in reverse but that of
    somebody else of the same fold, with as many choices. If people did not differ, both
    contexts would be alike, and so would be the predictions after them.

    Attributes:
      num_folds: number of folds.
      max_scored: most people who are scored, drawn at random, to bound the time.
    """

    num_folds: int = 4
    max_scored: int = 1000

    def users(self, split: str) -> np.ndarray:
        """See `People`; those to be scored are limited to `max_scored`."""
        users = super().users(split)
        if split == TRAIN:
            return users
        order = np.random.default_rng(self.seed).permutation(users)
        return np.sort(order[: self.max_scored])

    @functools.cached_property
    def fold(self) -> np.ndarray:
        """The fold of each person, `[U]`; every fold has its share of scored people."""
        rng = np.random.default_rng((self.seed, self.num_folds))
        scored = self.users(VALID)
        rest = np.setdiff1d(np.arange(len(self.data.users[VALID].names)), scored)
        fold = np.empty(len(scored) + len(rest), int)
        for people in (scored, rest):
            fold[rng.permutation(people)] = np.arange(len(people)) % self.num_folds
        return fold

    def scored(self, fold: int) -> np.ndarray:
        """Returns the people of a fold with enough choices to be scored, int32."""
        scored = self.users(VALID)
        return scored[self.fold[scored] == fold]

    def trained(self, fold: int) -> np.ndarray:
        """Returns the people to train on where `fold` is scored, in random order."""
        trained = self.users(TRAIN)
        others = trained[self.fold[trained] != fold]
        return np.random.default_rng((self.seed, fold)).permutation(others)

    @functools.cached_property
    def constants(self) -> dict[str, Any]:
        """Those of `People`, and the P others of each person, `[U, P]`."""
        return {**super().constants, "others": jnp.asarray(self._others())}

    def popularity_without(self, fold: int) -> np.ndarray:
        """Computes the popularity of items among people of other folds, `[I]`."""
        table = self.data.users[TRAIN].take(np.flatnonzero(self.fold != fold))
        data = dataclasses.replace(self.data, users={TRAIN: table})
        return popularity(data, self.min_margin)

    def constants_without(self, fold: int) -> dict[str, Any]:
        """Returns the constants with the popularity among people of other folds."""
        return {**self.constants, "popularity": self.popularity_without(fold)}

    def _others(self) -> np.ndarray:
        """Draws the others of each person from the scored people of the fold."""
        others = np.zeros((len(self.fold), _NUM_OTHERS), np.int32)
        for fold in range(self.num_folds):
            people = np.random.default_rng((self.seed, fold)).permutation(
                self.scored(fold)
            )
            # Neighbours in a circle, so that everybody is the other equally often.
            for i in range(_NUM_OTHERS):
                others[people, i] = np.roll(people, 1 + i % max(len(people) - 1, 1))
        return others

    def test_episode(self, constants, split, user, key) -> TestEpisode:
        """Draws a split of the user's choices; `flipped` has somebody else's."""
        own = super().test_episode(constants, split, user, key)
        which = jax.random.randint(jax.random.fold_in(key, user), (), 0, _NUM_OTHERS)
        other = constants["others"][user, which]
        context = super().test_episode(constants, split, other, key).episode.context
        return own._replace(flipped=context, context_differs=context.mask)
