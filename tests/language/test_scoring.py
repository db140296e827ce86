"""Scores of responses under a frozen model, against one item at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import language_model
from scipy.special import log_softmax

from fsa.errors import InputError
from fsa.language.scoring import POOLINGS, score_responses
from fsa.language.token_table import TokenTable

pytestmark = pytest.mark.usefixtures("quick_compile")

# (tokens of the prompt, tokens of the response); the longest comes first.
SIZES = [(5, 8), (2, 3), (0, 0), (4, 1), (3, 2), (1, 12), (2, 3), (0, 0), (1, 4)]


@functools.cache
def table():
    rng = np.random.default_rng(0)
    return TokenTable.of([(rng.integers(3, 80, a + b).tolist(), a) for a, b in SIZES])


def score(**options):
    options = {"buckets": (5, 13), "tokens_at_once": 26, "progress": False} | options
    return score_responses(*language_model(), table(), **options)


@functools.cache
def by_hand():
    """Returns log-probabilities `[I]`, and each item's states at its response."""
    model, variables = language_model()

    @jax.jit
    def run(tokens):
        states, _ = model.apply(variables, tokens, method=model.hidden)
        return states, model.apply(variables, states, method=model.unembed)

    log_probs, states = [], []
    for item, (start, length) in enumerate(SIZES):
        if not length:
            log_probs.append(0)
            states.append(np.zeros((1, model.width)))
            continue
        tokens = table()[item]
        hidden, logits = jax.tree.map(np.float64, run(tokens[None]))
        positions = np.arange(start, len(tokens))
        predicted = log_softmax(logits[0, positions - 1], axis=-1)
        log_probs.append(predicted[np.arange(length), tokens[positions]].sum())
        states.append(hidden[0, positions])
    return np.array(log_probs), states


@pytest.mark.parametrize("pooling", POOLINGS)
def test_scores_are_those_of_items_alone(pooling):
    log_prob, features = score(pooling=pooling)
    wanted, states = by_hand()
    np.testing.assert_allclose(log_prob, wanted, rtol=1e-5)
    pool = {
        "mean": lambda x: x.mean(0),
        "last": lambda x: x[-1],
        "mean_and_last": lambda x: np.concatenate([x.mean(0), x[-1]]),
    }[pooling]
    np.testing.assert_allclose(features, [pool(x) for x in states], atol=1e-5)
    assert log_prob.dtype == features.dtype == np.float32
    assert len(set(log_prob.tolist())) == len(SIZES) - 1


def test_items_without_tokens_are_zeros():
    log_prob, features = score()
    for item, (_, length) in enumerate(SIZES):
        assert (log_prob[item] == 0) == (length == 0)
        assert features[item].any() == (length > 0)


@pytest.mark.parametrize(
    "options",
    [
        {"buckets": (13,)},
        {"buckets": (5, 6, 13, 16)},
        {"tokens_at_once": 1},
        {"tokens_at_once": 10_000},
    ],
)
def test_padded_lengths_and_batch_sizes_change_nothing(options):
    for found, wanted in zip(score(**options), score(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="buckets"):
        score(buckets=(5, 12))
    with pytest.raises(ValueError, match="pooling"):
        score(pooling="max")


def test_low_precision_gives_float32():
    model, variables = language_model(dtype=jnp.bfloat16)
    found = score_responses(
        model, variables, table(), buckets=(13,), progress=False, tokens_at_once=39
    )
    for low, full in zip(found, score(), strict=True):
        assert low.dtype == np.float32
        assert 0 < np.abs(low - full).max() < 0.1 * np.abs(full).max()
