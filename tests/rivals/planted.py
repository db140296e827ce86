"""People whose preferences are known, for tests of methods."""

import jax.numpy as jnp
import numpy as np

from fsa.data.dataset import Dataset, Embedding
from fsa.data.tasks.people import People
from fsa.data.users import UserTable
from fsa.episodes import Choices, Options

SPLITS = ("train", "valid", "test")


def dataset(features, chosen, rejected, counts):
    """A dataset of choices; the first `counts[0]` people train, and so on."""
    users, first = {}, 0
    for split, count in zip(SPLITS, counts, strict=True):
        own = slice(first, first + count)
        first += count
        users[split] = UserTable.of(
            [f"{split} {i}" for i in range(count)],
            [0] * count,
            chosen=chosen[own],
            rejected=rejected[own],
            items=[[]] * count,
            values=[[]] * count,
        )
    size = len(features)
    return Dataset(
        features=np.asarray(features, np.float32),
        item_ids=tuple(map(str, range(size))),
        texts=("",) * size,
        prompts=("",),
        item_prompt=np.zeros(size, np.int32),
        groups=("all",),
        users=users,
        embedding=Embedding("planted"),
    )


def people(data, context=5, targets=5):
    """The task of a dataset of choices."""
    return People(
        data,
        batch_size=1,
        max_context=context,
        num_targets=targets,
        test_context=context,
        test_targets=targets,
        train_on="choices",
    )


def by_rewards(rewards, features, counts, num_choices, seed=0):
    """People who choose by Bradley-Terry-Luce among random pairs of items.

    Args:
      rewards: `[U, I]`, of each item for each person.
      features: `[I, F]`.
      counts: people of each split.
      num_choices: of each person.
      seed: of pairs and choices.
    """
    rng = np.random.default_rng(seed)
    chosen, rejected = [], []
    for own in rewards:
        pairs = np.array(
            [rng.choice(len(own), 2, replace=False) for _ in range(2 * num_choices)]
        )
        pairs = np.unique(np.sort(pairs, axis=1), axis=0)
        pairs = rng.permutation(pairs)[:num_choices]
        gap = own[pairs[:, 0]] - own[pairs[:, 1]]
        wins = rng.uniform(size=len(pairs)) < 1 / (1 + np.exp(-gap))
        chosen.append(np.where(wins, pairs[:, 0], pairs[:, 1]))
        rejected.append(np.where(wins, pairs[:, 1], pairs[:, 0]))
    return dataset(features, chosen, rejected, counts)


def choices(features, chosen, rejected, mask=None):
    """Choices between items, as a method sees them."""

    def options(items):
        items = jnp.asarray(items, jnp.int32)
        return Options(jnp.asarray(features, jnp.float32)[items], items)

    mask = jnp.ones(len(chosen), bool) if mask is None else jnp.asarray(mask)
    return Choices(options(chosen), options(rejected), mask)
