"""Batches of users' choices between responses, for policies.

Batches are made on the host, since tokens of a large data set do not fit on a device;
row i of the global batch of step s is a function of (seed, s, i) alone.

Shapes: B users of a batch, N most context choices, M most target choices, P of them
with tokens, F features, T tokens; 2 is (chosen, rejected).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from fsa.data.dataset import Dataset
from fsa.data.scored_responses import Responses
from fsa.data.tasks import order
from fsa.data.tasks.task import TRAIN
from fsa.episodes import Choices, Episode, Options
from fsa.errors import InputError
from fsa.language.token_table import Padded, TokenTable


class PairBatch(NamedTuple):
    """Episodes of some users, with the tokens of their targets.

    Attributes:
      step: `[B]` int32, which with `position` decides what random numbers a row gets.
      position: `[B]` int32, position in the global batch.
      user: `[B]` int32, in the table of the split.
      episode: contexts `[B, N]` and targets `[B, M]`, with features `[F]`.
      responses: tokens `[B, P, 2, T]` of the first targets.
      reference: `[B, P, 2]` float32, their log-probabilities under the reference.
    """

    step: np.ndarray
    position: np.ndarray
    user: np.ndarray
    episode: Episode
    responses: Padded
    reference: np.ndarray


def batch_shapes(
    *,
    batch_size: int,
    max_context: int,
    num_targets: int,
    num_pairs: int | None,
    num_features: int,
    length: int,
) -> PairBatch:
    """The shapes and dtypes of a batch.

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
        responses=Padded(
            of("int32", *pairs, length), of("int32", *pairs), of("int32", *pairs)
        ),
        reference=of("float32", *pairs),
    )


def check_buckets(tokens: TokenTable, buckets: Sequence[int]) -> None:
    """Refuses lengths that do not hold every prompt with its response.

    Raises:
      InputError: naming the longest.
    """
    longest = int(tokens.length.max())
    if longest > max(buckets):
        raise InputError(
            f"a prompt with its response has {longest} tokens, more than the largest "
            f"of task.buckets {tuple(buckets)}; add a larger one or lower "
            "task.max_prompt or task.max_response"
        )


def check_choices(split: str, counts: Sequence[int], test_context: int) -> None:
    """Refuses a split none of whose users has enough choices for an episode.

    Raises:
      InputError: naming the split and the numbers.
    """
    found, needed = max(counts, default=0), _least(split, test_context)
    if found < needed:
        raise InputError(
            f"{split} users have at most {found} usable choices, and an episode needs "
            f"{needed}; lower eval.num_context or add data"
        )


def _least(split: str, test_context: int) -> int:
    return 2 if split == TRAIN else test_context + 1


class _Drawn(NamedTuple):
    """Positions of one user's choices."""

    context: np.ndarray
    target: np.ndarray


