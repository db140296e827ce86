"""Scores a method on the episodes that every model is scored on, and its costs.

Shapes: U people, E episodes of a person, C context sizes, M target choices.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fsa.data.tasks.people import People
from fsa.data.tasks.task import TEST
from fsa.episodes import Choices, Episode, first_choices
from fsa.evaluation.predictions import FewShotPredictor
from fsa.evaluation.scores import user_means
from fsa.rivals.method import Method

# Repetitions of what is timed, of which the fastest counts: others use the machine too.
_REPETITIONS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class _Stateless:
    """What `FewShotPredictor` asks of a model: a method shows no z to diagnose."""

    latent_dim: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class MethodPredictor(FewShotPredictor):
    """Predicts by a method; what it learned takes the place of variables.

    Attributes:
      method: the method.
    """

    method: Method = None

    def infer(self, variables: Any, context: Choices) -> Any:
        """Returns what the method keeps of a person."""
        return self.method.adapt(variables, context)

    def log_prob(
        self, variables: Any, q: Any, target: Choices, key: jax.Array
    ) -> jax.Array:
        """Predicts targets from what the method keeps of a person, `[M]` in nats."""
        return self.method.predict(variables, q, target)


def predictor(
    method: Method,
    task: People,
    split: str,
    num_context: Sequence[int],
    *,
    episodes_per_user: int = 1,
    seed: int = 0,
    diagnose: bool = False,
) -> MethodPredictor:
    """Makes the predictor of a method; one seed draws the same episodes for all.

    Args:
      method: the method.
      task: draws the episodes.
      split: "valid" or "test".
      num_context: C context sizes.
      episodes_per_user: E.
      seed: seed of the episodes.
      diagnose: whether to predict after flipped contexts as well.
    """
    return MethodPredictor(
        _Stateless(),
        task,
        split,
        num_context=tuple(num_context),
        episodes_per_user=episodes_per_user,
        num_samples=1,
        deterministic=True,
        key=jax.random.key(seed),
        diagnose=diagnose,
        method=method,
    )


def mean_nll(predict: MethodPredictor, values: Any) -> float:
    """Returns the NLL in nats, a mean over people and context sizes."""
    predictions = predict(values)
    return float(user_means(-predictions.log_prob, predictions.mask).mean())


class Cost(NamedTuple):
    """What a new person costs.

    Attributes:
      milliseconds: of adapting to a person and predicting M choices, by the number of
        people who are served together.
      num_bytes: what is kept of a person.
    """

    milliseconds: dict[int, float]
    num_bytes: int


def cost(
    method: Method,
    values: Any,
    task: People,
    num_context: int,
    *,
    batches: Sequence[int] = (10, 1000),
) -> Cost:
    """Measures what a new person with `num_context` choices costs on this machine.

    Compiling is not counted. Times are of the fastest of some repetitions.

    Args:
      method: the method.
      values: what it learned.
      task: draws the people, test users in turn.
      num_context: number of choices known.
      batches: numbers of people who are served together; nothing is timed for none.
    """
    users = task.users(TEST)

    def draw_one(constants, user):
        return task.test_episode(constants, TEST, user, jax.random.key(0)).episode

    draw = jax.jit(jax.vmap(draw_one, (None, 0)))

    @jax.jit
    def serve(values, episodes):
        def one(episode: Episode):
            context = first_choices(episode.context, jnp.int32(num_context))
            return method.predict(values, method.adapt(values, context), episode.target)

        return jax.vmap(one)(episodes)

    times = {}
    if batches:
        many = draw(task.constants, np.resize(users, max(batches)))
    for size in batches:
        episodes = jax.tree.map(lambda x, size=size: x[:size], many)
        jax.block_until_ready(serve(values, episodes))
        seconds = []
        for _ in range(_REPETITIONS):
            begin = time.perf_counter()
            jax.block_until_ready(serve(values, episodes))
            seconds.append(time.perf_counter() - begin)
        times[size] = 1000 * min(seconds) / size

    def adapt(values, constants):
        # Padding up to the largest context is no part of what must be kept.
        context = draw_one(constants, users[0]).context
        return method.adapt(values, jax.tree.map(lambda x: x[:num_context], context))

    person = jax.tree.leaves(jax.eval_shape(adapt, values, task.constants))
    return Cost(times, sum(x.size * x.dtype.itemsize for x in person))
