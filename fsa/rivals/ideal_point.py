"""Ideal points on items: people and items are points, which only their ids tell.

The two-parameter item response model of pairs (Coombs 1950; Clinton, Jackman and Rivers
2004): P(a over b) = sigmoid((f_a - f_b) . z + g_a - g_b), with an f and g of each item.
It needs no features and cannot rank an option that nobody in training judged; where all
options are known it is about what features can be expected to reach. Predictions are
averaged over Laplace's approximation of the posterior of z.

Shapes: K - 1 dimensions of z, M target choices.
"""

import dataclasses

import flax.linen as nn
import jax

from fsa.episodes import Choices
from fsa.rivals import basis, weights
from fsa.rivals.pref import Pref, Values
from fsa.rivals.weights import Gaussian


@dataclasses.dataclass(frozen=True)
class IdealPoint(Pref):
    """Points of items in place of base rewards by features.

    Attributes:
      num_items: number of items of the dataset.
      size: K, one more than the dimensions of a point.
    """

    num_items: int = 0
    size: int = 5

    needs_items = True

    @property
    def module(self) -> nn.Module:
        """The table of f and g."""
        return basis.ItemTable(self.num_items, self.size)

    def adapt(self, values: Values, context: Choices) -> Gaussian:
        """Infers a person's point, as a Gaussian over `[K - 1]`."""
        features, offset = self._utilities(values.variables, context)
        return weights.most_probable(features, offset, context.mask, values.prior)

    def predict(self, values: Values, person: Gaussian, target: Choices) -> jax.Array:
        """Averages over the posterior of the point."""
        features, offset = self._utilities(values.variables, target)
        return weights.averaged_log_prob(features, offset, person)
