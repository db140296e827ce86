"""The Bayes-optimal prediction as a method, for simulated people."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fsa.data.tasks.task import Task
from fsa.episodes import Choices, Episode
from fsa.rivals.method import Fitted, TrainingPeople


@dataclasses.dataclass(frozen=True, eq=False)
class Oracle:
    """Knows how people are drawn; no method can expect to do better.

    Attributes:
      task: the simulated people.
    """

    task: Task

    needs_items = False

    def fit(self, people: TrainingPeople, key: jax.Array) -> Fitted:
        """Learns nothing."""
        return Fitted(())

    def adapt(self, values: Any, context: Choices) -> Choices:
        """Keeps the context."""
        return context

    def predict(self, values: Any, person: Choices, target: Choices) -> jax.Array:
        """Computes the prediction of the task, `[M]`."""
        episode = Episode(person, target, jnp.int32(0))
        return self.task.bayes_log_prob(episode, jax.random.key(0))[0]
