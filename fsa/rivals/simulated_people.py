"""Simulated people as a dataset: finitely many, each with a fixed list of choices.

Tasks of `fsa.data.tasks.simulated` draw new people without end, which no method that
gives each training person weights can be fitted to, and which real people are not.

Shapes: P choices of a person, F features.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fsa.data.dataset import Dataset, Embedding
from fsa.data.tasks.people import People
from fsa.data.tasks.task import Task
from fsa.data.users import UserTable


class Strangers(People):
    """People whose options never recur, so that no item is known by its id."""

    num_items = 0


def dataset(
    task: Task, num_people: Mapping[str, int], num_choices: int, seed: int
) -> Dataset:
    """Draws people, and the choices of each as a table; every option is an item.

    Args:
      task: a simulated task, with at least `num_choices` test targets.
      num_people: number of people of each split.
      num_choices: P.
      seed: of the people.
    """

    @jax.jit
    def draw(users):
        def one(user):
            episode = task.test_episode((), "test", user, jax.random.key(seed)).episode
            target = jax.tree.map(lambda x: x[:num_choices], episode.target)
            return target.chosen.features, target.rejected.features, episode.group

        return jax.vmap(one)(users)

    features, users, first, user = [], {}, 0, 0
    for split, count in num_people.items():
        chosen, rejected, group = map(
            np.asarray, draw(jnp.arange(user, user + count, dtype=jnp.int32))
        )
        user += count
        options = np.stack([chosen, rejected], axis=2)  # [count, P, 2, F]
        features.append(options.reshape(-1, options.shape[-1]))
        items = first + np.arange(count * num_choices * 2).reshape(count, -1, 2)
        first += items.size
        nothing = [[]] * count
        users[split] = UserTable.of(
            [f"{split} {i}" for i in range(count)],
            group,
            chosen=items[..., 0],
            rejected=items[..., 1],
            items=nothing,
            values=nothing,
        )
    vectors = np.concatenate(features).astype(np.float32)
    return Dataset(
        features=vectors,
        item_ids=tuple(map(str, range(len(vectors)))),
        texts=("",) * len(vectors),
        prompts=("",),
        item_prompt=np.zeros(len(vectors), np.int32),
        groups=task.groups,
        users=users,
        embedding=Embedding("simulated"),
    )
