"""Batches of users' choices between responses, for policies.

Batches are made on the host, since a large dataset's tokens do not fit on a device.
Example i of the global batch of step s depends on (seed, s, i) alone.

Shapes: B users of a batch, N most context choices, M most target choices, P of them
with tokens, F features, T tokens; an axis of size 2 is (chosen, rejected).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from fsa.data.dataset import Dataset
from fsa.data.ragged import Ragged
from fsa.data.scored_responses import Responses
from fsa.data.tasks import order, packing
from fsa.data.tasks.packing import Packing, Rows
from fsa.data.tasks.task import TRAIN, check_somebody, feature_statistics
from fsa.data.users import UserTable
from fsa.episodes import Choices, Episode, Options
from fsa.errors import InputError
from fsa.language.token_table import PaddedTokens, RowTokens, TokenTable

# Training batches that the lengths of rows are chosen for.
_BATCHES_TO_PLAN = 32


class PairBatch(NamedTuple):
    """Episodes of some users, with the tokens of their targets.

    Attributes:
      step: `[B]` int32, from which with `position` an example's random key is made.
      position: `[B]` int32, position in the global batch.
      user: `[B]` int32, index into the users of the split.
      episode: contexts `[B, N]` and targets `[B, M]`, with features `[F]`.
      responses: tokens `[B, P, 2, T]` of the first targets.
      reference: `[B, P, 2]` float32, their log-probabilities under the reference.
    """

    step: np.ndarray
    position: np.ndarray
    user: np.ndarray
    episode: Episode
    responses: PaddedTokens
    reference: np.ndarray


class PackedBatch(NamedTuple):
    """The same episodes, with the tokens of their targets in rows.

    Attributes:
      step: `[B]` int32, from which with `position` an example's random key is made.
      position: `[B]` int32, position in the global batch.
      user: `[B]` int32, index into the users of the split.
      episode: contexts `[B, N]` and targets `[B, M]`, with features `[F]`.
      pairs: `[B]` int32, how many of the user's targets are in rows, the first ones.
      rows: rows of each length, of the complete batch.
    """

    step: np.ndarray
    position: np.ndarray
    user: np.ndarray
    episode: Episode
    pairs: np.ndarray
    rows: tuple[Rows, ...]


def batch_shapes(
    *,
    batch_size: int,
    max_context: int,
    num_targets: int,
    num_pairs: int | None,
    num_features: int,
    length: int,
) -> PairBatch:
    """Returns the shapes and dtypes of a batch.

    Args:
      batch_size: B.
      max_context: N.
      num_targets: M.
      num_pairs: P; M if None.
      num_features: F.
      length: T.
    """

    def of(dtype, *shape):
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    def choices(number):
        option = Options(of("float32", number, num_features), of("int32", number))
        return Choices(option, option, of("bool", number))

    pairs = num_pairs or num_targets, 2
    return PairBatch(
        step=of("int32"),
        position=of("int32"),
        user=of("int32"),
        episode=Episode(choices(max_context), choices(num_targets), of("int32")),
        responses=PaddedTokens(
            of("int32", *pairs, length), of("int32", *pairs), of("int32", *pairs)
        ),
        reference=of("float32", *pairs),
    )


def packed_shapes(padded: PairBatch) -> PackedBatch:
    """Returns the shapes of a batch in rows, each of which holds one pair.

    These are the most rows: those of pairs whose texts all have the padded length.

    Args:
      padded: the shapes of the batch, from `batch_shapes`.
    """

    def of(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    users, pairs, _, length = padded.responses.tokens.shape
    each = users, pairs, 1
    texts = [of("int32", *each, 2)] * 3
    rows = Rows(
        RowTokens(of("int32", users, pairs, 2 * length), *texts),
        user=of("int32", *each),
        pair=of("int32", *each),
        reference=of("float32", *each, 2),
    )
    shared = padded._asdict()
    del shared["responses"], shared["reference"]
    return PackedBatch(**shared, pairs=of("int32", users), rows=(rows,))


def check_buckets(tokens: TokenTable, buckets: Sequence[int]) -> None:
    """Checks that the longest prompt with its response fits a padded length.

    Raises:
      InputError: if it does not; the message gives its length.
    """
    longest = int(tokens.length.max())
    if longest > max(buckets):
        raise InputError(
            f"a prompt with its response has {longest} tokens, more than the largest "
            f"of `buckets` {tuple(buckets)}; add a larger one or lower "
            "`max_prompt` or `max_response`"
        )


def check_choices(split: str, counts: Sequence[int], test_context: int) -> None:
    """Checks that some user of a split has enough choices for an episode.

    Raises:
      InputError: if no user has; the message names the split and the numbers.
    """
    check_somebody(split, len(counts))
    found, needed = max(counts, default=0), _least(split, test_context)
    if found < needed:
        raise InputError(
            f"{split} users have at most {found} usable choices, and an episode needs "
            f"{needed}; lower `test_context` or add data"
        )


def _least(split: str, test_context: int) -> int:
    return 2 if split == TRAIN else test_context + 1


class _Drawn(NamedTuple):
    """Some of one user's choices as items, `[..., 2]`, disjoint."""

    context: np.ndarray
    target: np.ndarray


