"""The loss of reward models over a batch of users; episodes are drawn on the device.

Shapes: B examples of a batch.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from fsa import episodes
from fsa.data.tasks.task import TRAIN, Task
from fsa.episodes import Episode
from fsa.models import reward
from fsa.models.reward_models import AnyRewardModel, episode_loss
from fsa.parallel.sharding import FSDP, TENSOR, Rules, replicated, vmap_examples
from fsa.training.step import LossFn

# Sharding rules of the parameters, and of stored embeddings of items (a constant of the
# task); see `fsa.parallel.sharding`.
SHARDING_RULES: Rules = (("^features$", P((FSDP, TENSOR))), *reward.SHARDING_RULES)


class Examples(NamedTuple):
    """The users of a batch, which is `(task.constants, Examples)`.

    The random numbers of an example depend on its step and position, and so not on how
    the batch is split over devices or on how many steps one call makes.

    Attributes:
      step: `[B]` int32, number of the batch.
      position: `[B]` int32, position in the global batch.
      user: `[B]` int32, or what the task fetched of these users.
    """

    step: Any
    position: Any
    user: Any


def make_examples(task: Task, step: int, positions: np.ndarray) -> Examples:
    """Makes examples of global batch `step`, as NumPy arrays.

    Args:
      task: the task that draws users.
      step: number of the batch.
      positions: positions in the global batch, `[B]` int32.
    """
    return Examples(
        step=np.full_like(positions, step),
        position=positions,
        user=task.fetch(TRAIN, task.training_users(step), positions),
    )


def make_loss(
    model: AnyRewardModel,
    task: Task,
    *,
    objective: str,
    num_samples: int,
    beta: float,
) -> LossFn:
    """Makes the mean of `episode_loss` over new episodes of the examples' users.

    To its metrics it adds `choices`, the mean number of a user's target choices.
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


def example_episode(task: Task) -> Episode:
    """Returns an episode of zeros, which shows a model the sizes of its input."""
    first = jax.tree.map(lambda x: x[0], make_examples(task, 0, np.arange(1)).user)
    shapes = jax.eval_shape(
        task.train_episode, task.constants, first, jax.random.key(0)
    )
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def init_module(module: nn.Module, task: Task, key: jax.Array, *args: Any) -> Any:
    """Returns initial variables that contain the training set's feature statistics.

    Args:
      module: a module with an `OptionEncoder` named `options`.
      task: whose features the statistics are of.
      key: a JAX random key.
      *args: what the module is initialised with, such as `example_episode`.
    """
    # Under jit it is one program, while an eager init compiles hundreds of small ones.
    variables = jax.jit(module.init)(key, *args)
    mean, std = (jnp.asarray(x, jnp.float32) for x in task.statistics())
    return {**variables, "statistics": {"options": {"mean": mean, "std": std}}}


def init_variables(model: AnyRewardModel, task: Task, key: jax.Array):
    """Returns initial variables of a reward model, see `init_module`."""
    return init_module(model, task, key, example_episode(task))
