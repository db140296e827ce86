"""Predictions without training to speak of, on the episodes that a model is scored on.

Shapes: U people, E episodes of a person, C context sizes, N context choices, M target
choices, I items, F features, P choices to fit to.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fsa.episodes import Choices
from fsa.evaluation import linear
from fsa.evaluation.predictions import FewShotPredictor

# Standard deviations a priori, in nats, of the log odds of a typical choice: by the
# weights that are the same for everybody, and by a person's shift of them.
STDS = (0.1, 0.3, 1.0)
SHIFTS = (0.0, 0.5, 1.0, 2.0, 4.0)


class Pairs(NamedTuple):
    """Choices between items.

    Attributes:
      chosen: `[U, E, N]` int32, items.
      rejected: `[U, E, N]` int32, items.
      mask: `[U, E, N]`, which choices are real.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    mask: np.ndarray


class Drawn(NamedTuple):
    """The items of the episodes that a `FewShotPredictor` predicts.

    Attributes:
      context: of N choices.
      flipped: the context that takes its place, of N choices.
      target: of M choices.
    """

    context: Pairs
    flipped: Pairs
    target: Pairs

    def take(self, users: np.ndarray) -> "Drawn":
        """Returns the episodes of some of the people, by index or mask."""
        return jax.tree.map(lambda x: x[users], self)


class LinearModel(NamedTuple):
    """A linear model of choices, which a person's choices shift.

    Attributes:
      features: `[I, F]` float64, scaled so that differences of choices have norm 1.
      weights: `[F]`, for everybody.
      shift: standard deviation of a person's log odds around everybody's.
    """

    features: np.ndarray
    weights: np.ndarray
    shift: float


def draw(predict: FewShotPredictor, constants: Any, users: np.ndarray) -> Drawn:
    """Draws the episodes of people whom `predict` predicts with these constants."""
    return jax.device_get(_draw(predict, constants, users))


@functools.partial(jax.jit, static_argnums=0)
def _draw(predict: FewShotPredictor, constants, users) -> Drawn:
    def pairs(choices: Choices) -> Pairs:
        return Pairs(choices.chosen.item, choices.rejected.item, choices.mask)

    def of(user, episode) -> Drawn:
        test, _ = predict.draw(constants, user, episode)
        return Drawn(
            pairs(test.episode.context), pairs(test.flipped), pairs(test.episode.target)
        )

    episodes = jnp.arange(predict.episodes_per_user)
    return jax.vmap(lambda user: jax.vmap(lambda e: of(user, e))(episodes))(users)


def item_log_prob(rewards: np.ndarray, target: Pairs) -> np.ndarray:
    """Predicts choices by a reward of each item, `[I]`; returns `[U, E, 1, M]`."""
    odds = rewards[target.chosen] - rewards[target.rejected]
    return -np.logaddexp(0, -odds)[:, :, None]


def fit_linear(features: np.ndarray, groups: Sequence[Drawn]) -> LinearModel:
    """Fits a linear model to people's first episodes.

    How far weights may be from 0 is chosen by fitting them to all groups of people but
    the last and predicting the last; how far people may be from everybody, by
    predicting everybody's target choices after their context.

    Args:
      features: `[I, F]`, standardised.
      groups: at least two groups of people.
    """
    differences = [_first_episodes(features, drawn) for drawn in groups]
    together = np.concatenate(differences)
    scale = np.sqrt((together**2).sum(1).mean())
    fitted, held_out = np.concatenate(differences[:-1]), differences[-1]
    std = linear.select(fitted / scale, held_out / scale, STDS)
    features = features / scale
    model = LinearModel(features, linear.fit(together / scale, std), 0.0)

    def nll(shift):
        shifted = model._replace(shift=shift)
        return np.mean([_mean_nll(shifted, drawn) for drawn in groups])

    return model._replace(shift=min(SHIFTS, key=nll))


def shifted_log_prob(
    model: LinearModel, context: Pairs, target: Pairs, sizes: Sequence[int]
) -> np.ndarray:
    """Predicts targets after a context of each size; returns `[U, E, C, M]` in nats."""
    people = [
        _products(model, *jax.tree.map(lambda x, u=u: x[u], (context, target)))
        for u in range(len(context.mask))
    ]
    own, wanted, inner, cross = map(np.stack, zip(*people, strict=True))
    log_probs = []
    for n in sizes:
        known = context.mask & (np.arange(context.mask.shape[-1]) < n)
        odds = linear.shifted_log_odds(
            own,
            wanted,
            inner * known[..., None] * known[..., None, :],
            cross * known[..., None, :],
        )
        log_probs.append(-np.logaddexp(0, -odds))
    return np.stack(log_probs, axis=2)


def _gaps(features: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Returns differences of features, 0 for padding."""
    gaps = features[pairs.chosen] - features[pairs.rejected]
    return gaps * pairs.mask[..., None]


def _first_episodes(features: np.ndarray, drawn: Drawn) -> np.ndarray:
    """Returns the differences of all choices of people's first episodes, `[P, F]`."""
    first = jax.tree.map(lambda x: x[:, 0], drawn)
    parts = [_gaps(features, p)[p.mask] for p in (first.context, first.target)]
    return np.concatenate(parts)


def _mean_nll(model: LinearModel, drawn: Drawn) -> float:
    first = jax.tree.map(lambda x: x[:, :1], drawn)
    size = first.context.mask.shape[-1]
    log_prob = shifted_log_prob(model, first.context, first.target, [size])[:, :, 0]
    return -log_prob[first.target.mask].mean()


def _products(model: LinearModel, context: Pairs, target: Pairs):
    """Returns the arguments of `shifted_log_odds` for one person's episodes."""
    known, wanted = (_gaps(model.features, pairs) for pairs in (context, target))
    variance = model.shift**2
    transposed = known.swapaxes(-1, -2)
    return (
        known @ model.weights,
        wanted @ model.weights,
        variance * known @ transposed,
        variance * wanted @ transposed,
    )
