"""`Questions`: how much each pair of options is worth asking a person about.

Shapes: P pairs, B pairs that are computed at once, O options, F features, K samples of
z, D latent dimensions.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fsa import losses
from fsa.episodes import Choices, Feedback, Options
from fsa.latent import DiagonalGaussian, Posterior, mixture
from fsa.latent.questions import (
    gain_about,
    gain_of_samples,
    information_gain,
    same_best,
    same_order,
)
from fsa.models.linear_reward import LinearRewardModel
from fsa.models.reward_models import AnyRewardModel
from fsa.sizes import FEW_CHOICES, padded

# Pairs that are computed at once, at most: an array of them has 4 MiB with 256 samples.
_BLOCK = 4096
# What an answer may be wanted for: z, the best of the options, or their whole order.
Z, BEST, ORDER = ABOUT = ("z", "best", "order")
# Gains that differ by no more are equal: sums depend on their order and the machine.
_EQUAL = 1e-6


class Question(NamedTuple):
    """A pair of options to ask about.

    Attributes:
      first: position of an option among those that were given.
      second: that of the other one.
      gain: how much the answer is expected to tell, in nats; at most log 2.
    """

    first: int
    second: int
    gain: float


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """What is expected of each question about two of O options.

    Attributes:
      pairs: `[P, 2]` int, positions of the two options, the smaller one first.
      gain: `[P]`, how much the answer is expected to tell about z, or about what was
        asked for, in nats.
      probability: `[P]`, that the first option is chosen.
      answered: `[P]` bool, whether the person has answered the question, or the two
        options are the same.
    """

    pairs: np.ndarray
    gain: np.ndarray
    probability: np.ndarray
    answered: np.ndarray

    @property
    def expected_accuracy(self) -> float:
        """How often the likelier option is chosen if the model is right, 0.5 to 1."""
        return float(np.maximum(self.probability, 1 - self.probability).mean())

    def best(self, leave_out: Iterable[tuple[int, int]] = ()) -> Question | None:
        """Returns the question that tells most; of equal ones, that of the first pair.

        Args:
          leave_out: pairs that are not to be asked, in any order.

        Returns:
          A question that was not answered yet; None if there is none.
        """
        refused = {tuple(sorted(pair)) for pair in leave_out}
        allowed = [tuple(pair) not in refused for pair in self.pairs.tolist()]
        kept = ~self.answered & np.array(allowed, bool)
        if not kept.any():
            return None
        most = self.gain[kept].max() - _EQUAL
        place = int(np.flatnonzero(kept & (self.gain >= most))[0])
        first, second = map(int, self.pairs[place])
        return Question(first, second, float(self.gain[place]))


def expect(
    model: AnyRewardModel,
    variables: Any,
    q: DiagonalGaussian | Posterior,
    context: Choices | Feedback,
    options: Options,
    pairs: np.ndarray,
    *,
    about: str = Z,
    num_samples: int,
    seed: int,
) -> Questions:
    """Computes what is expected of the questions about pairs of options.

    About z, a model that is linear in z does so by quadrature. All else is computed
    from K samples of z, the same ones for all pairs. Memory does not grow with the
    number of pairs.

    Args:
      model: a reward model with z.
      variables: its Flax variables.
      q: the posterior of z, inferred from the context.
      context: what the person has told, padded.
      options: O options, at least two.
      pairs: `[P, 2]` int, at least one, see `pairs_within`.
      about: one of `ABOUT`: what the answers are wanted for.
      num_samples: K.
      seed: seed of the samples of z.
    """
    # Few sizes, so that other numbers of options seldom need another program.
    size = padded(len(options.features), FEW_CHOICES)
    block = min(_BLOCK, padded(size * (size - 1) // 2))
    missing = -len(pairs) % block
    blocks = np.pad(pairs, [(0, missing), (0, 0)]).reshape(-1, block, 2)
    found = _expect(
        model,
        variables,
        q,
        jax.tree.map(functools.partial(_repeat_last, size=size), options),
        blocks.astype(np.int32),
        np.int32(seed),
        about=about,
        num_samples=num_samples,
    )
    gain, probability = (x.reshape(-1)[: len(pairs)] for x in jax.device_get(found))
    return Questions(pairs, gain, probability, answered(pairs, options, context))


def pairs_within(group: np.ndarray) -> np.ndarray:
    """Returns the pairs `[P, 2]` of options of one group, the smaller position first.

    Args:
      group: `[O]` int; options of different groups are not compared.
    """
    first, second = np.triu_indices(len(group), 1)
    same = group[first] == group[second]
    return np.stack([first[same], second[same]], axis=1)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("about", "num_samples"))
def _expect(model, variables, q, options, blocks, seed, *, about, num_samples):
    """Returns gains and probabilities of blocks of pairs `[P / B, B, 2]`."""
    if isinstance(model, LinearRewardModel) and about == Z:
        of_pairs = _linear(model, variables, q, options)
    else:
        key = jax.random.key(seed)
        z = mixture.mean_or_samples(q, key, num_samples, deterministic=False)
        of_pairs = _sampled(model, variables, z, options, about)
    return jax.lax.map(of_pairs, blocks)


def _linear(model, variables, q, options):
    features, offset = model.apply(variables, options, method=model.features)

    def of_pairs(pairs):
        of_first = features[pairs[:, 0]], offset[pairs[:, 0]]
        of_second = features[pairs[:, 1]], offset[pairs[:, 1]]
        utility = jax.tree.map(jnp.subtract, of_first, of_second)
        log_prob = mixture.predict(q, *utility)
        return information_gain(q, *utility), jnp.exp(log_prob)

    return of_pairs


def _sampled(model, variables, z, options, about):
    def rewards(z_k):
        return model.apply(variables, options, z_k, method=model.reward)

    mean, std = jax.lax.map(rewards, z)
    gain = gain_of_samples
    if about != Z:
        group = {BEST: same_best, ORDER: same_order}[about](mean)
        gain = functools.partial(gain_about, group)

    def of_pairs(pairs):
        i, j = pairs.T
        if std is None:
            gap = mean[:, i] - mean[:, j]
            log_prob = jnp.stack([jax.nn.log_sigmoid(gap), jax.nn.log_sigmoid(-gap)])
        else:
            log_prob = jnp.stack(
                [
                    losses.dpl_log_prob(mean[:, a], std[:, a], mean[:, b], std[:, b])
                    for a, b in ((i, j), (j, i))
                ]
            )
        return gain(log_prob), jnp.exp(log_prob[0]).mean(axis=0)

    return of_pairs


def _repeat_last(x: np.ndarray, size: int) -> np.ndarray:
    """Fills options `[O, ...]` up to `[size, ...]` without a new best or order."""
    return np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1), mode="edge")


def answered(
    pairs: np.ndarray, options: Options, context: Choices | Feedback
) -> np.ndarray:
    """Returns which pairs `[P]` are in the context, or of an option with itself.

    An option is known by its item and its features, however it was named.

    Args:
      pairs: `[P, 2]` int.
      options: O options.
      context: what the person has told, padded.
    """
    number: dict[tuple[int, bytes], int] = {}
    own = _numbers(options, number)
    sides = [
        _numbers(jax.tree.map(lambda x: x[context.mask], side), number)
        for side in context[:2]
    ]
    told = _codes(np.stack(sides, axis=1), len(number))
    asked = _codes(own[pairs], len(number))
    return np.isin(asked, told) | (own[pairs[:, 0]] == own[pairs[:, 1]])


def _numbers(options: Options, number: dict) -> np.ndarray:
    """Returns numbers of options, which are the same for the same option."""
    keys = [
        (int(item), np.asarray(features).tobytes())
        for features, item in zip(*map(np.asarray, options), strict=True)
    ]
    return np.array([number.setdefault(key, len(number)) for key in keys], int)


def _codes(pairs: np.ndarray, count: int) -> np.ndarray:
    """Returns a number for each pair, whatever its order."""
    return pairs.min(axis=-1, initial=count) * count + pairs.max(axis=-1, initial=0)
