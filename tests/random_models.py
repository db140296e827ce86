"""Reward models whose variables are random, and random episodes for them.

Shapes: N context choices, M target choices, F features; sizes are different primes, so
that no swapped axis passes.
"""

from typing import Any

import jax
import numpy as np

from fsa.episodes import Choices, Episode, Options
from fsa.inference.ranker import Ranker
from fsa.models.reward_models import AnyRewardModel

N, M, F, ITEMS = 7, 11, 5, 13


def some_options(rng, size) -> Options:
    """Options `[size]`, of which some are items."""
    features = rng.normal(size=(size, F)).astype(np.float32)
    return Options(features, rng.integers(-1, ITEMS, size).astype(np.int32))


def some_choices(rng, size, real=None) -> Choices:
    """Choices [size] of which `real` (a mask, or all) count; noise in the padding."""
    mask = np.ones(size, bool) if real is None else np.asarray(real)
    return Choices(some_options(rng, size), some_options(rng, size), mask)


def some_episode(seed, real=None, real_targets=None) -> Episode:
    """An episode of N and M choices, of which some count."""
    rng = np.random.default_rng(seed)
    context, target = some_choices(rng, N, real), some_choices(rng, M, real_targets)
    return Episode(context, target, np.int32(0))


def some_masks(seed):
    """Which of N context choices and of M target choices count."""
    rng = np.random.default_rng(seed)
    return rng.random(N) < 0.6, rng.random(M) < 0.6


def options_of(features, item=-1) -> Options:
    """Options with these features, none of them an item by default."""
    return Options(np.asarray(features), np.full(len(features), item, np.int32))


def random_params(model: AnyRewardModel, episode: Episode, seed=0) -> Any:
    """Parameters that are large enough to matter."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), episode)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.normal(0, 0.7, x.shape).astype(np.float32), shapes["params"]
    )


def random_ranker(
    model: AnyRewardModel, num_features, num_samples, *, deterministic=False
) -> Ranker:
    """A ranker of a model with random parameters, for options as they are."""
    none = options_of(np.zeros((1, num_features), np.float32))
    choices = Choices(none, none, np.ones(1, bool))
    params = random_params(model, Episode(choices, choices, np.int32(0)))
    statistics = {
        "mean": np.zeros(num_features, np.float32),
        "std": np.ones(num_features, np.float32),
    }
    variables = {"params": params, "statistics": {"options": statistics}}
    return Ranker(model, variables, deterministic, num_samples=num_samples)
