"""GPO: a transformer reads a person's choices in its context and rates other options.

Zhao, Dang and Grover 2023 ("Group preference optimization: few-shot alignment of large
language models", arXiv 2310.11523): a transformer without positions, in which context
points attend to one another and target points attend to the context alone, trained by
meta-learning on people. The paper's points are options with a value each. A choice has
no value of its own, so a context point here is a pair (chosen, rejected), a target
point is one option, and two options' values are the log odds of a choice.

Shapes: H hidden width, L layers, N context choices, M target choices.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsa import losses
from fsa.episodes import Choices, Episode, Options
from fsa.models.encoder import MLP, OptionEncoder
from fsa.rivals import learned
from fsa.rivals.method import TrainingPeople
from fsa.training.reward_loss import example_episode, init_module


class Read(NamedTuple):
    """What the transformer made of a person's choices.

    Attributes:
      states: `[L, N + 1, H]`, the input of each layer.
      mask: `[N + 1]`, which positions are real; the first is a learned one.
    """

    states: jax.Array
    mask: jax.Array


class _Layer(nn.Module):
    hidden: int
    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, mask: jax.Array) -> jax.Array:
        norm = nn.LayerNorm()
        attention = nn.MultiHeadDotProductAttention(self.num_heads)
        known = norm(context)
        x = x + attention(norm(x), known, mask=mask[None, None])
        return x + MLP([2 * self.hidden, self.hidden])(nn.LayerNorm()(x))


class _Transformer(nn.Module):
    hidden: int
    num_layers: int
    num_heads: int

    def setup(self):
        self.options = OptionEncoder(self.hidden)
        self.pair = nn.Dense(self.hidden)
        self.single = nn.Dense(self.hidden)
        self.nobody = self.param("nobody", nn.initializers.normal(0.1), (self.hidden,))
        self.layers = [
            _Layer(self.hidden, self.num_heads) for _ in range(self.num_layers)
        ]
        self.norm = nn.LayerNorm()
        self.value = nn.Dense(1)

    def read(self, context: Choices) -> Read:
        sides = [self.options(o) for o in (context.chosen, context.rejected)]
        pairs = self.pair(nn.gelu(jnp.concatenate(sides, axis=-1)))
        x = jnp.concatenate([self.nobody[None], pairs])
        mask = jnp.concatenate([jnp.ones(1, bool), context.mask])
        states = []
        for layer in self.layers:
            states.append(x)
            x = layer(x, x, mask)
        return Read(jnp.stack(states), mask)

    def rate(self, read: Read, options: Options) -> jax.Array:
        x = self.single(nn.gelu(self.options(options)))
        for layer, state in zip(self.layers, read.states, strict=True):
            x = layer(x, state, read.mask)
        return self.value(self.norm(x))[..., 0]

    def __call__(self, read_from: Choices, target: Choices) -> jax.Array:
        read = self.read(read_from)
        return self.rate(read, target.chosen) - self.rate(read, target.rejected)


@dataclasses.dataclass(frozen=True)
class Gpo(learned.Learned):
    """An in-context transformer on features.

    Attributes:
      num_layers: L.
      num_heads: attention heads.
    """

    num_layers: int = 3
    num_heads: int = 4

    def init(self, people: TrainingPeople, key: jax.Array) -> Any:
        """Makes the transformer."""
        context = example_episode(people.task).context
        return init_module(self.module, people.task, key, context, context)

    def loss(self, variables, user, episode: Episode, key) -> jax.Array:
        """Computes the mean NLL of the targets after the context."""
        target = episode.target
        utilities = self.module.apply(variables, episode.context, target)
        log_prob = jax.nn.log_sigmoid(utilities)
        return losses.mean_nll(log_prob, target.mask)

    def adapt(self, values: Any, context: Choices) -> Read:
        """Reads a person's choices, in any order."""
        return self.module.apply(values, context, method="read")

    def predict(self, values: Any, person: Read, target: Choices) -> jax.Array:
        """Rates both options of each choice."""
        chosen, rejected = (
            self.module.apply(values, person, options, method="rate")
            for options in (target.chosen, target.rejected)
        )
        return jax.nn.log_sigmoid(chosen - rejected)

    @property
    def module(self) -> nn.Module:
        """The transformer."""
        return _Transformer(self.hidden, self.num_layers, self.num_heads)
