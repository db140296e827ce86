"""Base rewards that all people share, of which a person has weights.

Several methods give a person's reward as a sum of base rewards, each with a weight of
the person's own: r_u(x) = w_u . phi(x) + psi(x).

Shapes: H hidden width, K base rewards, N context choices, M target choices, U training
people.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsa.data.tasks.task import TRAIN
from fsa.episodes import Choices, Options
from fsa.models.encoder import OptionEncoder
from fsa.rivals.method import TrainingPeople

# A person is visited rarely, so what is learned of them alone is stored divided by this
# and moves that much faster than what all share.
FASTER = 10.0


class Basis(nn.Module):
    """Base rewards of options by their features.

    Attributes:
      hidden: H.
      size: K.
    """

    hidden: int
    size: int

    @nn.compact
    def __call__(self, options: Options) -> jax.Array:
        """Maps options `[...]` to `[..., K]`."""
        x = nn.gelu(OptionEncoder(self.hidden, name="options")(options))
        return nn.Dense(self.size, use_bias=False)(x)


class ItemTable(nn.Module):
    """Base rewards of items by a table; an unknown item has 0.

    Attributes:
      num_items: number of items.
      size: K.
    """

    num_items: int
    size: int

    @nn.compact
    def __call__(self, options: Options) -> jax.Array:
        """Maps options `[...]` to `[..., K]`."""
        rows = nn.Embed(
            self.num_items, self.size, embedding_init=nn.initializers.normal(0.3)
        )(jnp.maximum(options.item, 0))
        return jnp.where((options.item >= 0)[..., None], rows, 0.0)


def apply(module: nn.Module, variables: Any, options: Options) -> jax.Array:
    """Returns the base rewards `[..., K]` by the part `basis` of the parameters."""
    own = {**variables, "params": variables["params"]["basis"]}
    return module.apply(own, options)


def differences(module: nn.Module, variables: Any, choices: Choices) -> jax.Array:
    """Returns base rewards of the chosen minus those of the rejected, `[N, K]`."""
    chosen, rejected = (
        apply(module, variables, options)
        for options in (choices.chosen, choices.rejected)
    )
    return chosen - rejected


def with_basis(variables: Any, **others: Any) -> Any:
    """Returns a module's variables, with further parameters beside `basis`."""
    return {**variables, "params": {"basis": variables["params"], **others}}


def with_people(variables: Any, people: TrainingPeople, table: jax.Array) -> Any:
    """Returns a module's variables, with rows of `table` `[U, K]` for training people.

    The collection `people` tells which of them are `trained` on, `[U]`.
    """
    trained = jnp.zeros(len(table)).at[people.task.users(TRAIN)].set(1.0)
    variables = with_basis(variables, people=table)
    return {**variables, "people": {"trained": trained}}


def without_people(variables: Any, **others: Any) -> Any:
    """Returns variables without training people's rows, with further parameters."""
    params = {k: v for k, v in variables["params"].items() if k != "people"}
    kept = {k: v for k, v in variables.items() if k != "people"}
    return {**kept, "params": {**params, **others}}
