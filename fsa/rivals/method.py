"""The contract of a method: it is fitted to people, adapts to a person, and predicts.

A file that fulfils it is scored on the same episodes as every other one, by
`fsa.rivals.scoring`. What a method learned from people (`fitted`) and what it keeps of
one person (`person`) are pytrees of its own making.

Shapes: N context choices, M target choices. Functions take one unbatched person and can
be compiled and mapped over people.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax

from fsa.data.tasks.people import People
from fsa.episodes import Choices


class TrainingPeople(NamedTuple):
    """People whom a method is fitted to, and others on whom its settings are chosen.

    Attributes:
      task: draws the choices of its split `train`, to fit to, and of its split `valid`.
      num_context: the context sizes that a method shall be good at.
    """

    task: People
    num_context: Sequence[int]


class Fitted(NamedTuple):
    """What a method learned, and how.

    Attributes:
      values: a pytree of arrays.
      setting: the setting that validation people chose, such as the learning rate.
      valid_nll: of validation people, in nats, a mean over context sizes; NaN for a
        method without settings.
    """

    values: Any
    setting: float = float("nan")
    valid_nll: float = float("nan")


class Method(Protocol):
    """A way to predict a person's choices.

    Attributes:
      needs_items: whether it knows options by the items that they are, so that it says
        nothing about options that nobody in training has judged.
    """

    needs_items: bool = False

    def fit(self, people: TrainingPeople, key: jax.Array) -> Fitted:
        """Learns from people, and chooses its settings on validation people."""

    def adapt(self, values: Any, context: Choices) -> Any:
        """Returns what is kept of a person who made the choices `[N]` of a context."""

    def predict(self, values: Any, person: Any, target: Choices) -> jax.Array:
        """Computes the log-probabilities of a person's choices `[M]`, in nats.

        That a was chosen over b, and b over a, must have probabilities that sum to 1:
        the order of a choice is what is to be predicted.
        """
