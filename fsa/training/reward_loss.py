"""The loss of reward models over a batch of users, episodes drawn on the device.

Shapes: B rows of a batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from fsa import episodes
from fsa.data.tasks.task import Task
from fsa.models import reward
from fsa.models.reward import RewardModel, episode_loss
from fsa.parallel.sharding import FSDP, TENSOR, Rules, replicated, vmap_examples
from fsa.training.step import LossFn

# Where parameters lie on a mesh, see `fsa.parallel.sharding`, and stored embeddings of items, a
# table of the task.
SHARDING_RULES: Rules = (("^features$", P((FSDP, TENSOR))), *reward.SHARDING_RULES)


class Examples(NamedTuple):
    """Which users make up a batch; a batch is `(task.tables, Rows)`.

    Step and row say which random numbers a row gets, so they do not depend on how the
    batch is spread over devices or on how many steps one call makes.

    Attributes:
      step: `[B]` int32.
      position: `[B]` int32, in the global batch.
      user: `[B]` int32.
    """

    step: Any
    position: Any
    user: Any


def make_examples(task: Task, step: int, positions: np.ndarray) -> Examples:
    """Rows of global batch `step`, in NumPy.

    Args:
      task: whose users they are.
      step: number of the batch.
      positions: in the batch, `[B]` int32.
    """
    return Examples(
        step=np.full_like(positions, step),
        position=positions,
        user=task.training_users(step)[positions],
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
        constants, examples = batch
        variables = replicated(variables)

        def one(example: Examples):
            draw_key, loss_key = jax.random.split(
                episodes.example_key(key, example.step, example.position)
            )
            episode = task.train_episode(constants, example.user, draw_key)
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

        loss, metrics = vmap_examples(one)(examples)
        return jnp.mean(loss), jax.tree.map(jnp.mean, metrics)

    return loss_fn


def init_variables(model: RewardModel, task: Task, key: jax.Array):
    """Initial variables, with the feature statistics of the training set in place."""
    shapes = jax.eval_shape(
        task.train_episode, task.constants, jnp.int32(0), jax.random.key(0)
    )
    episode = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # One program instead of the hundreds of small ones of an eager init.
    variables = jax.jit(model.init)(key, episode)
    mean, std = (jnp.asarray(x, jnp.float32) for x in task.statistics())
    return {**variables, "statistics": {"options": {"mean": mean, "std": std}}}