class _Sizes(NamedTuple):
    """N, M and P of a batch; P is M if None."""

    context: int
    targets: int
    pairs: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class PairTask:
    """Episodes from a store of choices and the tokens of its items.

    Context and targets are disjoint choices about different prompts; a user all of
    whose choices are about one prompt gets disjoint choices about it.

    Attributes:
      data: items and users.
      responses: their tokens, reference log-probabilities and features.
      batch_size: B, users.
      max_context: N in training; n ~ U{0..N} for each user.
      num_targets: M in training.
      test_context: N at test; users with fewer than N + 1 usable choices are not
        scored.
      test_targets: M at test.
      buckets: lengths T that batches are padded to, ascending; a batch has the least
        that holds it.
      num_pairs: P in training; None for M, as it is at test.
      seed: of the order of users and of their episodes.

    Raises:
      InputError: when no user of a split has enough choices, naming the numbers.
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
    seed: int = 0

    flips_are_types = False

    def __post_init__(self):
        """Refuses data that cannot fill an episode or do not fit the buckets."""
        check_buckets(self.responses.tokens, self.buckets)
        for split, users in self._choices.items():
            check_choices(
                split, [len(chosen) for chosen, _ in users], self.test_context
            )

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of users."""
        return self.data.groups

    @functools.cached_property
    def _choices(self) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
        """(chosen, rejected) items of each user's usable choices, by split."""
        usable = self.responses.usable

        def of(chosen, rejected):
            real = chosen >= 0
            chosen, rejected = chosen[real], rejected[real]
            both = usable[chosen] & usable[rejected]
            return chosen[both], rejected[both]

        return {
            split: [of(*pair) for pair in zip(t.chosen, t.rejected, strict=True)]
            for split, t in self.data.users.items()
        }

    @property
    def num_left_out(self) -> int:
        """Choices that are not used since one of their responses is not."""
        total = sum(int((t.chosen >= 0).sum()) for t in self.data.users.values())
        return total - sum(len(c) for users in self._choices.values() for c, _ in users)

    def users(self, split: str) -> np.ndarray:
        """Users of `split` with enough choices for an episode, int32."""
        counts = np.array([len(chosen) for chosen, _ in self._choices[split]])
        return np.flatnonzero(counts >= _least(split, self.test_context)).astype(
            np.int32
        )

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of what training users chose from, `[F]` each."""
        seen = np.unique(
            np.concatenate([np.concatenate(c) for c in self._choices[TRAIN]])
        )
        features = self.responses.features[seen]
        std = features.std(axis=0)
        # A constant dimension carries nothing; dividing by 1 keeps it at 0.
        return features.mean(axis=0), np.where(std < 1e-6, 1.0, std)

    def differences(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All choices of a split's users as features.

        Returns:
          Chosen minus rejected `[choices, F]`, and the user's group `[choices]`.
        """
        features, groups = self.responses.features, self.data.users[split].group
        pairs = self._choices[split]
        gaps = [features[chosen] - features[rejected] for chosen, rejected in pairs]
        counts = [len(chosen) for chosen, _ in pairs]
        return np.concatenate(gaps), np.repeat(groups, counts)

    def prompts(self, split: str) -> np.ndarray:
        """The different prompts that a split's users chose on, indices."""
        chosen = np.concatenate([chosen for chosen, _ in self._choices[split]])
        return np.unique(self.data.item_prompt[chosen])

    def test_items(
        self, split: str, user: int, episode: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """(chosen, rejected) items of an episode: context and targets, `[..., 2]`."""
        drawn = self._test_draw(split, user, episode)
        pairs = np.stack(self._choices[split][user], axis=-1)
        return pairs[drawn.context], pairs[drawn.target]

    def context_prompts(self, split: str, user: int, episode: int = 0) -> np.ndarray:
        """The prompts in the context of a user's test episode, indices."""
        context, _ = self.test_items(split, user, episode)
        return self.data.item_prompt[context[:, 0]]

    @functools.cached_property
    def _trained_on(self) -> np.ndarray:
        return self.users(TRAIN)

    def train_batch(self, step: int, positions: np.ndarray | None = None) -> PairBatch:
        """Rows of the global batch of a step.

        Args:
          step: number of the batch.
          positions: in the batch, ascending; all by default. Whichever are asked for,
            they are padded to the length of the whole batch.
        """
        first = step * self.batch_size
        users = order.visited(self._trained_on, first, self.batch_size, self.seed)
        drawn = []
        # Of all rows, which costs little beside their tokens.
        for row, user in enumerate(users):
            rng = np.random.default_rng((self.seed, step, row, 1))
            size = int(rng.integers(self.max_context + 1))
            drawn.append(self._draw(rng, TRAIN, user, size, self.num_targets))
        sizes = _Sizes(self.max_context, self.num_targets, self.num_pairs)
        return self._batch(TRAIN, step, users, drawn, sizes, positions)

    def test_batch(self, split: str, users: Sequence[int], episode: int) -> PairBatch:
        """One episode of each user, the same for every seed of a model.

        The context's real choices come first, so contexts of every smaller size are its
        prefixes and face the same targets.
        """
        drawn = [self._test_draw(split, user, episode) for user in users]
        sizes = _Sizes(self.test_context, self.test_targets, None)
        return self._batch(split, episode, users, drawn, sizes)

    def _test_draw(self, split: str, user: int, episode: int) -> _Drawn:
        rng = np.random.default_rng((user, episode))
        return self._draw(rng, split, user, self.test_context, self.test_targets)

    def _draw(self, rng, split: str, user: int, size: int, num_targets: int) -> _Drawn:
        chosen, _ = self._choices[split][user]
        prompt = self.data.item_prompt[chosen]
        order = rng.permutation(len(chosen))
        context, rest = np.split(order, [min(size, len(chosen) - 1)])
        elsewhere = rest[~np.isin(prompt[rest], prompt[context])]
        target = elsewhere if len(elsewhere) else rest
        return _Drawn(context, target[:num_targets])

    def _batch(
        self, split, step, users, drawn, sizes: _Sizes, positions=None
    ) -> PairBatch:
        """The rows at `positions`, padded to the bucket of all."""

        def items(which, size):
            found = np.full((len(users), size, 2), -1, np.int32)
            for row, (user, drawn_of) in enumerate(zip(users, drawn, strict=True)):
                at = getattr(drawn_of, which)
                pair = np.stack(self._choices[split][user], axis=-1)
                found[row, : len(at)] = pair[at]
            return found

        context, target = (
            items("context", sizes.context),
            items("target", sizes.targets),
        )
        pairs = target[:, : sizes.pairs]
        longest = self.responses.tokens.length[pairs[pairs >= 0]].max()
        bucket = min(length for length in self.buckets if length >= longest)
        if positions is None:
            positions = np.arange(len(users), dtype=np.int32)
        users = np.asarray(users, np.int32)[positions]
        context, target, pairs = (x[positions] for x in (context, target, pairs))
        reference = np.where(pairs >= 0, self.responses.log_prob[pairs], 0)
        return PairBatch(
            step=np.full(len(users), step, np.int32),
            position=positions,
            user=users,
            episode=Episode(
                self._as_choices(context),
                self._as_choices(target),
                self.data.users[split].group[users],
            ),
            responses=self.responses.tokens.pad(pairs, bucket),
            reference=reference.astype(np.float32),
        )

    def _as_choices(self, items: np.ndarray) -> Choices:
        known = items >= 0
        features = np.where(known[..., None], self.responses.features[items], 0)

        def side(i):
            # What tells items apart is their features: generated ones have no identity.
            return Options(features[..., i, :], np.full_like(items[..., i], -1))

        return Choices(side(0), side(1), known[..., 0])
