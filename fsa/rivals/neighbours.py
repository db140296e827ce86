"""Nearest neighbours: what training people chose who agree with the person.

Collaborative filtering by people (Resnick et al. 1994): a training person's weight is
exp(sharpness * (agreement - disagreement)) over the items of the context, and the
probability of a choice is the weighted share of those who judged both of its options.
Popularity counts as a few people of no agreement.

Shapes: U training people, I items, N context choices, M target choices.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fsa.data.tasks.task import VALID
from fsa.episodes import Choices
from fsa.rivals import judgements, popularity, scoring
from fsa.rivals.method import Fitted, TrainingPeople


class Values(NamedTuple):
    """What was counted.

    Attributes:
      liked: `[U, I]`, see `fsa.rivals.judgements`.
      known: `[U, I]` bool.
      popular: `[I, I]`, see `fsa.rivals.popularity`.
      sharpness: scalar.
    """

    liked: jax.Array
    known: jax.Array
    popular: jax.Array
    sharpness: jax.Array


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Weighted shares of training people.

    Attributes:
      pseudo_people: how many people popularity counts as.
      sharpnesses: those to try, as many as learning rates of other methods.
      valid_episodes: episodes of each validation person.
    """

    pseudo_people: float = 4.0
    sharpnesses: tuple[float, ...] = (0.25, 0.5, 1.0)
    valid_episodes: int = 1

    needs_items = True

    def fit(self, people: TrainingPeople, key: jax.Array) -> Fitted:
        """Keeps what training people judged, and chooses the sharpness."""
        counted = judgements.matrix(people.task)
        popular = popularity.log_shares(people, self.pseudo_people)
        predict = scoring.predictor(
            self,
            people.task,
            VALID,
            people.num_context,
            episodes_per_user=self.valid_episodes,
        )
        tried = []
        for sharpness in self.sharpnesses:
            values = Values(*map(jnp.asarray, (*counted, popular, sharpness)))
            tried.append(Fitted(values, sharpness, scoring.mean_nll(predict, values)))
        return min(tried, key=lambda fitted: fitted.valid_nll)

    def adapt(self, values: Values, context: Choices) -> jax.Array:
        """Returns the weights of training people, `[U]`; all 1 without a context."""
        known = context.mask & (context.chosen.item >= 0) & (context.rejected.item >= 0)
        gaps = (
            values.liked[:, context.chosen.item]
            - values.liked[:, context.rejected.item]
        )
        agreement = jnp.sum(gaps / 2, axis=1, where=known)
        return jnp.exp(values.sharpness * agreement)

    def predict(self, values: Values, person, target: Choices) -> jax.Array:
        """Computes the weighted shares `[M]`."""
        a, b = target.chosen.item, target.rejected.item
        both = values.known[:, a] & values.known[:, b]
        gap = jnp.where(both, values.liked[:, a] - values.liked[:, b], 0.0)
        wins, losses = person @ (gap > 0), person @ (gap < 0)
        expected = jnp.exp(values.popular[a, b])
        prior = self.pseudo_people * expected
        share = (wins + prior) / (wins + losses + self.pseudo_people)
        return jnp.where((a >= 0) & (b >= 0), jnp.log(share), -jnp.log(2.0))
