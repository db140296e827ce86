"""Episodes of real people's choices and ratings, drawn on the device.

The dataset is a few arrays: the features of items, and the indices of the items that
were chosen and rejected, or rated, one user's after the other's. They are copied to the
device once, so that a step needs nothing but the numbers of its users from the host.
Of a dataset whose users stay on disk, a step gets the lists of its own users, and draws
the same.

The lists are not padded: one user with very many choices costs no more than those. A
draw looks at a window of the lists, which begins with the user's own entries; what is
drawn does not depend on how wide it is.

Shapes: I items, U users of a split, E entries of all its users' lists, W entries of a
window, N most context choices, M most target choices, F features, B examples of a
batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fsa import episodes
from fsa.data.dataset import Dataset
from fsa.data.ragged import Ragged
from fsa.data.tasks import order, windows
from fsa.data.tasks.task import (
    TEST,
    TRAIN,
    VALID,
    TestEpisode,
    UserRecord,
    check_somebody,
    feature_statistics,
    number_of,
    reversed_test_episode,
)
from fsa.data.users import StoredUsers, UserTable
from fsa.episodes import RATING, Choices, Episode, Feedback, Options
from fsa.errors import InputError

# Values of `train_on`. Choices are used as they are; ratings are paired to choices.
CHOICES, RATINGS = "choices", "ratings"

# The lists of a `UserTable` that hold its choices or its ratings.
_LISTS = {CHOICES: ("chosen", "rejected"), RATINGS: ("items", "values")}

# Most different values that ratings may have where they are contexts.
_MOST_LEVELS = 20
# How many of them a message lists.
_SHOWN = 10

# Ratings that are sorted in about the time that compiling another program takes.
_SORTED_WHILE_COMPILING = 1_000_000

# Batches of users whose pairs are counted in one call.
_BATCHES_AT_ONCE = 64


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
    for items, values in users.parts(_LISTS[RATINGS]):
        won, lost = _comparisons(data, items, values.flat, min_margin)
        compared = np.maximum(won + lost, 1)
        np.add.at(wins, items.flat, won / compared)
        np.add.at(losses, items.flat, lost / compared)
    for chosen, rejected in users.parts(_LISTS[CHOICES]):
        np.add.at(wins, chosen.flat, 1.0)
        np.add.at(losses, rejected.flat, 1.0)
    return np.log((wins + 1) / (losses + 1)).astype(np.float32)


def _comparisons(
    data: Dataset, items: Ragged, values: np.ndarray, min_margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Counts the comparisons that each rating wins and loses, `[E]` each.

    Sorts each user's ratings of a prompt. Those that a rating beats by the margin are
    then the first ones, and those that beat it the last ones.
    """
    user = np.repeat(np.arange(len(items)), items.lengths)
    prompt = data.item_prompt[items.flat]
    order = np.lexsort((values, prompt, user))
    user, prompt, values = user[order], prompt[order], values[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (np.diff(user) != 0) | (np.diff(prompt) != 0)
    bounds = np.append(np.flatnonzero(begins), len(order))
    sizes = np.diff(bounds)
    first, last = np.repeat(bounds[:-1], sizes), np.repeat(bounds[1:], sizes)

    def above(beaten: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Returns where the sorted ratings begin whose margin is not `beaten`."""
        low, high = first, last
        # Compares margins, as rounding could turn a sum of value and margin.
        while (low < high).any():
            middle = (low + high) // 2
            margin = values - values[np.minimum(middle, len(values) - 1)]
            up = (low < high) & beaten(margin)
            low, high = np.where(up, middle + 1, low), np.where(up, high, middle)
        return low

    won, lost = np.empty((2, len(order)), np.int64)
    won[order] = above(lambda margin: margin > min_margin) - first
    lost[order] = last - above(lambda margin: margin >= -min_margin)
    return won, lost


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
      context: what contexts are made of: `CHOICES`; or `RATINGS` as they are, of single
        options that are in no target pair. Then all pairs are drawn from ratings.
      pairing_noise: see `episodes.pair_ratings`.
      max_gap: see `episodes.pair_ratings`.
      min_margin: see `episodes.pair_ratings`.
      seed: of the order of users.
      known_levels: the values that ratings may have, ascending, such as those of the
        data that a model was trained on; by default those that they have.

    Raises:
      InputError: when no user of a split has enough choices, naming the numbers; or
        when a rating is none of those that it may be.
    """

    data: Dataset
    batch_size: int
    max_context: int
    num_targets: int
    test_context: int
    test_targets: int
    min_choices: int = 2
    train_on: str = RATINGS
    context: str = CHOICES
    pairing_noise: float = 1.0
    max_gap: float | None = None
    min_margin: float = 0.0
    seed: int = 0
    known_levels: tuple[float, ...] = ()

    flips_are_types = False

    def __post_init__(self):
        """Refuses a dataset that cannot fill its smallest episode."""
        splits = (TRAIN, VALID, TEST)
        if self.context == RATINGS and self.train_on != RATINGS:
            raise InputError(
                f"`context`={RATINGS}: set `train_on` to {RATINGS} as well"
            )
        for split in splits:
            check_somebody(split, len(self.data.users[split]))
        for split in splits:
            found, source = self.num_choices[split], self._source(split)
            if found.max(initial=0) < self._least(split):
                raise InputError(
                    f"{split} users have at most {found.max(initial=0)} {source} to "
                    f"choose between, and an episode needs {self._least(split)}; "
                    f"{self._way_out(split)} or add data"
                )
        _ = self.levels

    def _way_out(self, split: str) -> str:
        """Returns what to change when a split's users cannot fill an episode."""
        if split != TRAIN:
            return "lower `test_context`"
        other = RATINGS if self.train_on == CHOICES else CHOICES
        own, others = (self._lengths(split, of) for of in (self.train_on, other))
        if not own.any() and others.any():
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
    def levels(self) -> tuple[float, ...]:
        """The values that ratings may have, ascending; none where contexts are choices.

        Raises:
          InputError: if there are too many, or others than `known_levels`.
        """
        if self.context == CHOICES:
            return ()
        found = np.unique(
            np.concatenate(
                [
                    np.unique(values.flat)
                    for users in self.data.users.values()
                    for (values,) in users.parts(("values",))
                ]
            )
        )
        if len(found) > _MOST_LEVELS:
            raise InputError(
                f"`context`={RATINGS}: the ratings have {len(found)} different values, "
                f"and may have {_MOST_LEVELS}; round them before fsa prepare"
            )
        if not self.known_levels:
            return tuple(map(float, found))
        if unknown := np.setdiff1d(found, np.float32(self.known_levels)).tolist():
            raise InputError(
                f"`data`: has ratings of {_listed(unknown)}, and the model was trained "
                f"on ratings of {_listed(self.known_levels)}; give them these values "
                "before fsa prepare"
            )
        return self.known_levels

    @functools.cached_property
    def constants(self) -> dict[str, Any]:
        """Item features, prompts and popularity, and each split's users.

        Of users on disk there is nothing, and no popularity unless it is needed, since
        all of them would be read for it.
        """
        constants: dict[str, Any] = {
            "features": jnp.asarray(self.data.features),
            "prompt": jnp.asarray(self.data.item_prompt),
            "users": {
                split: self._on_device(split, users)
                for split, users in self.data.users.items()
                if isinstance(users, UserTable)
            },
        }
        sources = {self._source(split) for split in self.data.users}
        if constants["users"] or RATINGS in sources:
            popular = popularity(self.data, self.min_margin)
            constants["popularity"] = jnp.asarray(popular)
        return constants

    def _on_device(self, split: str, users: UserTable) -> dict[str, Any]:
        lists = [getattr(users, name) for name in _LISTS[self._source(split)]]
        return {
            "group": jnp.asarray(users.group),
            "begin": jnp.asarray(lists[0].offsets, jnp.int32),
            "lists": tuple(jnp.asarray(each.flat) for each in lists),
        }

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and deviation (std) of training users' items, `[F]` each."""
        return feature_statistics(self.data.features, self.data.users[TRAIN].judged())

    @functools.cached_property
    def _trained_on(self) -> np.ndarray:
        return self.users(TRAIN)

    def training_users(self, step: int) -> np.ndarray:
        """Returns the users of batch `step`, `[B]`; epochs are fresh permutations."""
        first = step * self.batch_size
        return order.visited(self._trained_on, first, self.batch_size, self.seed)

    def fetch(self, split: str, users: np.ndarray, own: np.ndarray) -> Any:
        """See `Task`; reads the records of users who are on disk.

        Lists are as wide as the longest of the batch needs, in every process.
        """
        stored = self.data.users[split]
        if not isinstance(stored, StoredUsers):
            return users[own]
        longest = self._lengths(split)[users].max(initial=0)
        fitting = np.searchsorted(self._widths[split], longest)
        return self._records(split, users[own], self._widths[split][fitting])

    def _records(self, split: str, users: np.ndarray, width: int) -> UserRecord:
        """Reads the records of users `[B]`, with lists `[B, W]`."""
        stored = self.data.users[split]
        lists = stored.read(users, _LISTS[self._source(split)])
        return UserRecord(
            number=users,
            group=stored.group[users],
            length=lists[0].lengths.astype(np.int32),
            lists=tuple(each.pad(0, width) for each in lists),
        )

    def users(self, split: str) -> np.ndarray:
        """Returns the users of `split` with enough choices for an episode, int32."""
        enough = self.num_choices[split] >= self._least(split)
        return np.flatnonzero(enough).astype(np.int32)

    def _least(self, split: str) -> int:
        return self.min_choices if split == TRAIN else self.test_context + 1

    def _source(self, split: str) -> str:
        """Returns the source of a split's choices: CHOICES, or RATINGS to be paired."""
        if split == TRAIN or self.context == RATINGS:
            return self.train_on
        return CHOICES if self._lengths(split, CHOICES).any() else RATINGS

    def _lengths(self, split: str, source: str | None = None) -> np.ndarray:
        """Returns the lengths of the lists of a split's users, `[U]`.

        Args:
          split: whose lists.
          source: CHOICES or RATINGS; by default what episodes are drawn from.
        """
        source = source or self._source(split)
        return self.data.users[split].lengths(_LISTS[source][0])

    @functools.cached_property
    def _widths(self) -> dict[str, tuple[int, ...]]:
        """The widths of windows onto the lists of users, by split."""
        return {
            split: windows.widths(
                self._lengths(split)[self.users(split)], self.batch_size
            )
            for split in self.data.users
        }

    @functools.cached_property
    def num_choices(self) -> dict[str, np.ndarray]:
        """The number of choices of each user, `[U]`, by split; pairs ratings once."""
        # The same for every seed, so that all runs are scored on the same users.
        key = jax.random.key(0)

        @functools.partial(jax.jit, static_argnames=("split", "width", "at_once"))
        def count(constants, users, split, width, at_once):
            def one(user):
                own_key = jax.random.fold_in(key, number_of(user))
                own = self._own(constants, split, user)
                return self._pairs(constants, split, own, own_key, width)[-1].sum()

            return jax.lax.map(one, users, batch_size=at_once)

        def of(split: str) -> np.ndarray:
            lengths = self._lengths(split)
            if self._source(split) == CHOICES:
                return lengths
            found, left = np.zeros_like(lengths), lengths > 0
            widths = windows.widths(lengths[left], together=1)
            if left.sum() * widths[-1] < _SORTED_WHILE_COMPILING:
                widths = widths[-1:]
            for width in widths:
                users = np.flatnonzero(left & (lengths <= width)).astype(np.int32)
                at_once = min(256, len(users))
                # Full batches, since a remainder would double the time to compile.
                for part, full in _full_parts(users, at_once):
                    if isinstance(self.data.users[split], StoredUsers):
                        full = self._records(split, full, width)
                    counted = count(self.constants, full, split, width, at_once)
                    found[part] = counted[: len(part)]
                left &= lengths > width
            return found

        return {split: of(split) for split in (TRAIN, VALID, TEST)}

    def _own(self, constants, split, user) -> "_Own":
        """Returns a user's own entries, of all users' or of the user's record."""
        if isinstance(user, UserRecord):
            return _Own(jnp.int32(0), user.length, user.lists, user.group)
        users = constants["users"][split]
        first, end = users["begin"][user], users["begin"][user + 1]
        return _Own(first, end, users["lists"], users["group"][user])

    def _pairs(self, constants, split, own, key, width):
        """Returns a user's pairs in a window of W entries.

        Returns:
          The items of pairs, (chosen, rejected); the position in them where the user's
          own begin; and the mask of the user's own from there on, `[W]` for choices and
          `[W // 2]` for ratings.
        """
        mine = jnp.arange(width) < own.end - own.first
        if self._source(split) == CHOICES:
            return own.lists, own.first, mine
        window = own.first + jnp.arange(width)
        items, values = (x.at[window].get(mode="clip") for x in own.lists)
        chosen, rejected, mask = episodes.pair_ratings(
            key,
            values,
            constants["popularity"][items],
            constants["prompt"][items],
            mine,
            noise=self.pairing_noise,
            max_gap=self.max_gap,
            min_margin=self.min_margin,
        )
        return (items[chosen], items[rejected]), 0, mask

    def _episode(self, constants, split, user, key, num_context, sizes, first_target):
        def through(width, constants, user, key, num_context):
            own = self._own(constants, split, user)
            pair_key, split_key = jax.random.split(key)
            pairs, first, mask = self._pairs(constants, split, own, pair_key, width)
            parts = episodes.split(
                split_key,
                mask,
                num_context,
                max_context=sizes[0],
                max_targets=sizes[1],
                first_target=first_target,
            )

            def choices(positions, mask) -> Choices:
                features = constants["features"]
                return episodes.gather(features, pairs, first + positions, mask)

            context = choices(parts.context, parts.context_mask)
            target = choices(parts.target, parts.target_mask)
            if self.context == RATINGS:
                key = jax.random.fold_in(split_key, 1)
                context = self._ratings(
                    constants, own, key, width, target, context.mask
                )
            return Episode(context=context, target=target, group=own.group)

        own = self._own(constants, split, user)
        widths = self._widths[split]
        if isinstance(user, UserRecord):
            widths = (own.lists[0].shape[0],)
        arguments = constants, user, key, jnp.asarray(num_context)
        return windows.through(through, own.end - own.first, widths, *arguments)

    def _ratings(self, constants, own, key, width, target, mask) -> Feedback:
        """Draws as many ratings as are real in `mask` `[N]`, of no target's options.

        There are enough: that many pairs of ratings are left beside the targets.
        """
        window = own.first + jnp.arange(width)
        items, values = (x.at[window].get(mode="clip") for x in own.lists)
        asked = jnp.concatenate([target.chosen.item, target.rejected.item])
        free = (window < own.end) & ~jnp.isin(items, asked)
        scores = jnp.where(free, jax.random.uniform(key, (width,)), -1.0)
        drawn = jax.lax.top_k(scores, min(len(mask), width))[1]
        drawn = jnp.pad(drawn, (0, len(mask) - len(drawn)))
        item = jnp.where(mask, items[drawn], -1)
        rated = Options(jnp.where(mask[:, None], constants["features"][item], 0), item)
        level = jnp.searchsorted(jnp.asarray(self.levels), values[drawn])
        kind = (RATING + level).astype(jnp.int32)
        return Feedback(rated, rated, kind, mask, jnp.ones(mask.shape))

    def train_episode(self, constants, user, key) -> Episode:
        """Draws a split, and for ratings the pairs, of a training user."""
        size_key, key = jax.random.split(key)
        n = jax.random.randint(size_key, (), 0, self.max_context + 1)
        sizes = self.max_context, self.num_targets
        return self._episode(constants, TRAIN, user, key, n, sizes, None)

    def test_episode(self, constants, split, user, key) -> TestEpisode:
        """Draws a split of the user's choices; `flipped` has all of them reversed.

        Where the context is of ratings, the best of the scale is exchanged with the
        worst, and so on.
        """
        sizes = self.test_context, self.test_targets
        key = jax.random.fold_in(key, number_of(user))
        episode = self._episode(
            constants, split, user, key, self.test_context, sizes, self.test_context
        )
        if self.context == CHOICES:
            return reversed_test_episode(episode)
        context = episode.context
        opposite = 2 * RATING + len(self.levels) - 1 - context.kind
        return TestEpisode(
            episode=episode,
            flipped=context._replace(kind=opposite),
            context_differs=context.mask & (opposite != context.kind),
            target_differs=episode.target.mask,
        )

    def bayes_log_prob(self, episode: Episode, key: jax.Array):
        """Returns None, since the prediction is not known for real people."""
        return None


class _Own(NamedTuple):
    """Where a user's own entries are: from `first` to `end` of `lists`."""

    first: jax.Array
    end: jax.Array
    lists: tuple[jax.Array, jax.Array]
    group: jax.Array


def _full_parts(
    users: np.ndarray, at_once: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields parts of some users, and each filled up to a multiple of `at_once`.

    All but very many users are one part; all parts have one size.
    """
    if not len(users):
        return
    size = min(-(-len(users) // at_once), _BATCHES_AT_ONCE) * at_once
    for first in range(0, len(users), size):
        part = users[first : first + size]
        yield part, np.resize(part, size)


def _listed(values: Sequence[float]) -> str:
    """Returns numbers in words, of many the first ones."""
    shown = ", ".join(f"{value:g}" for value in values[:_SHOWN])
    return f"{shown} and others" if len(values) > _SHOWN else shown
