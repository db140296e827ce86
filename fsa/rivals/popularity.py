"""Popularity: the share of training people who chose an option over the other.

It knows nothing of a person. Where few people judged both options, the share is drawn
to what the popularity of each item says (`fsa.data.tasks.people.popularity`), which
counts as so many people.

Shapes: I items, M target choices, U training people.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsa.data.tasks import people as people_task
from fsa.episodes import Choices
from fsa.rivals import judgements
from fsa.rivals.method import Fitted, TrainingPeople


def log_shares(people: TrainingPeople, pseudo_people: float) -> np.ndarray:
    """Returns the log of the share that chose item a over item b, `[I, I]`."""
    wins = judgements.wins(people.task)
    item_odds = people_task.popularity(people.task.data, people.task.min_margin)
    expected = 1 / (1 + np.exp(item_odds - item_odds[:, None]))
    share = (wins + pseudo_people * expected) / (wins + wins.T + pseudo_people)
    return np.log(share)


@dataclasses.dataclass(frozen=True)
class Popularity:
    """The share of training people.

    Attributes:
      pseudo_people: how many people the items' popularity counts as.
    """

    pseudo_people: float = 4.0

    needs_items = True

    def fit(self, people: TrainingPeople, key: jax.Array) -> Fitted:
        """Counts training people; there is nothing to choose."""
        return Fitted(jnp.asarray(log_shares(people, self.pseudo_people)))

    def adapt(self, values: jax.Array, context: Choices) -> tuple[()]:
        """Keeps nothing."""
        return ()

    def predict(self, values: jax.Array, person: Any, target: Choices) -> jax.Array:
        """Looks up the shares `[M]`; a half for an unknown item."""
        known = (target.chosen.item >= 0) & (target.rejected.item >= 0)
        return jnp.where(
            known, values[target.chosen.item, target.rejected.item], -jnp.log(2.0)
        )
