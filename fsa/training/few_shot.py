"""The loss of reward models over a batch of users, episodes drawn on the device.

Shapes: B rows of a batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from fsa import episodes
from fsa.data.task import Task
from fsa.models import reward
from fsa.models.reward import RewardModel, episode_loss
from fsa.sharding import FSDP, TENSOR, Rules, vmap_rows, whole
from fsa.training.step import LossFn

# Where parameters lie on a mesh, see `fsa.sharding`, and stored embeddings of items, a
# table of the task.
SHARDING: Rules = (("^features$", P((FSDP, TENSOR))), *reward.SHARDING)


class Rows(NamedTuple):
    """Which users make up a batch; a batch is `(task.tables, Rows)`.

    Step and row say which random numbers a row gets, so they do not depend on how the
    batch is spread over devices or on how many steps one call makes.

    Attributes:
      step: `[B]` int32.
      row: `[B]` int32, position in the global batch.
      user: `[B]` int32.
    """

    step: Any
    row: Any
    user: Any


def make_rows(task: Task, step: int, positions: np.ndarray) -> Rows:
    """Rows of global batch `step`, in NumPy.

    Args:
      task: whose users they are.
      step: number of the batch.
      positions: in the batch, `[B]` int32.
    """
    return Rows(
        step=np.full_like(positions, step),
        row=positions,
        user=task.rows(step)[positions],
    )


def make_loss(
    model: RewardModel,
    task: Task,
    *,
    objective: str,
    num_samples: int,
    beta: float,
) -> LossFn:
    """The mean of `episode_loss` over fresh episodes of the rows' users.

    Beside its metrics, the number of target `choices` of a user.
    """

    def loss_fn(variables, batch, key):
        tables, rows = batch
        variables = whole(variables)

        def one(row: Rows):
            draw_key, loss_key = jax.random.split(
                episodes.row_key(key, row.step, row.row)
            )
            episode = task.train_episode(tables, row.user, draw_key)
            loss, metrics = episode_loss(
                model,
                variables,
                episode,
                loss_key,
                objective=objective,
                num_samples=num_samples,
                beta=beta,
            )
            return loss, {**metrics, "choices": episode.target.mask.sum()}

        loss, metrics = vmap_rows(one)(rows)
        return jnp.mean(loss), jax.tree.map(jnp.mean, metrics)

    return loss_fn


def init_variables(model: RewardModel, task: Task, key: jax.Array):
    """Initial variables, with the feature statistics of the training set in place."""
    shapes = jax.eval_shape(
        task.train_episode, task.tables, jnp.int32(0), jax.random.key(0)
    )
    episode = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # One program instead of the hundreds of small ones of an eager init.
    variables = jax.jit(model.init)(key, episode)
    mean, std = (jnp.asarray(x, jnp.float32) for x in task.statistics())
    return {**variables, "statistics": {"options": {"mean": mean, "std": std}}}