class _Sizes(NamedTuple):
    """Sizes N, M and P of a batch; P is M if None."""

    context: int
    targets: int
    pairs: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class PairTask:
    """Episodes from a dataset of choices and the tokens of its items.

    Context and targets are disjoint choices about different prompts. If all choices of
    a user are about one prompt, context and targets are disjoint choices about it.

    Attributes:
      data: items and users.
      responses: tokens, reference log-probabilities and features of the items.
      batch_size: B, users.
      max_context: N in training; n ~ U{min_context..N} for each user.
      num_targets: M in training.
      test_context: N at test; users with fewer than N + 1 usable choices are not
        scored.
      test_targets: M at test.
      buckets: the padded lengths T that batches may have, ascending; a batch has the
        smallest into which it fits.
      num_pairs: P in training; None for M, as it is at test.
      min_context: the smallest n in training.
      any_pairs: whether the targets of training are pairs of responses that are drawn
        at random, whether anybody chose between them or not: of those that no user
        decided on, if the data have some, else of training users' choices. Their
        features are held in the range of those of training users' choices: a reward
        of what nobody was asked about is no taste, and may be larger than all others.
      rewards: `[items, K]`, rewards of all items for K people whom the prior draws;
        for `candidates` above 1.
      candidates: how many pairs are drawn for each of `any_pairs`, of which the one is
        kept whose rewards differ most, by the mean square over these people.
      packed: whether batches of training have rows in place of padded sequences.
      together: whether a device computes several rows at once, see `packing.choose`.
      seed: of the order of users and of their episodes.

    Raises:
      InputError: no user of a split has enough choices, or a response is too long.
    """

    data: Dataset
    responses: Responses
    batch_size: int
    max_context: int
    num_targets: int
    test_context: int
    test_targets: int
    buckets: tuple[int, ...]
    num_pairs: int | None = None
    min_context: int = 0
    any_pairs: bool = False
    rewards: np.ndarray | None = None
    candidates: int = 1
    packed: bool = False
    together: bool = False
    seed: int = 0

    flips_are_types = False

    def __post_init__(self):
        """Refuses data that cannot fill an episode or exceed the padded lengths."""
        check_buckets(self.responses.tokens, self.buckets)
        for split, choices in self._choices.items():
            check_choices(split, choices.lengths.tolist(), self.test_context)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of users."""
        return self.data.groups

    @functools.cached_property
    def _choices(self) -> dict[str, Ragged]:
        """Items `[..., 2]` of each user's usable choices, by split.

        Two responses that are the same tokens, after a template or a cut, are no
        choice.
        """
        return {
            split: with_tokens.keep(self.responses.differ(with_tokens.flat))
            for split, with_tokens in self._with_tokens.items()
        }

    @functools.cached_property
    def _with_tokens(self) -> dict[str, Ragged]:
        """Items `[..., 2]` of each user's choices of two items that have tokens."""

        def of(table: UserTable) -> Ragged:
            items = np.stack([table.chosen.flat, table.rejected.flat], axis=-1)
            usable = self.responses.usable[items].all(axis=-1)
            return Ragged(items, table.chosen.offsets).keep(usable)

        return {split: of(table) for split, table in self.data.users.items()}

    @property
    def num_equal(self) -> int:
        """Number of choices that are left out, since their responses are the same."""
        pairs = zip(self._with_tokens.values(), self._choices.values(), strict=True)
        return sum(len(before.flat) - len(after.flat) for before, after in pairs)

    def users(self, split: str) -> np.ndarray:
        """Returns the users of `split` with enough choices for an episode, int32."""
        enough = self._choices[split].lengths >= _least(split, self.test_context)
        return np.flatnonzero(enough).astype(np.int32)

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and deviation (std) of training users' options, `[F]` each."""
        return feature_statistics(self.responses.features, self._choices[TRAIN].flat)

    def in_range(self, features: np.ndarray) -> np.ndarray:
        """Limits features `[..., F]` to the range of training users' options."""
        return np.clip(features, *self._range)

    def differences(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the features of all choices of a split's users.

        Returns:
          Chosen minus rejected `[choices, F]`, and the user's group `[choices]`.
        """
        features, groups = self.responses.features, self.data.users[split].group
        choices = self._choices[split]
        chosen, rejected = choices.flat.T
        gaps = features[chosen] - features[rejected]
        return gaps, np.repeat(groups, choices.lengths)

    def prompts(self, split: str) -> np.ndarray:
        """Returns the indices of the different prompts of a split's choices."""
        return np.unique(self.data.item_prompt[self._choices[split].flat[:, 0]])

    def test_items(
        self, split: str, user: int, episode: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the items of an episode's context and of its targets, `[..., 2]`."""
        return self._test_draw(split, user, episode)

    def context_prompts(self, split: str, user: int, episode: int = 0) -> np.ndarray:
        """Returns the prompts in the context of a user's test episode, as indices."""
        context, _ = self.test_items(split, user, episode)
        return self.data.item_prompt[context[:, 0]]

    @functools.cached_property
    def _trained_on(self) -> np.ndarray:
        return self.users(TRAIN)

    def train_batch(
        self, step: int, positions: np.ndarray | None = None
    ) -> PairBatch | PackedBatch:
        """Makes examples of the global batch of a step.

        Args:
          step: number of the batch.
          positions: of the examples in the batch, ascending; all by default. Examples
            are padded to the length of the complete batch, whichever are asked for, and
            rows are packed for it.
        """
        users, drawn = self._train_draws(step)
        sizes = _Sizes(self.max_context, self.num_targets, self.num_pairs)
        return self._batch(TRAIN, step, users, drawn, sizes, positions, self.packed)

    def _train_draws(self, step: int) -> tuple[np.ndarray, list[_Drawn]]:
        """Returns the users of the global batch of a step, and their choices."""
        first = step * self.batch_size
        users = order.visited(self._trained_on, first, self.batch_size, self.seed)
        drawn = []
        # All examples are drawn, which costs little compared with their tokens.
        for position, user in enumerate(users):
            rng = np.random.default_rng((self.seed, step, position, 1))
            size = int(rng.integers(self.min_context, self.max_context + 1))
            own = self._draw(rng, TRAIN, user, size, self.num_targets)
            if self.any_pairs:
                own = own._replace(target=self._draw_pairs(rng))
            drawn.append(own)
        return users, drawn

    @functools.cached_property
    def packing(self) -> Packing:
        """How training batches are packed, as chosen for the first of them."""
        length = self.responses.tokens.length
        if self.any_pairs:
            longest = 2 * length[self._answers.flat].max()
        else:
            longest = length[self._choices[TRAIN].flat].sum(-1).max()
        together = self.batch_size if self.together else None
        return packing.choose(self._planned, int(longest), together)

    def rows_at_once(self, parts: int) -> int:
        """Returns how many rows a device needs at once to compute most steps in one go.

        Args:
          parts: number of devices that a batch is split over.
        """
        return packing.at_once(self.packing, self._planned, self.batch_size, parts)

    @functools.cached_property
    def _planned(self) -> list[np.ndarray]:
        """The numbers of tokens of the pairs of the first training batches."""
        found = []
        for step in range(_BATCHES_TO_PLAN):
            _, drawn = self._train_draws(step)
            pairs = np.concatenate([own.target[: self.num_pairs] for own in drawn])
            found.append(self.responses.tokens.length[pairs].sum(-1))
        return found

    def test_batch(self, split: str, users: Sequence[int], episode: int) -> PairBatch:
        """Makes one episode of each user, the same for every seed of a model.

        The context's real choices come first, so contexts of every smaller size are its
        prefixes and face the same targets.
        """
        drawn = [self._test_draw(split, user, episode) for user in users]
        sizes = _Sizes(self.test_context, self.test_targets, None)
        return self._batch(split, episode, users, drawn, sizes)

    def _test_draw(self, split: str, user: int, episode: int) -> _Drawn:
        rng = np.random.default_rng((user, episode))
        return self._draw(rng, split, user, self.test_context, self.test_targets)

    def _draw_pairs(self, rng: np.random.Generator) -> np.ndarray:
        """Draws M pairs of different responses, each to a random prompt, `[M, 2]`."""
        first = rng.choice(self._answers.flat, self.num_targets * self.candidates)
        found = []
        for item in first:
            others = self._answers[self.data.item_prompt[item]]
            found.append((item, rng.choice(others[self._differs_from(item, others)])))
        pairs = np.array(found, np.int32)
        if self.candidates == 1:
            return pairs
        first, second = (self.rewards[side] for side in pairs.T)
        gaps = np.square(first - second).mean(-1).reshape(-1, self.candidates)
        best = gaps.argmax(1) + self.candidates * np.arange(self.num_targets)
        return pairs[best]

    def _differs_from(self, item: int, others: np.ndarray) -> np.ndarray:
        """Returns `[E]`, whether the tokens of an item differ from those of others."""
        return self.responses.differ(np.stack(np.broadcast_arrays(item, others), -1))

    @functools.cached_property
    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and largest features `[F]` of training users' options."""
        known = self.responses.features[np.unique(self._choices[TRAIN].flat)]
        return known.min(axis=0), known.max(axis=0)

    @functools.cached_property
    def _answers(self) -> Ragged:
        """Items that pairs are drawn from, by prompt.

        Each differs from some other response to its prompt.
        """
        free = self._free
        items = free if len(free) else np.unique(self._choices[TRAIN].flat)
        of_item = self.data.item_prompt[items]
        prompts = range(len(self.data.prompts))
        return Ragged.of([items[of_item == prompt] for prompt in prompts], np.int32)

    @functools.cached_property
    def _free(self) -> np.ndarray:
        """Items that no user decided on, to prompts with two different ones."""
        is_free = self.responses.usable.copy()
        for table in self.data.users.values():
            for own in (table.chosen, table.rejected, table.items):
                is_free[own.flat] = False
        items = np.flatnonzero(is_free)
        prompt, kinds = self.data.item_prompt[items], self.responses.tokens.kinds[items]
        different, _ = np.unique(np.stack([prompt, kinds]), axis=1)
        prompts, number = np.unique(different, return_counts=True)
        return items[np.isin(prompt, prompts[number > 1])]

    @property
    def num_free(self) -> int:
        """Number of responses that no user decided on, and that pairs are drawn from.

        If it is 0, pairs are drawn from what training users chose between.
        """
        return len(self._free)

    def _draw(self, rng, split: str, user: int, size: int, num_targets: int) -> _Drawn:
        choices = self._choices[split][user]
        prompt = self.data.item_prompt[choices[:, 0]]
        order = rng.permutation(len(choices))
        context, rest = np.split(order, [min(size, len(choices) - 1)])
        elsewhere = rest[~np.isin(prompt[rest], prompt[context])]
        target = elsewhere if len(elsewhere) else rest
        return _Drawn(choices[context], choices[target[:num_targets]])

    def _batch(
        self,
        split: str,
        step: int,
        users: Sequence[int],
        drawn: Sequence[_Drawn],
        sizes: _Sizes,
        positions: np.ndarray | None = None,
        packed: bool = False,
    ) -> PairBatch | PackedBatch:
        """Makes the examples at `positions`, packed or padded for the whole batch."""
        contexts, targets = zip(*drawn, strict=True)
        context = Ragged.of(contexts, np.int32).pad(-1, sizes.context)
        target = Ragged.of(targets, np.int32).pad(-1, sizes.targets)
        pairs = target[:, : sizes.pairs]
        if positions is None:
            positions = np.arange(len(users), dtype=np.int32)
        users = np.asarray(users, np.int32)[positions]
        own = pairs[positions]
        options = self._as_choices(target[positions])
        if split == TRAIN and self.any_pairs:
            sides = (
                side._replace(features=self.in_range(side.features))
                for side in (options.chosen, options.rejected)
            )
            options = Choices(*sides, options.mask)
        shared = dict(
            step=np.full(len(users), step, np.int32),
            position=positions,
            user=users,
            episode=Episode(
                self._as_choices(context[positions]),
                options,
                self.data.users[split].group[users],
            ),
        )
        tokens, log_prob = self.responses.tokens, self.responses.log_prob
        if packed:
            return PackedBatch(
                **shared,
                pairs=(own[..., 0] >= 0).sum(-1, dtype=np.int32),
                rows=packing.pack(self.packing, tokens, log_prob, pairs, positions),
            )
        longest = tokens.length[pairs[pairs >= 0]].max()
        length = min(length for length in self.buckets if length >= longest)
        return PairBatch(
            **shared,
            responses=tokens.pad(own, length),
            reference=np.where(own >= 0, log_prob[own], 0).astype(np.float32),
        )

    def _as_choices(self, items: np.ndarray) -> Choices:
        known = items >= 0
        features = np.where(known[..., None], self.responses.features[items], 0)

        def side(i):
            # Models see features alone: generated texts have no identity.
            return Options(features[..., i, :], np.full_like(items[..., i], -1))

        return Choices(side(0), side(1), known[..., 0])
