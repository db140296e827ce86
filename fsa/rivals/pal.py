"""PAL: a person's ideal point is a mixture of prototypes, and near options are chosen.

Chen, Chen, Rege and Korlakai Vinayak 2024 ("PAL: pluralistic alignment framework for
learning from heterogeneous preferences", arXiv 2406.08469), model A: options are mapped
to f(x), a person's ideal point is a_u = sum_k w_uk p_k with w_u in the simplex, and
|f(b) - a_u|^2 - |f(a) - a_u|^2 is the log odds of a over b. Of a new person, w_u alone
is fitted.

Shapes: K prototypes, D dimensions of the space, N choices, U training people.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsa.episodes import Choices
from fsa.rivals import basis
from fsa.rivals.lore import Lore
from fsa.rivals.method import TrainingPeople


@dataclasses.dataclass(frozen=True)
class Pal(Lore):
    """Prototypes in a space of options; trained and adapted as `Lore` is.

    Attributes:
      size: K.
      dimensions: D.
    """

    dimensions: int = 8

    def init(self, people: TrainingPeople, key: jax.Array) -> Any:
        """Adds random prototypes `[K, D]` to the variables of `Lore`."""
        own_key, key = jax.random.split(key)
        variables = super().init(people, key)
        prototypes = jax.random.normal(own_key, (self.size, self.dimensions))
        params = {**variables["params"], "prototypes": prototypes}
        return {**variables, "params": params}

    @property
    def module(self) -> nn.Module:
        """The map of options to the space, f."""
        return basis.Basis(self.hidden, self.dimensions)

    def utilities(self, variables: Any, logits: jax.Array, choices: Choices):
        """Returns squared distances of the rejected minus the chosen, `[N]`."""
        ideal = jax.nn.softmax(logits) @ variables["params"]["prototypes"]

        def distance(options):
            point = basis.apply(self.module, variables, options)
            return jnp.sum((point - ideal) ** 2, axis=-1)

        return distance(choices.rejected) - distance(choices.chosen)
